using System.Runtime.InteropServices;

namespace XenLoop.Interop.Xen;

/// <summary>libxenevtchn (xenevtchn.h). The calls set errno; it is read on failure only (Marshal.GetLastSystemError),
/// since notify, pending and unmask are on the packet path.</summary>
internal static unsafe partial class LibXenEvtchn
{
    public const string Library = "xenevtchn";

    static LibXenEvtchn() => XenLibraries.Use();

    // xenevtchn_handle *xenevtchn_open(struct xentoollog_logger *logger, unsigned int flags);
    [LibraryImport(Library)]
    public static partial IntPtr xenevtchn_open(IntPtr logger, uint flags);

    // int xenevtchn_close(xenevtchn_handle *xce);
    [LibraryImport(Library)]
    public static partial int xenevtchn_close(IntPtr xce);

    // int xenevtchn_fd(xenevtchn_handle *xce);
    [LibraryImport(Library)]
    public static partial int xenevtchn_fd(EvtchnHandle xce);

    // xenevtchn_port_or_error_t xenevtchn_bind_unbound_port(xenevtchn_handle *xce, uint32_t domid);
    [LibraryImport(Library)]
    public static partial int xenevtchn_bind_unbound_port(EvtchnHandle xce, uint domid);

    // xenevtchn_port_or_error_t xenevtchn_bind_interdomain(xenevtchn_handle *xce, uint32_t domid,
    //                                                      evtchn_port_t remote_port);
    [LibraryImport(Library)]
    public static partial int xenevtchn_bind_interdomain(EvtchnHandle xce, uint domid, uint remote_port);

    // int xenevtchn_notify(xenevtchn_handle *xce, evtchn_port_t port);
    [LibraryImport(Library)]
    public static partial int xenevtchn_notify(EvtchnHandle xce, uint port);

    // xenevtchn_port_or_error_t xenevtchn_pending(xenevtchn_handle *xce);
    [LibraryImport(Library)]
    public static partial int xenevtchn_pending(EvtchnHandle xce);

    // int xenevtchn_unmask(xenevtchn_handle *xce, evtchn_port_t port);
    [LibraryImport(Library)]
    public static partial int xenevtchn_unmask(EvtchnHandle xce, uint port);
}

/// <summary>
/// A descriptor of /dev/xen/evtchn; closing it unbinds its port. It is closed by Dispose only and never by the
/// finalizer: closing a port that was held across a suspend is a BUG in the kernel, so forgetting a handle must be safe.
/// </summary>
internal sealed class EvtchnHandle : SafeHandle
{
    public EvtchnHandle(IntPtr handle)
        : base(IntPtr.Zero, ownsHandle: true)
    {
        SetHandle(handle);
        GC.SuppressFinalize(this);
    }

    public override bool IsInvalid => handle == IntPtr.Zero;

    protected override bool ReleaseHandle() => LibXenEvtchn.xenevtchn_close(handle) == 0;
}
