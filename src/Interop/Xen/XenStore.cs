using System.Buffers;
using System.Runtime.InteropServices;
using System.Text;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Xen.LibXenStore;

namespace XenLoop.Interop.Xen;

/// <summary>What a domain may do with a node.</summary>
[Flags]
internal enum XenStoreAccess : uint
{
    None = xs_perm_type.XS_PERM_NONE,
    Read = xs_perm_type.XS_PERM_READ,
    Write = xs_perm_type.XS_PERM_WRITE,
    ReadWrite = Read | Write,
}

/// <summary>
/// A connection to XenStore. Paths are absolute, or relative to the domain's home (<c>/local/domain/N</c>).
/// Calls block for a round trip to xenstored, one at a time, and may come from any thread.
/// A connection that has failed stays failed: every call then throws, and the owner opens another.
/// </summary>
/// <remarks>
/// What the kernel answers by closing the connection (an over-long request, a watch on a malformed path) is refused
/// here first, with E2BIG or EINVAL. One such cause remains: a guest's 124th watch.
/// </remarks>
internal sealed unsafe class XenStore : IWatchSource, IStoreReader, IDisposable
{
    // The kernel's xenbus device takes a header of 16 bytes and the payload in one page.
    private const int PayloadMax = 4096 - 16;
    private const int AbsolutePathMax = 3072;
    private const int RelativePathMax = 2048;

    private static readonly SearchValues<char> NodeCharacters =
        SearchValues.Create("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-/_@");

    private readonly XenStoreHandle _handle;

    private XenStore(XenStoreHandle handle, int fileDescriptor)
    {
        _handle = handle;
        FileDescriptor = fileDescriptor;
    }

    /// <summary>Readable while watch events wait; then call <see cref="TryTakeWatch"/> until it returns false.
    /// It does not become readable when the connection is lost: any other call tells.</summary>
    public int FileDescriptor { get; }

    /// <summary>Requests so far, each a round trip to xenstored: what its other clients wait for. Exact while one thread uses the connection.</summary>
    public long Requests { get; private set; }

    /// <summary>Connects to <c>$XENSTORED_PATH</c> if set, else to a local xenstored, else through the kernel.</summary>
    public static XenStore Open()
    {
        XenStoreHandle handle = new(xs_open((nuint)XS_UNWATCH_FILTER));
        if (handle.IsInvalid)
        {
            throw new NativeException(
                "xs_open",
                Environment.GetEnvironmentVariable("XENSTORED_PATH") ?? "/dev/xen/xenbus",
                Marshal.GetLastPInvokeError(),
                "Is this a Xen guest, and are you root?");
        }

        // Asked for before the first watch: the library signals a pipe that it makes at this call.
        int fileDescriptor = xs_fileno(handle);
        if (fileDescriptor < 0)
        {
            int errno = Marshal.GetLastPInvokeError();
            handle.Dispose();
            throw new NativeException("xs_fileno", "XenStore", errno);
        }

        return new XenStore(handle, fileDescriptor);
    }

    /// <summary>As <see cref="Read"/>, for another domain's node: null, too, while this domain may not see it.
    /// (XenStore answers EACCES even for a node that does not exist, where the parent is not ours to read.)</summary>
    public string? ReadIfVisible(string path)
    {
        try
        {
            return Read(path);
        }
        catch (NativeException e) when (e.Errno == EACCES)
        {
            return null;
        }
    }

    /// <summary>The node's value, or null when there is no such node.</summary>
    public string? Read(string path)
    {
        Check("xs_read", path);
        byte* value = xs_read(_handle, XBT_NULL, path, out uint length);
        if (value is null)
        {
            int errno = Marshal.GetLastPInvokeError();
            return errno == ENOENT ? null : throw new NativeException("xs_read", path, errno);
        }

        try
        {
            return Encoding.UTF8.GetString(value, (int)length);
        }
        finally
        {
            NativeMemory.Free(value);
        }
    }

