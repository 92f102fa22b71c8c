using XenLoop.Divert;
using XenLoop.Dom0;
using XenLoop.Interop.Linux;
using static XenLoop.Tests.Fuzz.Target;

namespace XenLoop.Tests.Fuzz;

/// <summary>
/// An answer of netlink: rtnetlink's links, addresses, neighbours, qdiscs and filters, nftables' chains and rules, the filters of packet sockets; each message is
/// read by whoever reads its kind. Of numbers that the kernel has no message for: the tables of iptables, ip6tables and ebtables, as getsockopt(2) tells them.
/// None of them throws, whatever the kernel says: a message that ends early reads as if zeros followed.
/// </summary>
internal static class NetlinkTarget
{
    private const ushort RTM_NEWLINK = 16, RTM_NEWADDR = 20, RTM_NEWNEIGH = 28, RTM_NEWQDISC = 36, RTM_NEWTFILTER = 44;
    private const ushort NFT_MSG_NEWCHAIN = 0xa03, NFT_MSG_NEWRULE = 0xa06;
    private const ushort IpTables = 0xff00, Ip6Tables = 0xff01, EbTables = 0xff02;
    private const int InfoBytes = 84; // struct ipt_getinfo

    public static string[] Tokens { get; } =
    [
        .. new[] { RTM_NEWLINK, RTM_NEWADDR, RTM_NEWNEIGH, RTM_NEWQDISC, RTM_NEWTFILTER, NFT_MSG_NEWCHAIN, NFT_MSG_NEWRULE, IpTables, Ip6Tables, EbTables, 2, 3 }
            .Select(t => $"{(char)(t & 0xff)}{(char)(t >> 8)}\u0002\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000"),
        "\u0008\u0000\u0001\u0000", "\u0008\u0000\u0002\u0000", "\u0005\u0000\u0001\u0000", "\u000c\u0000\u0004\u0080", "\u000c\u0000\u0002\u0080", "\u0005\u0000\u0003\u0000", "\u0008\u0000\u001d\u0000",
        "\u000a\u0000\u0001\u0000\u0000\u0016\u003e\u0000\u0000\u0002", "eth0\0", "bridge\0", "bpf\0", "fq\0", "clsact\0", "filter\0", "FORWARD\0", "immediate\0", "lookup\0", "payload\0", "exthdr\0",
        "target\0", "match\0", "LOG\0", "ERROR\0", "\u00ff\u00ff\u00ff\u00ff", "\u00ff\u00ff\u00ff\u00fd",
    ];

    public static void Run(ReadOnlySpan<byte> input)
    {
        Dictionary<int, SwitchPorts.Link> links = [];
        List<NfChain> chains = [];
        List<TcQdisc> qdiscs = [];
        int left = input.Length;
        NetlinkError? end = NetlinkSocket.Read(input, 0, oneAnswer: false, (type, payload) =>
        {
            left -= payload.Length;
            switch (type)
            {
                case RTM_NEWLINK:
                    _ = Links.ReadLink(payload);
                    _ = Links.ReadSilent(payload);
                    SwitchPorts.Link link = SwitchPorts.ReadLink(payload);
                    links[link.Index] = link;
                    SwitchPorts.ReadPort(payload, links);
                    break;
                case RTM_NEWADDR: // SOCK_DIAG_BY_FAMILY as well
                    _ = Addresses.Read(payload);
                    // Of the first socket, whichever that is.
                    uint inode = payload.Length >= 8 ? BitConverter.ToUInt32(payload[4..]) : 0;
                    _ = CaptureFilter.MayMiss(PacketSockets.ReadFilter(payload, inode) ?? [], hasLinkHeader: true);
                    break;
                case RTM_NEWNEIGH:
                    _ = Neighbours.Read(payload);
                    _ = BridgeFdb.TryRead(payload, out _, out _);
                    break;
                case RTM_NEWQDISC:
                    TcQdisc qdisc = TrafficControl.ReadQdisc(payload);
                    _ = qdisc.Limit;
                    qdiscs.Add(qdisc);
                    break;
                case RTM_NEWTFILTER:
                    _ = TrafficControl.ReadFilter(payload, 2);
                    break;
                case NFT_MSG_NEWCHAIN:
                    chains.Add(NfTables.ReadChain(payload));
                    break;
                case NFT_MSG_NEWRULE:
                    NfTables.ReadRule(payload, chains);
                    break;
                case IpTables or Ip6Tables when payload.Length >= InfoBytes:
                    _ = LegacyTables.MayStop(payload[..InfoBytes], payload[InfoBytes..], type == IpTables ? 88 : 140);
                    break;
                case EbTables:
                    _ = LegacyTables.MayStopFrames(payload);
                    break;
                default:
                    break;
            }
        });
        Require(left >= 0, "more payload than there was");
        _ = end?.ToException("call", "subject").Message;
        _ = NetworkFacts.DescribeQdiscs(qdiscs, q => q.Handle != 0);
        _ = NetworkFacts.DescribeChains(chains);
    }
}
