using System.Text;
using Microsoft.Win32.SafeHandles;
using Tmds.Linux;
using XenLoop.Interop;
using static Tmds.Linux.LibC;

namespace XenLoop.Lab;

/// <summary>Memory with a descriptor, which other processes can be given; the lab's stand-in for granted pages.</summary>
internal static unsafe class MemFd
{
    /// <summary>Makes <paramref name="length"/> bytes of zeroed memory.</summary>
    public static SafeFileHandle Create(string name, long length)
    {
        int fd;
        fixed (byte* bytes = Encoding.UTF8.GetBytes(name + '\0'))
        {
            fd = memfd_create(bytes, MFD_CLOEXEC);
        }

        if (fd < 0)
        {
            throw new NativeException("memfd_create", name, errno);
        }

        SafeFileHandle handle = new(fd, ownsHandle: true);
        if (ftruncate(fd, length) < 0)
        {
            int error = errno;
            handle.Dispose();
            throw new NativeException("ftruncate", name, error);
        }

        return handle;
    }

    /// <summary>Reserves addresses, unreadable until <see cref="Map"/> fills them.</summary>
    public static byte* Reserve(long length)
    {
        void* address = mmap(null, (size_t)(ulong)length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return address != MAP_FAILED ? (byte*)address : throw new NativeException("mmap", "addresses", errno);
    }

    /// <summary>Maps part of the memory, readable, writable and shared.</summary>
    /// <param name="memory">What <see cref="Create"/> made, here or in another process.</param>
    /// <param name="offset">First byte, a multiple of the page size.</param>
    /// <param name="length">Number of bytes.</param>
    /// <param name="at">Where, within what <see cref="Reserve"/> returned; null lets the kernel choose.</param>
    public static byte* Map(SafeFileHandle memory, long offset, long length, byte* at = null)
    {
        bool added = false;
        try
        {
            memory.DangerousAddRef(ref added);
            int flags = at is null ? MAP_SHARED : MAP_SHARED | MAP_FIXED;
            int fd = (int)memory.DangerousGetHandle();
            void* address = mmap(at, (size_t)(ulong)length, PROT_READ | PROT_WRITE, flags, fd, offset);
            return address != MAP_FAILED ? (byte*)address : throw new NativeException("mmap", "a memfd", errno);
        }
        finally
        {
            if (added)
            {
                memory.DangerousRelease();
            }
        }
    }

    /// <summary>Gives addresses back; nothing may touch them afterwards.</summary>
    public static void Unmap(byte* address, long length)
    {
        // munmap of a range that mmap returned does not fail.
        _ = munmap(address, (size_t)(ulong)length);
    }
}
