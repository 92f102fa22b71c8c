using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

/// <summary>Interface flags of linux/if.h, those that are used here.</summary>
[Flags]
internal enum LinkFlags : uint
{
    None = 0,
    IFF_UP = 0x1,
    IFF_RUNNING = 0x40,
    IFF_NOARP = 0x80,
    IFF_MULTICAST = 0x1000,
    IFF_LOWER_UP = 0x10000,
}

/// <summary>What the kernel says of an interface.</summary>
internal sealed record LinkInfo(int Index, string Name, MacAddress Mac, int Mtu, int QueueLength, LinkFlags Flags, string Qdisc)
{
    /// <summary>Index of what the interface is a port of; 0 for nothing.</summary>
    public int Master { get; init; }

    /// <summary>How large super-packets may be that are handed to the interface.</summary>
    public GsoLimits Gso { get; init; }

    /// <summary>The XDP program in the interface's driver or device; 0 for none. One that runs in the network layer (generic) is none.</summary>
    public uint NativeXdpProgram { get; init; }

    public bool IsUp => (Flags & LinkFlags.IFF_UP) != 0;

    /// <summary>Up, and the cable is plugged in.</summary>
    public bool HasCarrier => (Flags & LinkFlags.IFF_LOWER_UP) != 0;
}

/// <summary>Limits of super-packets (ip-link(8)).</summary>
/// <param name="MaxSize">gso_max_size, bytes.</param>
/// <param name="MaxSegments">gso_max_segs.</param>
/// <param name="IPv4MaxSize">gso_ipv4_max_size, bytes; 0 where the kernel has one for both (before Linux 6.3).</param>
internal readonly record struct GsoLimits(uint MaxSize, uint MaxSegments, uint IPv4MaxSize);

/// <summary>Settings of an interface that change without a message of rtnetlink, as <see cref="LinkInfo"/> has them.</summary>
internal readonly record struct SilentSettings(GsoLimits Gso, uint NativeXdpProgram);

/// <summary>The interfaces of the network namespace of the thread that opened this. Not for two threads at once.</summary>
internal sealed class Links : IDisposable
{
    private const ushort RTM_NEWLINK = 16;
    private const ushort RTM_GETLINK = 18;
    private const ushort RTM_NEWQDISC = 36;
    private const ushort IFLA_ADDRESS = 1;
    private const ushort IFLA_IFNAME = 3;
    private const ushort IFLA_MTU = 4;
    private const ushort IFLA_QDISC = 6;
    private const ushort IFLA_MASTER = 10;
    private const ushort IFLA_TXQLEN = 13;
    private const ushort IFLA_AF_SPEC = 26;
    private const ushort IFLA_GSO_MAX_SEGS = 40;
    private const ushort IFLA_GSO_MAX_SIZE = 41;
    private const ushort IFLA_XDP = 43;
    private const ushort IFLA_GSO_IPV4_MAX_SIZE = 63;
    private const ushort IFLA_XDP_ATTACHED = 2;
    private const ushort IFLA_XDP_PROG_ID = 4;
    private const ushort IFLA_XDP_DRV_PROG_ID = 5;
    private const ushort IFLA_XDP_HW_PROG_ID = 7;
    private const byte XDP_ATTACHED_SKB = 2;
    private const ushort IFLA_INET6_ADDR_GEN_MODE = 8;
    private const byte IN6_ADDR_GEN_MODE_NONE = 1;
    private const ushort AF_INET6 = 10;
    private const ushort TCA_KIND = 1;
    private const uint TC_H_ROOT = 0xFFFFFFFF;

    private readonly NetlinkSocket _socket = new();
    private readonly NetlinkHandler _takeSilent;
    private SilentSettings _silent;

    public Links() => _takeSilent = TakeSilent;

    public void Dispose() => _socket.Dispose();

    /// <summary>The interface of this name, or null when there is none.</summary>
    public LinkInfo? FindLink(string name)
    {
        NetlinkMessage message = _socket.Begin(RTM_GETLINK);
        message.Append(default(ifinfomsg));
        message.Attribute(IFLA_IFNAME, name);
        return GetLink(message, name);
    }

