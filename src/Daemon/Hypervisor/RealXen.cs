using System.Globalization;
using System.Runtime.InteropServices;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Service;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Xen.LibXenEvtchn;
using static XenLoop.Interop.Xen.LibXenGntTab;

namespace XenLoop.Hypervisor;

/// <summary>Real Xen, through its libraries: gntalloc and gntdev for memory, evtchn for events, the kernel's XenStore.</summary>
internal sealed unsafe class RealXen : IHypervisor, IGrantTable, IEventChannels
{
    private const string Capabilities = "/proc/xen/capabilities";
    private const string Features = "/sys/hypervisor/properties/features";
    private const string GntallocLimit = "/sys/module/xen_gntalloc/parameters/limit";

    private const int PROT_READ_WRITE = 1 | 2;

    /// <summary>XENFEAT_dom0 (xen/features.h): bit number among the features Xen offers this domain.</summary>
    private const int XENFEAT_dom0 = 11;

    private Gntalloc? _gntalloc;
    private GntTabHandle? _gnttab;

    private RealXen(bool isControlDomain) => IsControlDomain = isControlDomain;

    public bool IsControlDomain { get; }

    public IGrantTable Grants => this;

    public IEventChannels EventChannels => this;

    /// <exception cref="NoHypervisorException">This machine is not a Xen domain.</exception>
    /// <exception cref="NativeException">It is one, and does not tell which.</exception>
    public static RealXen Open() => new(ReadIsControlDomain());

    public XenStore OpenXenStore() => XenStore.Open();

    public string? FindVifInterface(int vif)
    {
        string wanted = $"device/vif/{vif}";
        foreach (string device in Directory.EnumerateDirectories("/sys/class/net"))
        {
            try
            {
                if (File.ReadAllText($"{device}/device/nodename").AsSpan().TrimEnd().SequenceEqual(wanted))
                {
                    return Path.GetFileName(device);
                }
            }
            catch (IOException)
            {
                // No Xen device, or an interface that went away meanwhile.
            }
        }

        return null;
    }

    public SharedMemory Share(ushort peer, int pages, DeathNotice? onDeath = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(pages);
        Gntalloc gntalloc = _gntalloc ??= Gntalloc.Open();
        uint[] references = new uint[pages];
        byte* address = gntalloc.Allocate(peer, references, out ulong index, out int errno);
        if (errno == ENOSPC && TryRaiseLimit(pages))
        {
            address = gntalloc.Allocate(peer, references, out index, out errno);
        }

        if (address is null)
        {
            throw new NativeException(
                "ioctl(GNTALLOC_ALLOC_GREF)",
                $"{pages} pages for domain {peer}",
                errno,
                errno == ENOSPC ? $"This guest shares as many pages as gntalloc may; write a larger number to {GntallocLimit}" : null);
        }

        Grant grant = new(gntalloc, address, index, references);
        try
        {
            if (onDeath is { } notice)
            {
                grant.SetDeathNotice(notice);
            }

            return grant;
        }
        catch
        {
            grant.Dispose();
            throw;
        }
    }

    public SharedMemory Map(ushort peer, ReadOnlySpan<uint> references, DeathNotice? onDeath = null)
    {
        ArgumentOutOfRangeException.ThrowIfZero(references.Length);
        GntTabHandle gnttab = _gnttab ??= OpenGntTab();
        void* address;
        if (onDeath is { } notice)
        {
            ArgumentOutOfRangeException.ThrowIfNotEqual(references.Length, 1);
            address = xengnttab_map_grant_ref_notify(
                gnttab, peer, references[0], PROT_READ_WRITE, (uint)notice.ByteOffset, notice.Channel.Port);
        }
        else
        {
            fixed (uint* first = references)
            {
                address = xengnttab_map_domain_grant_refs(gnttab, (uint)references.Length, peer, first, PROT_READ_WRITE);
            }
        }

        return address is not null
            ? new Mapping(gnttab, (byte*)address, references.ToArray())
            : throw new NativeException(
                "xengnttab_map_grant_refs", $"{references.Length} pages of domain {peer}", Marshal.GetLastPInvokeError());
    }

    public EventChannel AllocateUnbound(ushort remote)
    {
        EvtchnHandle handle = OpenEvtchn();
        int port = xenevtchn_bind_unbound_port(handle, remote);
        return port >= 0 ? new Channel(handle, (uint)port) : throw Failed("xenevtchn_bind_unbound_port", handle, $"domain {remote}");
    }

    public EventChannel BindInterdomain(ushort remote, uint remotePort)
    {
        EvtchnHandle handle = OpenEvtchn();
        int port = xenevtchn_bind_interdomain(handle, remote, remotePort);
        return port >= 0
            ? new Channel(handle, (uint)port)
            : throw Failed("xenevtchn_bind_interdomain", handle, $"port {remotePort} of domain {remote}");
    }

    public bool IsDomainAlive(ushort domid)
    {
        using EvtchnHandle handle = OpenEvtchn();
        // A port that no domain has: EINVAL of one that is there, ESRCH of one that is not.
        int port = xenevtchn_bind_interdomain(handle, domid, uint.MaxValue);
        return port >= 0 || Marshal.GetLastSystemError() != ESRCH;
    }

    /// <summary>To be called last: mappings, shares and channels are disposed of before.</summary>
    public void Dispose()
    {
        _gnttab?.Dispose();
        _gntalloc?.Dispose();
    }

