using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

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
    public bool IsUp => (Flags & LinkFlags.IFF_UP) != 0;

    /// <summary>Up, and the cable is plugged in.</summary>
    public bool HasCarrier => (Flags & LinkFlags.IFF_LOWER_UP) != 0;
}

/// <summary>What an interface is a port of.</summary>
/// <param name="Name">Of the master: a bridge, or another switch (Open vSwitch has one for all its bridges).</param>
/// <param name="IsBridge">A Linux bridge.</param>
/// <param name="Pvid">The VLAN of the port's untagged frames on a Linux bridge; 0 where the kernel knows no VLANs.</param>
internal readonly record struct LinkMaster(string Name, bool IsBridge, int Pvid);

/// <summary>Where a traffic-control filter of a clsact qdisc looks at packets. The values are TC_H_MAKE(TC_H_CLSACT, minor).</summary>
internal enum TcHook : uint
{
    /// <summary>What the interface received, before the network layer sees it.</summary>
    Ingress = 0xFFFFFFF2,

    /// <summary>What the interface is about to transmit, before its qdisc.</summary>
    Egress = 0xFFFFFFF3,
}

/// <summary>A traffic-control filter as the kernel lists it.</summary>
/// <param name="Kind">The classifier, as <c>bpf</c>.</param>
/// <param name="Priority">Filters of lower numbers run first.</param>
/// <param name="Handle">Tells filters of one priority apart.</param>
/// <param name="Name">Of a cls_bpf filter: the name it was added with; else empty.</param>
internal readonly record struct TcFilter(string Kind, ushort Priority, uint Handle, string Name);

/// <summary>
/// The kernel's configuration of interfaces and traffic control (rtnetlink(7)), the few messages needed here.
/// Each method is one request and its acknowledgement. Works on the network namespace of the thread that
/// opened it. Not for two threads at once.
/// </summary>
internal sealed unsafe class RtNetlink : IDisposable
{
    private const int EEXIST = 17;
    private const int ENODEV = 19;
    private const int EINVAL = 22;
    private const int ENOENT = 2;
    private const int EPERM = 1;
    private const int EINTR = 4;
    private const int EOPNOTSUPP = 95;
    private const int EAFNOSUPPORT = 97;

    private const int NETLINK_ROUTE = 0;
    private const int NETLINK_CAP_ACK = 10;
    private const int NETLINK_EXT_ACK = 11;

    private const ushort NLM_F_REQUEST = 0x1;
    private const ushort NLM_F_ACK = 0x4;
    private const ushort NLM_F_DUMP = 0x300;
    private const ushort NLM_F_REPLACE = 0x100;
    private const ushort NLM_F_EXCL = 0x200;
    private const ushort NLM_F_CREATE = 0x400;
    private const ushort NLM_F_ACK_TLVS = 0x200;

    private const ushort NLMSG_ERROR = 2;
    private const ushort NLMSG_DONE = 3;
    private const ushort NLMSGERR_ATTR_MSG = 1;

    private const ushort RTM_NEWLINK = 16;
    private const ushort RTM_GETLINK = 18;
    private const ushort RTM_NEWQDISC = 36;
    private const ushort RTM_DELQDISC = 37;
    private const ushort RTM_GETQDISC = 38;
    private const ushort RTM_NEWTFILTER = 44;
    private const ushort RTM_DELTFILTER = 45;
    private const ushort RTM_GETTFILTER = 46;

    private const ushort IFLA_ADDRESS = 1;
    private const ushort IFLA_IFNAME = 3;
    private const ushort IFLA_MTU = 4;
    private const ushort IFLA_QDISC = 6;
    private const ushort IFLA_MASTER = 10;
    private const ushort IFLA_TXQLEN = 13;
    private const ushort IFLA_LINKINFO = 18;
    private const ushort IFLA_AF_SPEC = 26;
    private const ushort IFLA_EXT_MASK = 29;
    private const ushort IFLA_INFO_KIND = 1;
    private const ushort IFLA_BRIDGE_VLAN_INFO = 2;
    private const ushort BRIDGE_VLAN_INFO_PVID = 1 << 1;
    private const uint RTEXT_FILTER_BRVLAN = 1 << 1;
    private const byte AF_BRIDGE = 7;
    private const ushort IFLA_INET6_ADDR_GEN_MODE = 8;
    private const byte IN6_ADDR_GEN_MODE_NONE = 1;
    private const ushort AF_INET6 = 10;

