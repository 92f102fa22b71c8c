using Tmds.Linux;

namespace XenLoop.Interop;

/// <summary>A native call failed: says which call, on what object, and errno's name, as in
/// <c>ioctl(TUNSETIFF) on xl3.0: EBUSY (Device or resource busy)</c>.</summary>
public sealed class NativeException : Exception
{
    /// <summary>errno of the failed call; 0 when the call sets none.</summary>
    public int Errno { get; }

    internal NativeException(string call, string subject, int errno, string? remedy = null)
        : base($"{call} on {subject}: {Interop.Errno.Describe(errno)}{(remedy is null ? "" : $". {remedy}")}")
    {
        Errno = errno;
    }
}
