using System.Runtime.InteropServices;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>An interface that is a port of a switch, and how the switch treats it.</summary>
internal sealed class SwitchPort
{
    public required int Index { get; init; }

    /// <summary>The switch: a bridge, or another (Open vSwitch has one interface for all its bridges).</summary>
    public required string Master { get; init; }

    public required int MasterIndex { get; init; }

    /// <summary>The switch is a Linux bridge. What follows is of such a one alone.</summary>
    public bool IsBridge { get; init; }

    public bool IsUp { get; init; } = true;

    /// <summary>Bytes of the longest packet that it takes from the switch, unless that is a super-packet.</summary>
    public int Mtu { get; init; } = 1500;

    /// <summary>The VLAN of the port's untagged frames; 0 where there is none, or the kernel knows no VLANs.</summary>
    public int Pvid { get; init; }

    /// <summary>The bridge looks at VLANs.</summary>
    public bool FiltersVlans { get; init; }

    /// <summary>The port neither blocks nor only learns.</summary>
    public bool Forwards { get; init; } = true;

    /// <summary>Frames between two such ports are dropped.</summary>
    public bool IsIsolated { get; init; }

    /// <summary>Only frames from addresses that the bridge knows to be here are taken.</summary>
    public bool IsLocked { get; init; }

    /// <summary>The port gets frames for addresses that the bridge has not learned.</summary>
    public bool Floods { get; init; } = true;

    /// <summary>The bridge itself has frames looked at by iptables, ip6tables or arptables; that of the namespace is another switch.</summary>
    public bool CallsIpTables { get; init; }

    /// <summary>An XDP program looks at what the interface receives.</summary>
    public bool HasXdp { get; init; }

    /// <summary>The VLAN by which the bridge's forwarding table knows untagged frames of this port.</summary>
    public int FdbVlan => FiltersVlans ? Pvid : 0;
}

/// <summary>Lists the ports of all switches of the network namespace of the thread that opened the socket.</summary>
internal static class SwitchPorts
{
    private const ushort RTM_NEWLINK = 16;
    private const ushort RTM_GETLINK = 18;
    private const ushort IFLA_IFNAME = 3;
    private const ushort IFLA_MTU = 4;
    private const ushort IFLA_MASTER = 10;
    private const ushort IFLA_PROTINFO = 12;
    private const ushort IFLA_LINKINFO = 18;
    private const ushort IFLA_AF_SPEC = 26;
    private const ushort IFLA_EXT_MASK = 29;
    private const ushort IFLA_XDP = 43;
    private const ushort IFLA_XDP_ATTACHED = 2;
    private const ushort IFLA_INFO_KIND = 1;
    private const ushort IFLA_INFO_DATA = 2;
    private const ushort IFLA_BR_VLAN_FILTERING = 7;
    private const ushort IFLA_BR_NF_CALL_IPTABLES = 36;
    private const ushort IFLA_BR_NF_CALL_ARPTABLES = 38;
    private const ushort IFLA_BRPORT_STATE = 1;
    private const ushort IFLA_BRPORT_UNICAST_FLOOD = 9;
    private const ushort IFLA_BRPORT_ISOLATED = 33;
    private const ushort IFLA_BRPORT_LOCKED = 39;
    private const byte BR_STATE_FORWARDING = 3;
    private const ushort IFLA_BRIDGE_VLAN_INFO = 2;
    private const ushort BRIDGE_VLAN_INFO_PVID = 1 << 1;
    private const uint RTEXT_FILTER_BRVLAN = 1 << 1;
    private const uint RTEXT_FILTER_SKIP_STATS = 1 << 3;
    private const byte AF_BRIDGE = 7;

