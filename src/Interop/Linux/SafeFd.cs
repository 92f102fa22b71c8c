using Microsoft.Win32.SafeHandles;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>A file descriptor with one owner, closed when the owner disposes it and at the latest with the owner's death.</summary>
internal sealed class SafeFd : SafeHandleZeroOrMinusOneIsInvalid
{
    /// <summary>Takes over <paramref name="fd"/>: nobody else may close it.</summary>
    public SafeFd(int fd)
        : base(ownsHandle: true)
    {
        SetHandle(fd);
    }

    /// <summary>The number. Valid while the owner keeps this object alive and undisposed.</summary>
    public int Number => (int)handle;

    protected override bool ReleaseHandle() => LibC.close((int)handle) == 0;
}