    private const ushort TCA_KIND = 1;
    private const ushort TCA_OPTIONS = 2;
    private const ushort TCA_BPF_ACT = 1;
    private const ushort TCA_BPF_FD = 6;
    private const ushort TCA_BPF_NAME = 7;
    private const ushort TCA_BPF_FLAGS = 8;
    private const uint TCA_BPF_FLAG_ACT_DIRECT = 1;
    private const ushort TCA_ACT_KIND = 1;
    private const ushort TCA_ACT_OPTIONS = 2;
    private const ushort TCA_MIRRED_PARMS = 2;
    private const int TCA_INGRESS_REDIR = 3;
    private const int TC_ACT_STOLEN = 4;

    private const uint TC_H_ROOT = 0xFFFFFFFF;
    private const uint TC_H_CLSACT = 0xFFFFFFF1;
    private const uint ClsactHandle = 0xFFFF0000;
    private const ushort ETH_P_ALL = 0x0003;

    private const string NeedsSchIngress = "The kernel needs the module sch_ingress (modprobe sch_ingress)";
    private const string NeedsClsBpf = "The kernel needs the module cls_bpf (modprobe cls_bpf)";

    private readonly SafeFd _fd;
    private readonly byte[] _request = new byte[1024];
    // A dump arrives in pieces of at most 32 KiB.
    private readonly byte[] _answer = new byte[32768];
    private uint _sequence;

    private delegate void MessageHandler(ushort type, ReadOnlySpan<byte> payload);

    /// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
    public RtNetlink()
    {
        int fd = LibC.socket(LibC.AF_NETLINK, LibC.SOCK_RAW | LibC.SOCK_CLOEXEC, NETLINK_ROUTE);
        if (fd < 0)
        {
            throw new NativeException("socket", "rtnetlink", LibC.errno, "AF_NETLINK must be allowed (RestrictAddressFamilies=)");
        }
        _fd = new SafeFd(fd);
        // Both only improve error messages: kernels that lack them (before 4.12) may say no.
        int one = 1;
        _ = LibC.setsockopt(fd, LibC.SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(int));
        _ = LibC.setsockopt(fd, LibC.SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(int));
    }

    public void Dispose() => _fd.Dispose();

    /// <summary>The interface of this name, or null when there is none.</summary>
    public LinkInfo? FindLink(string name)
    {
        NetlinkMessage message = new(_request, RTM_GETLINK, NLM_F_REQUEST);
        message.Append(default(ifinfomsg));
        message.Attribute(IFLA_IFNAME, name);
        return GetLink(message, name);
    }

    /// <summary>The interface of this index, or null when there is none.</summary>
    public LinkInfo? FindLink(int index)
    {
        NetlinkMessage message = new(_request, RTM_GETLINK, NLM_F_REQUEST);
        message.Append(new ifinfomsg { ifi_index = index });
        return GetLink(message, Describe(index));
    }

    /// <summary>Every interface that is a port of another, by name.</summary>
    public Dictionary<string, LinkMaster> ListMasters()
    {
        Dictionary<int, (string Name, bool IsBridge)> links = [];
        List<(int Index, string Name, int Master)> ports = [];
        NetlinkMessage message = new(_request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP);
        message.Append(default(ifinfomsg));
        RequestAll(message, "RTM_GETLINK", "all interfaces", (type, payload) =>
        {
            if (type == RTM_NEWLINK)
            {
                ReadMaster(payload, links, ports);
            }
        });

        Dictionary<int, int> pvids = [];
        message = new(_request, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP);
        message.Append(new ifinfomsg { ifi_family = AF_BRIDGE });
        message.Attribute(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN);
        RequestAll(message, "RTM_GETLINK(AF_BRIDGE)", "all bridges", (type, payload) =>
        {
            if (type == RTM_NEWLINK && ReadPvid(payload, out int index, out int pvid))
            {
                pvids[index] = pvid;
            }
        });

        Dictionary<string, LinkMaster> masters = [];
        foreach ((int index, string name, int master) in ports)
        {
            // A master in another namespace has a number that means nothing here.
            if (links.TryGetValue(master, out (string Name, bool IsBridge) link))
            {
                masters[name] = new LinkMaster(link.Name, link.IsBridge, pvids.GetValueOrDefault(index));
            }
        }
        return masters;
    }