    /// <summary>The interface of this index, or null when there is none.</summary>
    public LinkInfo? FindLink(int index)
    {
        NetlinkMessage message = _socket.Begin(RTM_GETLINK);
        message.Append(new ifinfomsg { ifi_index = index });
        return GetLink(message, $"interface {index}");
    }

    /// <summary>What changes without a notification; the default when there is no such interface. Allocates nothing.</summary>
    public SilentSettings FindSilentSettings(int index)
    {
        NetlinkMessage message = _socket.Begin(RTM_GETLINK);
        message.Append(new ifinfomsg { ifi_index = index });
        _silent = default;
        _ = _socket.Try(message, _takeSilent);
        return _silent;
    }

    public void SetUp(int index) => SetFlags(index, LinkFlags.IFF_UP, LinkFlags.IFF_UP);

    public void SetDown(int index) => SetFlags(index, LinkFlags.None, LinkFlags.IFF_UP);

    /// <summary>Changes the flags in <paramref name="change"/> to what they are in <paramref name="flags"/>.</summary>
    public void SetFlags(int index, LinkFlags flags, LinkFlags change)
    {
        NetlinkMessage message = _socket.Begin(RTM_NEWLINK, NLM_F_ACK);
        message.Append(new ifinfomsg { ifi_index = index, ifi_flags = (uint)flags, ifi_change = (uint)change });
        _socket.Request(message, $"RTM_NEWLINK(flags {change}={flags})", $"interface {index}");
    }

