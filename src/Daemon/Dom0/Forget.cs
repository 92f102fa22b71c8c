using XenLoop.Interop.Xen;
using XenLoop.Protocol;

namespace XenLoop.Dom0;

/// <summary>
/// Removes the introductions, which a daemon leaves for its successor even in good order. For the package's removal, after which
/// there is no successor.
/// </summary>
internal static class Forget
{
    /// <exception cref="Interop.NativeException">XenStore cannot be reached.</exception>
    public static void Run(XenStore xenStore)
    {
        // Guests see their introductions go, close their channels in good order, and are back on netfront.
        foreach (ushort domid in GuestDirectory.List(xenStore))
        {
            xenStore.Remove(StorePaths.Introductions(domid));
            GuestDirectory.RemoveGhost(xenStore, domid);
        }
    }
}
