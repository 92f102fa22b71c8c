using System.Runtime.InteropServices;

namespace XenLoop.Interop.Xen;

/// <summary>libxenstore (xenstore.h). Transactions are left out on purpose: a failed start hangs the guest's next suspend.</summary>
internal static unsafe partial class LibXenStore
{
    public const string Library = "xenstore";

    /// <summary>Not in a transaction.</summary>
    public const uint XBT_NULL = 0;

    /// <summary>xs_unwatch also discards the events of that watch that are already queued.</summary>
    public const ulong XS_UNWATCH_FILTER = 1UL << 2;

    static LibXenStore() => XenLibraries.Use();

    /// <summary><c>struct xs_permissions</c>.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct xs_permissions
    {
        /// <summary><c>unsigned int id</c>.</summary>
        public uint id;

        /// <summary><c>enum xs_perm_type perms</c>.</summary>
        public xs_perm_type perms;
    }

    public enum xs_perm_type : uint
    {
        XS_PERM_NONE = 0,
        XS_PERM_READ = 1,
        XS_PERM_WRITE = 2,
    }

    // struct xs_handle *xs_open(unsigned long flags);
    [LibraryImport(Library, SetLastError = true)]
    public static partial IntPtr xs_open(nuint flags);

    // void xs_close(struct xs_handle *xsh /* NULL ok */);
    [LibraryImport(Library)]
    public static partial void xs_close(IntPtr xsh);

    // int xs_fileno(struct xs_handle *h);
    [LibraryImport(Library, SetLastError = true)]
    public static partial int xs_fileno(XenStoreHandle h);

    // char **xs_directory(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *num);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial byte** xs_directory(XenStoreHandle h, uint t, string path, out uint num);

    // void *xs_read(struct xs_handle *h, xs_transaction_t t, const char *path, unsigned int *len);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial byte* xs_read(XenStoreHandle h, uint t, string path, out uint len);

    // bool xs_write(struct xs_handle *h, xs_transaction_t t, const char *path, const void *data, unsigned int len);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [return: MarshalAs(UnmanagedType.U1)]
    public static partial bool xs_write(XenStoreHandle h, uint t, string path, byte* data, uint len);

    // bool xs_mkdir(struct xs_handle *h, xs_transaction_t t, const char *path);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [return: MarshalAs(UnmanagedType.U1)]
    public static partial bool xs_mkdir(XenStoreHandle h, uint t, string path);

    // bool xs_rm(struct xs_handle *h, xs_transaction_t t, const char *path);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [return: MarshalAs(UnmanagedType.U1)]
    public static partial bool xs_rm(XenStoreHandle h, uint t, string path);

    // struct xs_permissions *xs_get_permissions(struct xs_handle *h, xs_transaction_t t, const char *path,
    //                                           unsigned int *num);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    public static partial xs_permissions* xs_get_permissions(XenStoreHandle h, uint t, string path, out uint num);

    // bool xs_set_permissions(struct xs_handle *h, xs_transaction_t t, const char *path,
    //                         struct xs_permissions *perms, unsigned int num_perms);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [return: MarshalAs(UnmanagedType.U1)]
    public static partial bool xs_set_permissions(
        XenStoreHandle h, uint t, string path, xs_permissions* perms, uint num_perms);

    // bool xs_watch(struct xs_handle *h, const char *path, const char *token);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [return: MarshalAs(UnmanagedType.U1)]
    public static partial bool xs_watch(XenStoreHandle h, string path, string token);

    // char **xs_check_watch(struct xs_handle *h);
    [LibraryImport(Library, SetLastError = true)]
    public static partial byte** xs_check_watch(XenStoreHandle h);

    // bool xs_unwatch(struct xs_handle *h, const char *path, const char *token);
    [LibraryImport(Library, SetLastError = true, StringMarshalling = StringMarshalling.Utf8)]
    [return: MarshalAs(UnmanagedType.U1)]
    public static partial bool xs_unwatch(XenStoreHandle h, string path, string token);

    // char *xs_get_domain_path(struct xs_handle *h, unsigned int domid);
    [LibraryImport(Library, SetLastError = true)]
    public static partial byte* xs_get_domain_path(XenStoreHandle h, uint domid);
}

/// <summary>A connection to XenStore; closing it joins libxenstore's reader thread.</summary>
internal sealed class XenStoreHandle : SafeHandle
{
    public XenStoreHandle(IntPtr handle)
        : base(IntPtr.Zero, ownsHandle: true) => SetHandle(handle);

    public override bool IsInvalid => handle == IntPtr.Zero;

    protected override bool ReleaseHandle()
    {
        LibXenStore.xs_close(handle);
        return true;
    }
}