    public void SetMac(int index, MacAddress mac)
    {
        Span<byte> bytes = stackalloc byte[MacAddress.Length];
        mac.CopyTo(bytes);
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_ADDRESS, bytes);
        _socket.Request(message, "RTM_NEWLINK(IFLA_ADDRESS)", $"interface {index}");
    }

    public void SetMtu(int index, int mtu)
    {
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_MTU, mtu);
        _socket.Request(message, "RTM_NEWLINK(IFLA_MTU)", $"interface {index}");
    }

    public void SetQueueLength(int index, int packets)
    {
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_TXQLEN, packets);
        _socket.Request(message, "RTM_NEWLINK(IFLA_TXQLEN)", $"interface {index}");
    }

    /// <exception cref="NativeException">EINVAL: larger than the interface takes.</exception>
    public void SetGsoLimits(int index, in GsoLimits limits)
    {
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_GSO_MAX_SIZE, limits.MaxSize);
        message.Attribute(IFLA_GSO_MAX_SEGS, limits.MaxSegments);
        if (limits.IPv4MaxSize != 0)
        {
            message.Attribute(IFLA_GSO_IPV4_MAX_SIZE, limits.IPv4MaxSize);
        }
        _socket.Request(message, "RTM_NEWLINK(IFLA_GSO_MAX_SIZE)", $"interface {index}");
    }

    /// <summary>What an administrator has taken from the interface, of what it could do (ethtool -K).</summary>
    /// <exception cref="NativeException">There is no such interface.</exception>
    public LinkFeatures FeaturesSwitchedOff(string name) => Ethtool.FeaturesSwitchedOff(_socket.FileDescriptor, name);

    /// <summary>The interface gets no IPv6 link-local address by itself. To be called before it is up. Nothing to do where IPv6 is off.</summary>
    public void DisableAddressGeneration(int index)
    {
        NetlinkMessage message = BeginChangeLink(index);
        int families = message.Begin(IFLA_AF_SPEC);
        int inet6 = message.Begin(AF_INET6);
        message.Attribute(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
        message.End(inet6);
        message.End(families);
        NetlinkError error = _socket.Try(message, null);
        if (error.Errno is not (0 or EAFNOSUPPORT or EINVAL))
        {
            throw error.ToException("RTM_NEWLINK(IFLA_INET6_ADDR_GEN_MODE)", $"interface {index}");
        }
        // EINVAL: the kernel makes no IPv6 configuration for this interface (ipv6.disable=1, or an MTU below 1280).
    }

    /// <summary>Takes the qdisc off a device that queues by itself. False where the kernel does not let it: it works with one, too.</summary>
    public bool TrySetNoQueue(int index)
    {
        NetlinkMessage message = _socket.Begin(RTM_NEWQDISC, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
        message.Append(new tcmsg { tcm_ifindex = index, tcm_parent = TC_H_ROOT });
        message.Attribute(TCA_KIND, "noqueue");
        return _socket.Try(message, null).Errno == 0;
    }

    private NetlinkMessage BeginChangeLink(int index)
    {
        NetlinkMessage message = _socket.Begin(RTM_NEWLINK, NLM_F_ACK);
        message.Append(new ifinfomsg { ifi_index = index });
        return message;
    }

    private LinkInfo? GetLink(in NetlinkMessage message, string subject)
    {
        LinkInfo? link = null;
        NetlinkError error = _socket.Try(message, (type, payload) =>
        {
            if (type == RTM_NEWLINK)
            {
                link = ReadLink(payload);
            }
        });
        return error.Errno switch
        {
            0 => link,
            ENODEV => null,
            _ => throw error.ToException("RTM_GETLINK", subject),
        };
    }

    internal static LinkInfo ReadLink(ReadOnlySpan<byte> payload)
    {
        string name = "";
        string qdisc = "";
        MacAddress mac = default;
        int mtu = 0;
        int queueLength = 0;
        int master = 0;
        uint gsoSize = 0, gsoSegments = 0, gsoIPv4Size = 0, xdp = 0;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out ifinfomsg info);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case IFLA_IFNAME:
                    name = attributes.Text;
                    break;
                case IFLA_MASTER:
                    master = attributes.Value<int>();
                    break;
                case IFLA_GSO_MAX_SIZE:
                    gsoSize = attributes.Value<uint>();
                    break;
                case IFLA_GSO_MAX_SEGS:
                    gsoSegments = attributes.Value<uint>();
                    break;
                case IFLA_GSO_IPV4_MAX_SIZE:
                    gsoIPv4Size = attributes.Value<uint>();
                    break;
                case IFLA_XDP:
                    xdp = ReadNativeXdp(attributes.Data);
                    break;
                case IFLA_ADDRESS when attributes.Data.Length == MacAddress.Length:
                    mac = MacAddress.Read(attributes.Data);
                    break;
                case IFLA_MTU:
                    mtu = attributes.Value<int>();
                    break;
                case IFLA_TXQLEN:
                    queueLength = attributes.Value<int>();
                    break;
                case IFLA_QDISC:
                    qdisc = attributes.Text;
                    break;
                default:
                    break;
            }
        }
        return new LinkInfo(info.ifi_index, name, mac, mtu, queueLength, (LinkFlags)info.ifi_flags, qdisc)
        {
            Master = master,
            Gso = new GsoLimits(gsoSize, gsoSegments, gsoIPv4Size),
            NativeXdpProgram = xdp,
        };
    }

    private void TakeSilent(ushort type, ReadOnlySpan<byte> payload)
    {
        if (type == RTM_NEWLINK)
        {
            _silent = ReadSilent(payload);
        }
    }

    internal static SilentSettings ReadSilent(ReadOnlySpan<byte> payload)
    {
        GsoLimits gso = default;
        uint xdp = 0;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out ifinfomsg _);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case IFLA_GSO_MAX_SIZE:
                    gso = gso with { MaxSize = attributes.Value<uint>() };
                    break;
                case IFLA_GSO_MAX_SEGS:
                    gso = gso with { MaxSegments = attributes.Value<uint>() };
                    break;
                case IFLA_GSO_IPV4_MAX_SIZE:
                    gso = gso with { IPv4MaxSize = attributes.Value<uint>() };
                    break;
                case IFLA_XDP:
                    xdp = ReadNativeXdp(attributes.Data);
                    break;
                default:
                    break;
            }
        }

        return new SilentSettings(gso, xdp);
    }

    private static uint ReadNativeXdp(ReadOnlySpan<byte> data)
    {
        uint program = 0, native = 0;
        byte attached = 0;
        NetlinkAttributes attributes = new(data);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case IFLA_XDP_ATTACHED:
                    attached = attributes.Value<byte>();
                    break;
                case IFLA_XDP_PROG_ID:
                    program = attributes.Value<uint>();
                    break;
                case IFLA_XDP_DRV_PROG_ID or IFLA_XDP_HW_PROG_ID:
                    native = attributes.Value<uint>();
                    break;
                default:
                    break;
            }
        }
        // Several programs at once (XDP_ATTACHED_MULTI) have no common number.
        return native != 0 ? native : attached == XDP_ATTACHED_SKB ? 0 : program;
    }
}
