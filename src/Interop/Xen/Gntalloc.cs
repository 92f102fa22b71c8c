using System.Runtime.InteropServices;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Xen;

/// <summary>
/// /dev/xen/gntalloc (xen/gntalloc.h), the driver that grants this domain's pages. Not by libxengnttab: its xengntshr forgets the
/// driver's number of the pages as soon as they are mapped, and what the kernel is to do when they end could never be changed again.
/// </summary>
internal sealed unsafe class Gntalloc : SafeHandle
{
    public const string Device = "/dev/xen/gntalloc";

    private const int IOCTL_GNTALLOC_ALLOC_GREF = 0x184705;
    private const int IOCTL_GNTALLOC_DEALLOC_GREF = 0x104706;
    private const int IOCTL_GNTALLOC_SET_UNMAP_NOTIFY = 0x104707;

    private const ushort GNTALLOC_FLAG_WRITABLE = 1;
    private const uint UNMAP_NOTIFY_CLEAR_BYTE = 1;
    private const uint UNMAP_NOTIFY_SEND_EVENT = 2;

    private Gntalloc(int fd)
        : base(-1, ownsHandle: true) => SetHandle(fd);

    public override bool IsInvalid => handle < 0;

    private int Number => (int)handle;

    /// <exception cref="NativeException">The driver is missing, or this is not root.</exception>
    public static Gntalloc Open()
    {
        int fd;
        fixed (byte* path = "/dev/xen/gntalloc"u8)
        {
            fd = LibC.open(path, LibC.O_RDWR | LibC.O_CLOEXEC, default);
        }

        return fd >= 0 ? new Gntalloc(fd) : throw new NativeException("open", Device, LibC.errno, "Try modprobe xen-gntalloc");
    }

    /// <summary>Grants new pages, zeroed, to a domain, and maps them.</summary>
    /// <param name="domid">Who may map them.</param>
    /// <param name="references">Gets their references; as many pages as there is room.</param>
    /// <param name="index">The driver's number of the first.</param>
    /// <param name="errno">Of the failure; ENOSPC when the driver grants as many as it may.</param>
    /// <returns>Null on failure.</returns>
    public byte* Allocate(ushort domid, Span<uint> references, out ulong index, out int errno)
    {
        byte* buffer = stackalloc byte[sizeof(ioctl_gntalloc_alloc_gref) + (references.Length * sizeof(uint))];
        ioctl_gntalloc_alloc_gref* request = (ioctl_gntalloc_alloc_gref*)buffer;
        *request = new() { domid = domid, flags = GNTALLOC_FLAG_WRITABLE, count = (uint)references.Length };
        index = 0;
        errno = 0;
        if (LibC.ioctl(Number, IOCTL_GNTALLOC_ALLOC_GREF, request) < 0)
        {
            errno = LibC.errno;
            return null;
        }

        index = request->index;
        new ReadOnlySpan<uint>(&request->gref_ids, references.Length).CopyTo(references);
        size_t length = (size_t)((ulong)references.Length * LibXenGntTab.XC_PAGE_SIZE);
        void* address = LibC.mmap(null, length, LibC.PROT_READ | LibC.PROT_WRITE, LibC.MAP_SHARED, Number, (long)index);
        if (address == LibC.MAP_FAILED)
        {
            errno = LibC.errno;
            Deallocate(index, references.Length);
            return null;
        }

        return (byte*)address;
    }

    /// <summary>What the kernel does when the page ends: clears a byte of it and sends an event, or nothing.</summary>
    /// <param name="index">The driver's number of the page.</param>
    /// <param name="offset">The byte; null for nothing.</param>
    /// <param name="port">Of this process.</param>
    /// <returns>0, or errno.</returns>
    public int SetUnmapNotify(ulong index, int? offset, uint port)
    {
        ioctl_gntalloc_unmap_notify request = new()
        {
            index = index + (ulong)(offset ?? 0),
            action = offset is null ? 0 : UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT,
            event_channel_port = port,
        };
        return LibC.ioctl(Number, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &request) < 0 ? LibC.errno : 0;
    }

    /// <summary>Unmaps the pages and ends access to them: those that the other domain has mapped, the kernel frees when it lets go.</summary>
    public void End(byte* address, ulong index, int pages)
    {
        _ = LibC.munmap(address, (size_t)((ulong)pages * LibXenGntTab.XC_PAGE_SIZE));
        Deallocate(index, pages);
    }

    protected override bool ReleaseHandle() => LibC.close((int)handle) == 0;

    private void Deallocate(ulong index, int pages)
    {
        ioctl_gntalloc_dealloc_gref request = new() { index = index, count = (uint)pages };
        _ = LibC.ioctl(Number, IOCTL_GNTALLOC_DEALLOC_GREF, &request);
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct ioctl_gntalloc_alloc_gref
    {
        public ushort domid;
        public ushort flags;
        public uint count;
        public ulong index;
        /// <summary>The first; the others follow.</summary>
        public uint gref_ids;
        private readonly uint _padding;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct ioctl_gntalloc_dealloc_gref
    {
        public ulong index;
        public uint count;
        private readonly uint _padding;
    }

    [StructLayout(LayoutKind.Sequential)]
    internal struct ioctl_gntalloc_unmap_notify
    {
        public ulong index;
        public uint action;
        public uint event_channel_port;
    }
}