    /// <summary>Writes the node, creating it and the directories above it.</summary>
    public void Write(string path, string value)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(value);
        Check("xs_write", path, bytes.Length);
        fixed (byte* data = bytes)
        {
            if (!xs_write(_handle, XBT_NULL, path, data, (uint)bytes.Length))
            {
                throw NotStored("xs_write", path);
            }
        }
    }

    /// <summary>Makes an empty node unless there is one already.</summary>
    public void MakeDirectory(string path)
    {
        Check("xs_mkdir", path);
        if (!xs_mkdir(_handle, XBT_NULL, path))
        {
            throw NotStored("xs_mkdir", path);
        }
    }

    /// <summary>Removes the node with all below it; no node is no error.</summary>
    public void Remove(string path)
    {
        Check("xs_rm", path);
        if (!xs_rm(_handle, XBT_NULL, path) && Marshal.GetLastPInvokeError() is int errno and not ENOENT)
        {
            throw new NativeException("xs_rm", path, errno);
        }
    }

    /// <summary>Names of the node's children, in no particular order; empty when there is no such node.</summary>
    public string[] List(string path)
    {
        Check("xs_directory", path);
        byte** names = xs_directory(_handle, XBT_NULL, path, out uint count);
        if (names is null)
        {
            int errno = Marshal.GetLastPInvokeError();
            return errno == ENOENT ? [] : throw new NativeException("xs_directory", path, errno);
        }

        try
        {
            string[] list = new string[count];
            for (int i = 0; i < list.Length; i++)
            {
                list[i] = Marshal.PtrToStringUTF8((IntPtr)names[i])!;
            }

            return list;
        }
        finally
        {
            NativeMemory.Free(names);
        }
    }

    /// <summary>The node's owner with everybody else's access first, then the exceptions; null when there is no such node.</summary>
    public (ushort Domid, XenStoreAccess Access)[]? GetPermissions(string path)
    {
        Check("xs_get_permissions", path);
        xs_permissions* native = xs_get_permissions(_handle, XBT_NULL, path, out uint count);
        if (native is null)
        {
            int errno = Marshal.GetLastPInvokeError();
            return errno == ENOENT ? null : throw new NativeException("xs_get_permissions", path, errno);
        }

        try
        {
            (ushort, XenStoreAccess)[] permissions = new (ushort, XenStoreAccess)[count];
            for (int i = 0; i < permissions.Length; i++)
            {
                permissions[i] = ((ushort)native[i].id, (XenStoreAccess)native[i].perms & XenStoreAccess.ReadWrite);
            }

            return permissions;
        }
        finally
        {
            NativeMemory.Free(native);
        }
    }

    /// <summary>Sets who may do what. The first entry names the owner, who may do everything, and what all domains
    /// that have no entry may do: <c>n5,r7</c> is <c>(5, None), (7, Read)</c>. Children that exist keep theirs.</summary>
    public void SetPermissions(string path, params (ushort Domid, XenStoreAccess Access)[] permissions)
    {
        Check("xs_set_permissions", path, permissions.Length * "w65535\0".Length);
        Span<xs_permissions> native = stackalloc xs_permissions[permissions.Length];
        for (int i = 0; i < permissions.Length; i++)
        {
            native[i] = new() { id = permissions[i].Domid, perms = (xs_perm_type)permissions[i].Access };
        }

        fixed (xs_permissions* first = native)
        {
            if (!xs_set_permissions(_handle, XBT_NULL, path, first, (uint)native.Length))
            {
                throw new NativeException("xs_set_permissions", path, Marshal.GetLastPInvokeError());
            }
        }
    }

    /// <summary>Watches the node and all below it, whether it exists or not. Fires once at once.</summary>
    /// <param name="path">The node, or <c>@introduceDomain</c>, <c>@releaseDomain</c>.</param>
    /// <param name="token">Comes back with each event; path and token together name the watch.</param>
    public void Watch(string path, string token)
    {
        Check("xs_watch", path, Encoding.UTF8.GetByteCount(token) + 1, special: true);
        if (!xs_watch(_handle, path, token))
        {
            throw new NativeException("xs_watch", path, Marshal.GetLastPInvokeError());
        }
    }

    /// <summary>Ends a watch; its events that are still queued are discarded. An unknown watch is no error.</summary>
    public void Unwatch(string path, string token)
    {
        Check("xs_unwatch", path, Encoding.UTF8.GetByteCount(token) + 1, special: true);
        if (!xs_unwatch(_handle, path, token) && Marshal.GetLastPInvokeError() is int errno and not ENOENT)
        {
            throw new NativeException("xs_unwatch", path, errno);
        }
    }

    /// <summary>Takes one watch event if one waits; never blocks.</summary>
    /// <param name="path">The node that changed: the watched one or one below it.</param>
    /// <param name="token">The token given to <see cref="Watch"/>.</param>
    public bool TryTakeWatch(out string path, out string token)
    {
        byte** strings = xs_check_watch(_handle);
        if (strings is null)
        {
            int errno = Marshal.GetLastPInvokeError();
            path = token = "";
            return errno == EAGAIN ? false : throw new NativeException("xs_check_watch", "XenStore", errno);
        }

        path = Marshal.PtrToStringUTF8((IntPtr)strings[0])!;
        token = Marshal.PtrToStringUTF8((IntPtr)strings[1])!;
        NativeMemory.Free(strings);
        return true;
    }

    /// <summary>The domain's home, <c>/local/domain/N</c>, whether or not the domain exists.</summary>
    public string GetDomainPath(ushort domid)
    {
        byte* path = xs_get_domain_path(_handle, domid);
        if (path is null)
        {
            throw new NativeException("xs_get_domain_path", $"domain {domid}", Marshal.GetLastPInvokeError());
        }

        try
        {
            return Marshal.PtrToStringUTF8((IntPtr)path)!;
        }
        finally
        {
            NativeMemory.Free(path);
        }
    }

    public void Dispose() => _handle.Dispose();

    private static NativeException NotStored(string call, string path)
    {
        int errno = Marshal.GetLastPInvokeError();
        return new(call, path, errno, errno == ENOSPC ? "This domain's quota of XenStore nodes is used up" : null);
    }

    /// <summary>Before each request.</summary>
    private void Check(string call, string path, int more = 0, bool special = false)
    {
        Requests++;
        ReadOnlySpan<char> node = special && path.StartsWith('@') ? path.AsSpan(1) : path;
        bool absolute = path.StartsWith('/');
        if (node.IsEmpty
            || node.ContainsAnyExcept(NodeCharacters)
            || node.IndexOf("//") >= 0
            || (node.EndsWith("/") && node.Length > 1))
        {
            throw new NativeException(call, path, EINVAL, "A XenStore path has letters, digits, and any of -/_@");
        }

        if (path.Length >= (absolute ? AbsolutePathMax : RelativePathMax) || path.Length + 1 + more > PayloadMax)
        {
            throw new NativeException(call, path, E2BIG, $"A XenStore request has {PayloadMax} bytes at most");
        }
    }
}
