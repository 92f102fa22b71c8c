using System.Runtime.InteropServices;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>
/// readv and writev, which Tmds.LibC does not bind. errno is asked for on failure only
/// (<see cref="Marshal.GetLastSystemError"/>): the success path is the hot path.
/// </summary>
internal static unsafe partial class VectorIo
{
    // ssize_t readv(int fd, const struct iovec *iov, int iovcnt);
    [LibraryImport("libc")]
    public static partial nint readv(int fd, iovec* iov, int iovcnt);

    // ssize_t writev(int fd, const struct iovec *iov, int iovcnt);
    [LibraryImport("libc")]
    public static partial nint writev(int fd, iovec* iov, int iovcnt);
}
