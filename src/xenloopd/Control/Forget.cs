using XenLoop.Dom0;
using XenLoop.Guest;
using XenLoop.Hypervisor;
using XenLoop.Interop.Xen;

namespace XenLoop.Control;

/// <summary>
/// Removes from XenStore what a daemon of this domain leaves there: a killed one everything, Dom0's its introductions even in
/// good order, for its successor. For the package's removal, after which there is no successor.
/// </summary>
internal static class Forget
{
    /// <exception cref="IOException">A daemon answers, which would not know of it.</exception>
    /// <exception cref="Interop.NativeException">XenStore cannot be reached.</exception>
    public static void Run(IHypervisor hypervisor)
    {
        ControlSocket.ThrowIfAnswered(ControlSocket.DefaultPath);
        using XenStore xenStore = hypervisor.OpenXenStore();
        if (!hypervisor.IsControlDomain)
        {
            // Peers see it go, and close their side.
            xenStore.Remove(Offer.Directory);
            return;
        }

        // Guests see their introductions go, close their channels in good order, and are back on netfront.
        foreach (ushort domid in Dom0Role.ListGuests(xenStore))
        {
            xenStore.Remove($"/local/domain/{domid}/xenloop");
            Dom0Role.RemoveGhost(xenStore, domid);
        }
    }
}
