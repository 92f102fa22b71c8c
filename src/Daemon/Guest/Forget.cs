using XenLoop.Interop.Xen;
using XenLoop.Protocol;

namespace XenLoop.Guest;

/// <summary>Removes what a daemon that was killed has left of its offer and its channels. For the package's removal.</summary>
internal static class Forget
{
    /// <exception cref="Interop.NativeException">XenStore cannot be reached.</exception>
    public static void Run(XenStore xenStore) =>
        // Peers see it go, and close their side.
        xenStore.Remove(StorePaths.OwnArea);
}
