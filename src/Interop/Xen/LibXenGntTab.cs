using System.Runtime.InteropServices;

namespace XenLoop.Interop.Xen;

/// <summary>libxengnttab (xengnttab.h): maps what others granted. Failures are also logged by the library itself, to stderr.</summary>
internal static unsafe partial class LibXenGntTab
{
    public const string Library = "xengnttab";

    /// <summary>The unit of granting, whatever the kernel's own page size.</summary>
    public const int XC_PAGE_SIZE = 4096;

    static LibXenGntTab() => XenLibraries.Use();

    // xengnttab_handle *xengnttab_open(struct xentoollog_logger *logger, unsigned open_flags);
    [LibraryImport(Library, SetLastError = true)]
    public static partial IntPtr xengnttab_open(IntPtr logger, uint open_flags);

    // int xengnttab_close(xengnttab_handle *xgt);
    [LibraryImport(Library)]
    public static partial int xengnttab_close(IntPtr xgt);

    // void *xengnttab_map_domain_grant_refs(xengnttab_handle *xgt, uint32_t count, uint32_t domid, uint32_t *refs,
    //                                       int prot);
    [LibraryImport(Library, SetLastError = true)]
    public static partial void* xengnttab_map_domain_grant_refs(
        GntTabHandle xgt, uint count, uint domid, uint* refs, int prot);

    // void *xengnttab_map_grant_ref_notify(xengnttab_handle *xgt, uint32_t domid, uint32_t ref, int prot,
    //                                      uint32_t notify_offset, evtchn_port_t notify_port);
    [LibraryImport(Library, SetLastError = true)]
    public static partial void* xengnttab_map_grant_ref_notify(
        GntTabHandle xgt, uint domid, uint @ref, int prot, uint notify_offset, uint notify_port);

    // int xengnttab_unmap(xengnttab_handle *xgt, void *start_address, uint32_t count);
    [LibraryImport(Library, SetLastError = true)]
    public static partial int xengnttab_unmap(GntTabHandle xgt, void* start_address, uint count);
}

/// <summary>The driver that maps other domains' grants (/dev/xen/gntdev). Its mappings must be unmapped first.</summary>
internal sealed class GntTabHandle : SafeHandle
{
    public GntTabHandle(IntPtr handle)
        : base(IntPtr.Zero, ownsHandle: true) => SetHandle(handle);

    public override bool IsInvalid => handle == IntPtr.Zero;

    protected override bool ReleaseHandle() => LibXenGntTab.xengnttab_close(handle) == 0;
}