    /// <summary>Every interface that is a port of a switch, by name.</summary>
    /// <exception cref="NativeException">The kernel refuses.</exception>
    public static Dictionary<string, SwitchPort> List(NetlinkSocket socket)
    {
        Dictionary<int, Link> links = [];
        NetlinkMessage message = socket.Begin(RTM_GETLINK, NLM_F_DUMP);
        message.Append(default(ifinfomsg));
        message.Attribute(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
        socket.Request(message, "RTM_GETLINK", "all interfaces", (type, payload) =>
        {
            if (type == RTM_NEWLINK)
            {
                Link link = ReadLink(payload);
                links[link.Index] = link;
            }
        });

        message = socket.Begin(RTM_GETLINK, NLM_F_DUMP);
        message.Append(new ifinfomsg { ifi_family = AF_BRIDGE });
        message.Attribute(IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN | RTEXT_FILTER_SKIP_STATS);
        socket.Request(message, "RTM_GETLINK(AF_BRIDGE)", "all bridges", (type, payload) =>
        {
            if (type == RTM_NEWLINK)
            {
                ReadPort(payload, links);
            }
        });

        Dictionary<string, SwitchPort> ports = [];
        foreach (Link link in links.Values)
        {
            // A master in another namespace has a number that means nothing here.
            if (link.Master != 0 && links.TryGetValue(link.Master, out Link? master))
            {
                ports[link.Name] = new SwitchPort
                {
                    Index = link.Index,
                    Master = master.Name,
                    MasterIndex = master.Index,
                    IsBridge = master.IsBridge,
                    IsUp = (link.Flags & LinkFlags.IFF_UP) != 0,
                    Mtu = link.Mtu,
                    Pvid = link.Pvid,
                    FiltersVlans = master.FiltersVlans,
                    Forwards = link.Forwards,
                    IsIsolated = link.IsIsolated,
                    IsLocked = link.IsLocked,
                    Floods = link.Floods,
                    CallsIpTables = master.CallsIpTables,
                    HasXdp = link.HasXdp,
                };
            }
        }

        return ports;
    }

    internal static Link ReadLink(ReadOnlySpan<byte> payload)
    {
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out ifinfomsg header);
        Link link = new() { Index = header.ifi_index, Flags = (LinkFlags)header.ifi_flags };
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case IFLA_IFNAME:
                    link.Name = attributes.Text;
                    break;
                case IFLA_MTU:
                    link.Mtu = attributes.Value<int>();
                    break;
                case IFLA_MASTER:
                    link.Master = attributes.Value<int>();
                    break;
                case IFLA_LINKINFO:
                    ReadInformation(attributes.Data, link);
                    break;
                case IFLA_XDP:
                    NetlinkAttributes xdp = new(attributes.Data);
                    while (xdp.MoveNext())
                    {
                        link.HasXdp |= xdp.Type == IFLA_XDP_ATTACHED && xdp.Value<byte>() != 0;
                    }

                    break;
                default:
                    break;
            }
        }

        return link;
    }

    private static void ReadInformation(ReadOnlySpan<byte> data, Link link)
    {
        NetlinkAttributes information = new(data);
        while (information.MoveNext())
        {
            if (information.Type == IFLA_INFO_KIND)
            {
                link.IsBridge = information.Text == "bridge";
            }
            else if (information.Type == IFLA_INFO_DATA && link.IsBridge)
            {
                // The kernel writes the kind before what is the kind's own.
                NetlinkAttributes bridge = new(information.Data);
                while (bridge.MoveNext())
                {
                    link.FiltersVlans |= bridge.Type == IFLA_BR_VLAN_FILTERING && bridge.Value<byte>() != 0;
                    link.CallsIpTables |= bridge.Type is >= IFLA_BR_NF_CALL_IPTABLES and <= IFLA_BR_NF_CALL_ARPTABLES && bridge.Value<byte>() != 0;
                }
            }
        }
    }

    internal static void ReadPort(ReadOnlySpan<byte> payload, Dictionary<int, Link> links)
    {
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out ifinfomsg header);
        if (!links.TryGetValue(header.ifi_index, out Link? link))
        {
            return;
        }

        while (attributes.MoveNext())
        {
            if (attributes.Type == IFLA_PROTINFO)
            {
                NetlinkAttributes port = new(attributes.Data);
                while (port.MoveNext())
                {
                    switch (port.Type)
                    {
                        case IFLA_BRPORT_STATE:
                            link.Forwards = port.Value<byte>() == BR_STATE_FORWARDING;
                            break;
                        case IFLA_BRPORT_UNICAST_FLOOD:
                            link.Floods = port.Value<byte>() != 0;
                            break;
                        case IFLA_BRPORT_ISOLATED:
                            link.IsIsolated = port.Value<byte>() != 0;
                            break;
                        case IFLA_BRPORT_LOCKED:
                            link.IsLocked = port.Value<byte>() != 0;
                            break;
                        default:
                            break;
                    }
                }
            }
            else if (attributes.Type == IFLA_AF_SPEC)
            {
                NetlinkAttributes vlans = new(attributes.Data);
                while (vlans.MoveNext())
                {
                    bridge_vlan_info vlan = vlans.Value<bridge_vlan_info>();
                    if (vlans.Type == IFLA_BRIDGE_VLAN_INFO && (vlan.flags & BRIDGE_VLAN_INFO_PVID) != 0)
                    {
                        link.Pvid = vlan.vid;
                    }
                }
            }
        }
    }

    internal sealed class Link
    {
        public int Index;
        public LinkFlags Flags;
        public string Name = "";
        public int Master;
        public int Mtu;
        public bool IsBridge;
        public bool FiltersVlans;
        public bool CallsIpTables;
        public bool HasXdp;
        public bool Forwards = true;
        public bool Floods = true;
        public bool IsIsolated;
        public bool IsLocked;
        public int Pvid;
    }

    /// <summary>struct bridge_vlan_info of linux/if_bridge.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct bridge_vlan_info
    {
        public ushort flags;
        public ushort vid;
    }
}