    public void SetUp(int index) => SetFlags(index, LinkFlags.IFF_UP, LinkFlags.IFF_UP);

    public void SetDown(int index) => SetFlags(index, LinkFlags.None, LinkFlags.IFF_UP);

    /// <summary>Changes the flags in <paramref name="change"/> to what they are in <paramref name="flags"/>.</summary>
    public void SetFlags(int index, LinkFlags flags, LinkFlags change)
    {
        NetlinkMessage message = new(_request, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK);
        message.Append(new ifinfomsg { ifi_index = index, ifi_flags = (uint)flags, ifi_change = (uint)change });
        Request(message, $"RTM_NEWLINK(flags {change}={flags})", Describe(index));
    }

    public void SetMac(int index, MacAddress mac)
    {
        Span<byte> bytes = stackalloc byte[MacAddress.Length];
        mac.CopyTo(bytes);
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_ADDRESS, bytes);
        Request(message, "RTM_NEWLINK(IFLA_ADDRESS)", Describe(index));
    }

    public void SetMtu(int index, int mtu)
    {
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_MTU, mtu);
        Request(message, "RTM_NEWLINK(IFLA_MTU)", Describe(index));
    }

    public void SetQueueLength(int index, int packets)
    {
        NetlinkMessage message = BeginChangeLink(index);
        message.Attribute(IFLA_TXQLEN, packets);
        Request(message, "RTM_NEWLINK(IFLA_TXQLEN)", Describe(index));
    }

    /// <summary>The interface gets no IPv6 link-local address by itself. To be called before it is up. Nothing to do where IPv6 is off.</summary>
    public void DisableAddressGeneration(int index)
    {
        NetlinkMessage message = BeginChangeLink(index);
        int families = message.Begin(IFLA_AF_SPEC);
        int inet6 = message.Begin(AF_INET6);
        message.Attribute(IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE);
        message.End(inet6);
        message.End(families);
        Error error = TryRequest(message, null);
        if (error.Errno is not (0 or EAFNOSUPPORT or EINVAL))
        {
            throw error.ToException("RTM_NEWLINK(IFLA_INET6_ADDR_GEN_MODE)", Describe(index));
        }
        // EINVAL: the kernel makes no IPv6 configuration for this interface (ipv6.disable=1, or an MTU below 1280).
    }

    /// <summary>Takes the qdisc off a device that queues by itself. False where the kernel does not let it: it works with one, too.</summary>
    public bool TrySetNoQueue(int index)
    {
        NetlinkMessage message = new(_request, RTM_NEWQDISC, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE);
        message.Append(new tcmsg { tcm_ifindex = index, tcm_parent = TC_H_ROOT });
        message.Attribute(TCA_KIND, "noqueue");
        return TryRequest(message, null).Errno == 0;
    }

    /// <summary>Adds the qdisc whose only purpose is to hold filters at ingress and egress.</summary>
    /// <returns>False when it is there already.</returns>
    public bool AddClsact(int index)
    {
        NetlinkMessage message = BeginQdisc(RTM_NEWQDISC, index, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        Error error = TryRequest(message, null);
        if (error.Errno == EEXIST)
        {
            if (!HasClsact(index))
            {
                throw new NativeException("RTM_NEWQDISC(clsact)", Describe(index), EEXIST,
                    "Another qdisc stands in its place: replace it by clsact, which does the same and has an egress side as well (tc qdisc del dev ... ingress)");
            }
            return false;
        }
        if (error.Errno != 0)
        {
            throw error.ToException("RTM_NEWQDISC(clsact)", Describe(index), error.Errno is ENOENT or EOPNOTSUPP ? NeedsSchIngress : null);
        }
        return true;
    }

    public bool HasClsact(int index)
    {
        bool found = false;
        NetlinkMessage message = new(_request, RTM_GETQDISC, NLM_F_REQUEST | NLM_F_DUMP);
        message.Append(new tcmsg { tcm_ifindex = index });
        RequestAll(message, "RTM_GETQDISC", Describe(index), (type, payload) =>
        {
            tcmsg qdisc = MemoryMarshal.Read<tcmsg>(payload);
            // Older kernels list the qdiscs of every interface.
            if (type != RTM_NEWQDISC || qdisc.tcm_ifindex != index || qdisc.tcm_parent != TC_H_CLSACT)
            {
                return;
            }
            NetlinkAttributes attributes = new(payload[Unsafe.SizeOf<tcmsg>()..]);
            while (attributes.MoveNext())
            {
                found |= attributes.Type == TCA_KIND && attributes.Text == "clsact";
            }
        });
        return found;
    }

    /// <summary>Removes clsact with all filters, whoever added them. Nothing to do when it is not there.</summary>
    public void DeleteClsact(int index)
    {
        NetlinkMessage message = BeginQdisc(RTM_DELQDISC, index, NLM_F_ACK);
        Error error = TryRequest(message, null);
        if (error.Errno is not (0 or ENOENT or EINVAL or ENODEV))
        {
            throw error.ToException("RTM_DELQDISC(clsact)", Describe(index));
        }
    }

    /// <summary>Adds or replaces a cls_bpf filter in direct-action mode: the program's return value is the verdict.</summary>
    /// <param name="index">Of the interface; it has clsact.</param>
    /// <param name="hook">Which side of clsact.</param>
    /// <param name="priority">Filters of lower priority numbers run first.</param>
    /// <param name="handle">Together with the priority tells one filter from all others.</param>
    /// <param name="program">Descriptor of a BPF_PROG_TYPE_SCHED_CLS program; the filter keeps the program alive.</param>
    /// <param name="name">Shown by <c>tc filter show</c>.</param>
    /// <param name="replace">Replace a filter with the same priority and handle, if there is one; else that is an error.</param>
    public void AddBpfFilter(int index, TcHook hook, ushort priority, uint handle, int program, string name, bool replace = false)
    {
        NetlinkMessage message = BeginFilter(RTM_NEWTFILTER, index, hook, priority, handle, (ushort)(NLM_F_ACK | NLM_F_CREATE | (replace ? 0 : NLM_F_EXCL)));
        message.Attribute(TCA_KIND, "bpf");
        int options = message.Begin(TCA_OPTIONS);
        message.Attribute(TCA_BPF_FD, program);
        message.Attribute(TCA_BPF_NAME, name);
        message.Attribute(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        message.End(options);
        AddFilter(message, index, NeedsClsBpf);
    }

    /// <summary>Adds a cls_bpf filter whose program decides which packets go to the ingress of another interface (act_mirred).</summary>
    /// <param name="index">Of the interface; it has clsact.</param>
    /// <param name="hook">Which side of clsact.</param>
    /// <param name="priority">Filters of lower priority numbers run first.</param>
    /// <param name="handle">Together with the priority tells one filter from all others.</param>
    /// <param name="program">Descriptor of a BPF_PROG_TYPE_SCHED_CLS program that returns -1 for a match.</param>
    /// <param name="name">Shown by <c>tc filter show</c>.</param>
    /// <param name="target">Index of the interface that shall have received the packets.</param>
    public void AddIngressRedirect(int index, TcHook hook, ushort priority, uint handle, int program, string name, int target)
    {
        NetlinkMessage message = BeginFilter(RTM_NEWTFILTER, index, hook, priority, handle, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        message.Attribute(TCA_KIND, "bpf");
        int options = message.Begin(TCA_OPTIONS);
        int actions = message.Begin(TCA_BPF_ACT);
        int first = message.Begin(1);
        message.Attribute(TCA_ACT_KIND, "mirred");
        int mirred = message.Begin(TCA_ACT_OPTIONS);
        message.Attribute(TCA_MIRRED_PARMS, new tc_mirred { action = TC_ACT_STOLEN, eaction = TCA_INGRESS_REDIR, ifindex = (uint)target });
        message.End(mirred);
        message.End(first);
        message.End(actions);
        message.Attribute(TCA_BPF_FD, program);
        message.Attribute(TCA_BPF_NAME, name);
        message.End(options);
        AddFilter(message, index, "The kernel needs the modules cls_bpf and act_mirred (modprobe cls_bpf act_mirred)");
    }

    /// <summary>Removes one filter. False when it is not there.</summary>
    public bool DeleteFilter(int index, TcHook hook, ushort priority, uint handle)
    {
        NetlinkMessage message = BeginFilter(RTM_DELTFILTER, index, hook, priority, handle, NLM_F_ACK);
        message.Attribute(TCA_KIND, "bpf");
        Error error = TryRequest(message, null);
        return error.Errno switch
        {
            0 => true,
            ENOENT or ENODEV or EINVAL => false,
            _ => throw error.ToException("RTM_DELTFILTER", Describe(index)),
        };
    }

    /// <summary>All filters at one side of clsact, everybody's, in the order in which they run. Empty where there is no clsact.</summary>
    public List<TcFilter> ListFilters(int index, TcHook hook)
    {
        List<TcFilter> filters = [];
        if (!HasClsact(index))
        {
            return filters;
        }
        NetlinkMessage message = BeginFilter(RTM_GETTFILTER, index, hook, 0, 0, NLM_F_DUMP);
        RequestAll(message, "RTM_GETTFILTER", Describe(index), (type, payload) =>
        {
            tcmsg filter = MemoryMarshal.Read<tcmsg>(payload);
            // Each chain of filters is announced by an entry of its own, with handle 0.
            if (type != RTM_NEWTFILTER || filter.tcm_ifindex != index || filter.tcm_handle == 0)
            {
                return;
            }
            string kind = "";
            string name = "";
            NetlinkAttributes attributes = new(payload[Unsafe.SizeOf<tcmsg>()..]);
            while (attributes.MoveNext())
            {
                if (attributes.Type == TCA_KIND)
                {
                    kind = attributes.Text;
                }
                else if (attributes.Type == TCA_OPTIONS && kind == "bpf")
                {
                    NetlinkAttributes options = new(attributes.Data);
                    while (options.MoveNext())
                    {
                        name = options.Type == TCA_BPF_NAME ? options.Text : name;
                    }
                }
            }
            filters.Add(new TcFilter(kind, (ushort)(filter.tcm_info >> 16), filter.tcm_handle, name));
        });
        return filters;
    }

    private NetlinkMessage BeginChangeLink(int index)
    {
        NetlinkMessage message = new(_request, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK);
        message.Append(new ifinfomsg { ifi_index = index });
        return message;
    }

    private NetlinkMessage BeginQdisc(ushort type, int index, ushort flags)
    {
        NetlinkMessage message = new(_request, type, (ushort)(NLM_F_REQUEST | flags));
        message.Append(new tcmsg { tcm_ifindex = index, tcm_parent = TC_H_CLSACT, tcm_handle = ClsactHandle });
        message.Attribute(TCA_KIND, "clsact");
        return message;
    }

    private NetlinkMessage BeginFilter(ushort type, int index, TcHook hook, ushort priority, uint handle, ushort flags)
    {
        NetlinkMessage message = new(_request, type, (ushort)(NLM_F_REQUEST | flags));
        uint protocol = priority == 0 ? 0u : BinaryPrimitives.ReverseEndianness(ETH_P_ALL);
        message.Append(new tcmsg { tcm_ifindex = index, tcm_parent = (uint)hook, tcm_handle = handle, tcm_info = ((uint)priority << 16) | protocol });
        return message;
    }

    private void AddFilter(in NetlinkMessage message, int index, string remedy)
    {
        Error error = TryRequest(message, null);
        if (error.Errno != 0)
        {
            throw error.ToException("RTM_NEWTFILTER(bpf)", Describe(index), error.Errno is ENOENT or EOPNOTSUPP ? remedy : null);
        }
    }

    private LinkInfo? GetLink(in NetlinkMessage message, string subject)
    {
        LinkInfo? link = null;
        Error error = TryRequest(message, (type, payload) =>
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

    private static LinkInfo ReadLink(ReadOnlySpan<byte> payload)
    {
        ifinfomsg info = MemoryMarshal.Read<ifinfomsg>(payload);
        string name = "";
        string qdisc = "";
        MacAddress mac = default;
        int mtu = 0;
        int queueLength = 0;
        NetlinkAttributes attributes = new(payload[Unsafe.SizeOf<ifinfomsg>()..]);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case IFLA_IFNAME:
                    name = attributes.Text;
                    break;
                case IFLA_ADDRESS when attributes.Data.Length == MacAddress.Length:
                    mac = MacAddress.Read(attributes.Data);
                    break;
                case IFLA_MTU:
                    mtu = BinaryPrimitives.ReadInt32LittleEndian(attributes.Data);
                    break;
                case IFLA_TXQLEN:
                    queueLength = BinaryPrimitives.ReadInt32LittleEndian(attributes.Data);
                    break;
                case IFLA_QDISC:
                    qdisc = attributes.Text;
                    break;
                default:
                    break;
            }
        }
        return new LinkInfo(info.ifi_index, name, mac, mtu, queueLength, (LinkFlags)info.ifi_flags, qdisc);
    }

    private static void ReadMaster(
        ReadOnlySpan<byte> payload, Dictionary<int, (string Name, bool IsBridge)> links, List<(int Index, string Name, int Master)> ports)
    {
        int index = MemoryMarshal.Read<ifinfomsg>(payload).ifi_index;
        string name = "";
        int master = 0;
        bool isBridge = false;
        NetlinkAttributes attributes = new(payload[Unsafe.SizeOf<ifinfomsg>()..]);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case IFLA_IFNAME:
                    name = attributes.Text;
                    break;
                case IFLA_MASTER:
                    master = BinaryPrimitives.ReadInt32LittleEndian(attributes.Data);
                    break;
                case IFLA_LINKINFO:
                    NetlinkAttributes information = new(attributes.Data);
                    while (information.MoveNext())
                    {
                        isBridge |= information.Type == IFLA_INFO_KIND && information.Text == "bridge";
                    }
                    break;
                default:
                    break;
            }
        }
        links[index] = (name, isBridge);
        if (master != 0)
        {
            ports.Add((index, name, master));
        }
    }

    private static bool ReadPvid(ReadOnlySpan<byte> payload, out int index, out int pvid)
    {
        index = MemoryMarshal.Read<ifinfomsg>(payload).ifi_index;
        NetlinkAttributes attributes = new(payload[Unsafe.SizeOf<ifinfomsg>()..]);
        while (attributes.MoveNext())
        {
            if (attributes.Type != IFLA_AF_SPEC)
            {
                continue;
            }
            // struct bridge_vlan_info: flags, then the VLAN's number.
            NetlinkAttributes vlans = new(attributes.Data);
            while (vlans.MoveNext())
            {
                if (vlans.Type == IFLA_BRIDGE_VLAN_INFO
                    && (BinaryPrimitives.ReadUInt16LittleEndian(vlans.Data) & BRIDGE_VLAN_INFO_PVID) != 0)
                {
                    pvid = BinaryPrimitives.ReadUInt16LittleEndian(vlans.Data[2..]);
                    return true;
                }
            }
        }
        pvid = 0;
        return false;
    }

    private static string Describe(int index) => $"interface {index}";

    private void Request(in NetlinkMessage message, string call, string subject)
    {
        Error error = TryRequest(message, null);
        if (error.Errno != 0)
        {
            throw error.ToException(call, subject);
        }
    }

    private void RequestAll(in NetlinkMessage message, string call, string subject, MessageHandler handler)
    {
        Error error = TryRequest(message, handler);
        if (error.Errno != 0)
        {
            throw error.ToException(call, subject);
        }
    }

    /// <summary>Sends and reads until the kernel has acknowledged, refused or answered. The kernel answers within the call, so nothing waits here.</summary>
    private Error TryRequest(in NetlinkMessage message, MessageHandler? handler)
    {
        uint sequence = ++_sequence;
        ReadOnlySpan<byte> request = message.Finish(sequence);
        nlmsghdr asked = MemoryMarshal.Read<nlmsghdr>(request);
        bool oneAnswer = (asked.nlmsg_flags & (NLM_F_ACK | NLM_F_DUMP)) == 0;
        fixed (byte* pointer = request)
        {
            if (LibC.send(_fd.Number, pointer, request.Length, 0) < 0)
            {
                return new Error(LibC.errno, null);
            }
        }
        while (true)
        {
            int received;
            fixed (byte* pointer = _answer)
            {
                received = (int)LibC.recv(_fd.Number, pointer, _answer.Length, 0);
            }
            if (received < 0)
            {
                int errno = LibC.errno;
                if (errno == EINTR)
                {
                    continue;
                }
                return new Error(errno, null);
            }
            ReadOnlySpan<byte> rest = _answer.AsSpan(0, received);
            while (rest.Length >= Unsafe.SizeOf<nlmsghdr>())
            {
                nlmsghdr header = MemoryMarshal.Read<nlmsghdr>(rest);
                int length = (int)header.nlmsg_len;
                if (length < Unsafe.SizeOf<nlmsghdr>() || length > rest.Length)
                {
                    break;
                }
                ReadOnlySpan<byte> payload = rest[Unsafe.SizeOf<nlmsghdr>()..length];
                rest = rest[Math.Min(NetlinkMessage.Align(length), rest.Length)..];
                // An answer to an earlier request that ended early.
                if (header.nlmsg_seq != sequence)
                {
                    continue;
                }
                switch (header.nlmsg_type)
                {
                    case NLMSG_ERROR:
                        return Error.Read(payload, header.nlmsg_flags);
                    case NLMSG_DONE:
                        return default;
                    default:
                        handler?.Invoke(header.nlmsg_type, payload);
                        if (oneAnswer)
                        {
                            return default;
                        }
                        break;
                }
            }
        }
    }

    /// <summary>What the kernel answered: errno (0 is success) and, if it gave one, its reason in words.</summary>
    private readonly record struct Error(int Errno, string? Reason)
    {
        public static Error Read(ReadOnlySpan<byte> payload, ushort flags)
        {
            int errno = -BinaryPrimitives.ReadInt32LittleEndian(payload);
            string? reason = null;
            if ((flags & NLM_F_ACK_TLVS) != 0)
            {
                const ushort NLM_F_CAPPED = 0x100;
                nlmsghdr request = MemoryMarshal.Read<nlmsghdr>(payload[sizeof(int)..]);
                int echoed = (flags & NLM_F_CAPPED) != 0 ? Unsafe.SizeOf<nlmsghdr>() : NetlinkMessage.Align((int)request.nlmsg_len);
                NetlinkAttributes attributes = new(payload[Math.Min(sizeof(int) + echoed, payload.Length)..]);
                while (attributes.MoveNext())
                {
                    reason = attributes.Type == NLMSGERR_ATTR_MSG ? attributes.Text : reason;
                }
            }
            return new Error(errno, reason);
        }

        public NativeException ToException(string call, string subject, string? remedy = null)
        {
            remedy ??= Errno == EPERM ? "CAP_NET_ADMIN is needed" : null;
            string? said = Reason is null ? remedy : remedy is null ? $"The kernel says: {Reason}" : $"The kernel says: {Reason}. {remedy}";
            return new NativeException(call, subject, Errno, said);
        }
    }

    /// <summary>struct tc_mirred of linux/tc_act/tc_mirred.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct tc_mirred
    {
        public uint index;
        public uint capab;
        public int action;
        public int refcnt;
        public int bindcnt;
        public int eaction;
        public uint ifindex;
    }
}