    private static bool ReadIsControlDomain()
    {
        if (ReadOrNull(Capabilities) is { } capabilities)
        {
            return capabilities.Contains("control_d", StringComparison.Ordinal);
        }

        // xenfs is not mounted. Xen tells its control domain through sysfs, too.
        if (ReadOrNull(Features) is { } features
            && ulong.TryParse(features.AsSpan().Trim(), NumberStyles.HexNumber, CultureInfo.InvariantCulture, out ulong bits))
        {
            return (bits & (1UL << XENFEAT_dom0)) != 0;
        }

        // The kernel has made it in every Xen domain.
        throw Directory.Exists(Path.GetDirectoryName(Capabilities))
            ? new NativeException("open", Capabilities, ENOENT, "xenfs is not mounted: mount -t xenfs xenfs /proc/xen")
            : new NoHypervisorException("this machine is not a Xen domain: there is nothing to do for xenloopd");
    }

    private static string? ReadOrNull(string path)
    {
        try
        {
            return File.ReadAllText(path);
        }
        catch (IOException)
        {
            return null;
        }
        catch (UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>Lets gntalloc share more: its limit counts the pages of the whole guest, and 1024 is its default.</summary>
    private static bool TryRaiseLimit(int pages)
    {
        try
        {
            int limit = int.Parse(File.ReadAllText(GntallocLimit).AsSpan().Trim(), CultureInfo.InvariantCulture);
            int wanted = checked(limit + Math.Max(pages, 1024));
            File.WriteAllText(GntallocLimit, wanted.ToString(CultureInfo.InvariantCulture));
            Log.Info($"{GntallocLimit} raised from {limit} to {wanted} pages");
            return true;
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or FormatException or OverflowException)
        {
            return false;
        }
    }

    private static GntTabHandle OpenGntTab()
    {
        GntTabHandle handle = new(xengnttab_open(IntPtr.Zero, 0));
        return !handle.IsInvalid
            ? handle
            : throw new NativeException("xengnttab_open", "/dev/xen/gntdev", Marshal.GetLastPInvokeError(), "Try modprobe xen-gntdev");
    }

    private static EvtchnHandle OpenEvtchn()
    {
        EvtchnHandle handle = new(xenevtchn_open(IntPtr.Zero, 0));
        return !handle.IsInvalid
            ? handle
            : throw new NativeException("xenevtchn_open", "/dev/xen/evtchn", Marshal.GetLastSystemError(), "Try modprobe xen-evtchn");
    }

    private static NativeException Failed(string call, EvtchnHandle handle, string subject)
    {
        int errno = Marshal.GetLastSystemError();
        handle.Dispose();
        return new NativeException(call, subject, errno);
    }

    private sealed class Grant : SharedMemory
    {
        private readonly Gntalloc _gntalloc;
        private readonly ulong _index;
        private bool _disposed;

        public Grant(Gntalloc gntalloc, byte* address, ulong index, uint[] references)
        {
            _gntalloc = gntalloc;
            _index = index;
            Address = address;
            Length = references.Length * XC_PAGE_SIZE;
            References = references;
        }

        public override void SetDeathNotice(DeathNotice? notice)
        {
            ArgumentOutOfRangeException.ThrowIfNotEqual(References.Length, 1);
            int errno = _gntalloc.SetUnmapNotify(_index, notice?.ByteOffset, notice?.Channel.Port ?? 0);
            if (errno != 0)
            {
                throw new NativeException("ioctl(GNTALLOC_SET_UNMAP_NOTIFY)", $"page {_index}", errno);
            }
        }

        public override void Dispose()
        {
            if (!_disposed)
            {
                _disposed = true;
                _gntalloc.End(Address, _index, References.Length);
            }
        }
    }

    private sealed class Mapping : SharedMemory
    {
        private readonly GntTabHandle _gnttab;
        private bool _disposed;

        public Mapping(GntTabHandle gnttab, byte* address, uint[] references)
        {
            _gnttab = gnttab;
            Address = address;
            Length = references.Length * XC_PAGE_SIZE;
            References = references;
        }

        public override void SetDeathNotice(DeathNotice? notice) => throw new NotSupportedException("of what is granted, not of what is mapped");

        public override void Dispose()
        {
            if (!_disposed)
            {
                _disposed = true;
                // Fails when a suspend has killed the mapping already; there is nothing left to unmap then.
                _ = xengnttab_unmap(_gnttab, Address, (uint)References.Length);
            }
        }
    }

    private sealed class Channel : EventChannel
    {
        private readonly EvtchnHandle _handle;

        public Channel(EvtchnHandle handle, uint port)
        {
            _handle = handle;
            Port = port;
            FileDescriptor = xenevtchn_fd(handle);
        }

        public override void Notify()
        {
            // Fails on a port that a suspend has invalidated; whether the peer lives is not judged here.
            _ = xenevtchn_notify(_handle, Port);
        }

        public override void Acknowledge()
        {
            // The descriptor has this one port.
            if (xenevtchn_pending(_handle) < 0 || xenevtchn_unmask(_handle, Port) < 0)
            {
                throw new NativeException("read", $"event channel {Port}", Marshal.GetLastSystemError());
            }
        }

        public override void Dispose() => _handle.Dispose();
    }
}
