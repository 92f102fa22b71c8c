using System.Text;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using static Tmds.Linux.LibC;

namespace XenLoop.Lab;

/// <summary>Memory with a descriptor, which other processes can be given; the lab's stand-in for granted pages.</summary>
internal static unsafe class MemFd
{
    /// <summary>Makes <paramref name="length"/> bytes of zeroed memory.</summary>
    public static SafeFd Create(string name, long length)
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

        SafeFd handle = new(fd);
        if (ftruncate(fd, length) < 0)
        {
            int error = errno;
            handle.Dispose();
            throw new NativeException("ftruncate", name, error);
        }

        return handle;
    }
}
