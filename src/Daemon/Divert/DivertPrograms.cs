using XenLoop.Interop.Linux;
using static XenLoop.Interop.Linux.BpfRegister;

namespace XenLoop.Divert;

/// <summary>
/// The programs that run in the kernel, once for each packet. They use nothing that Linux 5.8 does not have.
/// </summary>
internal static class DivertPrograms
{
    // struct __sk_buff of linux/bpf.h.
    private const int SkbVlanPresent = 20;
    private const int SkbData = 76;
    private const int SkbDataEnd = 80;
    private const int SkbTimestamp = 152;

    private const int EthernetHeader = 14;
    private const int SourceMac = 6;
    private const int EtherType = 12;
    private const int IPv6NextHeader = EthernetHeader + 6;
    private const int ICMPv6Type = EthernetHeader + 40;

    // As the little-endian load of two bytes in network order.
    private const int ETH_P_IP = 0x0008;
    private const int ETH_P_IPV6 = 0xDD86;
    private const int ETH_P_8021Q = 0x0081;
    private const int ETH_P_8021AD = 0xA888;
    private const int IPPROTO_ICMPV6 = 58;
    // Router solicitation, the first of neighbour discovery's messages (RFC 4861), up to redirect.
    private const int NDP_FIRST = 133;
    private const int NDP_LAST = 137;
    private const int OneSecond = 1_000_000_000;

    // TCX_NEXT and TC_ACT_UNSPEC: nothing decided, the next program or filter runs, and in the end the packet goes its way.
    private const int Next = -1;
    private const int BPF_F_INGRESS = 1;

    // A classifier that is not in direct-action mode: -1 is a match.
    private const int Match = -1;
    private const int PACKET_HOST = 0;

    /// <summary>At the egress of the vif: counts packets to tracked destinations, hands those to connected ones to their TAPs,
    /// and reports the others that get more than their rate.</summary>
    public static BpfInstruction[] Divert(MacAddress own, int vif, SafeFd peers, SafeFd stamps, SafeFd demands)
    {
        BpfProgram program = new();
        LoadHeader(program.Move(R6, R1))
            // Only what this domain itself sends: a frame that it bridges for somebody else would fail the peer's check of the source.
            .Load(BpfSize.Word, R4, R2, SourceMac)
            .JumpIfNotEqual32(R4, (int)(uint)own.Bits, "pass")
            .Load(BpfSize.Half, R4, R2, SourceMac + 4)
            .JumpIfNotEqual(R4, (int)(own.Bits >> 32), "pass")

            // R7 = the destination's entry; the key is its six bytes and two zeros.
            .Load(BpfSize.Word, R4, R2, 0)
            .Store(BpfSize.Word, R10, -8, R4)
            .Load(BpfSize.Half, R4, R2, 4)
            .Store(BpfSize.Word, R10, -4, R4)
            .LoadMap(R1, peers.Number)
            .Move(R2, R10)
            .Add(R2, -8)
            .Call(BpfHelper.map_lookup_elem)
            .JumpIfEqual(R0, 0, "pass")
            .Move(R7, R0)
            .Move(R1, 1)
            .AtomicAdd(R7, VifDivert.Peer.SeenOffset, R1)
            .Load(BpfSize.Word, R8, R7, VifDivert.Peer.TapIndexOffset)
            .JumpIfEqual(R8, 0, "unconnected")

            // A tagged frame is on another segment than the one that Dom0 vouches for: it keeps to the bridge.
            .Load(BpfSize.Word, R1, R6, SkbVlanPresent)
            .JumpIfNotEqual(R1, 0, "pass");
        LoadHeader(program)
            .Load(BpfSize.Half, R1, R2, EtherType)
            .JumpIfEqual(R1, ETH_P_8021Q, "pass")
            .JumpIfEqual(R1, ETH_P_8021AD, "pass")

            // R9 = the slot's stamp.
            .Load(BpfSize.Word, R1, R7, VifDivert.Peer.SlotOffset)
            .Store(BpfSize.Word, R10, -8, R1)
            .LoadMap(R1, stamps.Number)
            .Move(R2, R10)
            .Add(R2, -8)
            .Call(BpfHelper.map_lookup_elem)
            .JumpIfEqual(R0, 0, "pass")
            .Move(R9, R0)
            .Load(BpfSize.Double, R1, R9, LivenessStamp.BlockedOffset)
            .JumpIfNotEqual(R1, 0, "pass")

            // A packet that is to be sent later (TCP that the qdisc fq paces, SO_TXTIME) is for a qdisc to hold: 0 is no time.
            .Call(BpfHelper.ktime_get_ns)
            .Load(BpfSize.Double, R1, R6, SkbTimestamp)
            .JumpIfGreater(R1, R0, "pass")

            // Nothing undrained: this packet is the first, and leaves its time.
            .Load(BpfSize.Double, R1, R9, LivenessStamp.StampOffset)
            .JumpIfNotEqual(R1, 0, "undrained")
            .Store(BpfSize.Double, R9, LivenessStamp.StampOffset, R0)
            .Move(R1, R0)

            // Signed: another CPU may have written its stamp after this one looked at the clock, an age just below zero.
            .Label("undrained")
            .Subtract(R0, R1)
            .JumpIfGreaterSigned(R0, VifDivert.StaleNanoseconds, "pass")

            .Move(R1, 1)
            .AtomicAdd(R7, VifDivert.Peer.DivertedOffset, R1)
            .Move(R1, R8)
            .Move(R2, 0)
            .Call(BpfHelper.redirect)
            .Exit()

            // Not connected. What applications send is demand; the answers of ARP and neighbour discovery are not, or whoever
            // scans a network would get a channel from every guest on it.
            .Label("unconnected")
            .Load(BpfSize.Word, R1, R7, VifDivert.Peer.ThresholdOffset)
            .JumpIfEqual(R1, 0, "pass");
        LoadHeader(program)
            .Load(BpfSize.Half, R1, R2, EtherType)
            .JumpIfEqual(R1, ETH_P_IP, "demand")
            .JumpIfNotEqual(R1, ETH_P_IPV6, "pass")
            .Move(R4, R2)
            .Add(R4, ICMPv6Type + 1)
            .JumpIfGreater(R4, R3, "demand")
            .Load(BpfSize.Byte, R1, R2, IPv6NextHeader)
            .JumpIfNotEqual(R1, IPPROTO_ICMPV6, "demand")
            .Load(BpfSize.Byte, R1, R2, ICMPv6Type)
            .JumpIfGreaterSigned(R1, NDP_LAST, "demand")
            .JumpIfGreaterSigned(R1, NDP_FIRST - 1, "pass")

            // Packets are counted in windows of a second. The count is not atomic: CPUs that race lose a packet, no report.
            .Label("demand")
            .Call(BpfHelper.ktime_get_ns)
            .Load(BpfSize.Double, R1, R7, VifDivert.Peer.WindowStartOffset)
            .Load(BpfSize.Word, R3, R7, VifDivert.Peer.WindowCountOffset)
            .Move(R2, R0)
            .Subtract(R2, R1)
            .JumpIfGreaterSigned(R2, OneSecond, "window")
            .Jump("count")
            .Label("window")
            .Store(BpfSize.Double, R7, VifDivert.Peer.WindowStartOffset, R0)
            .Store(BpfSize.Word, R7, VifDivert.Peer.LastCountOffset, R3)
            .Move(R3, 0)
            .Label("count")
            .Add(R3, 1)
            .Store(BpfSize.Word, R7, VifDivert.Peer.WindowCountOffset, R3)

            // Once in a window, by the packet that reaches the threshold.
            .Load(BpfSize.Word, R1, R7, VifDivert.Peer.ThresholdOffset)
            .JumpIfGreater(R3, R1, "pass")
            .JumpIfGreater(R1, R3, "pass")
            .Load(BpfSize.Word, R1, R7, VifDivert.Peer.LastCountOffset)
            .Store(BpfSize.Word, R10, -4, R1)
            .Store(BpfSize.Word, R10, -8, vif)
            .Load(BpfSize.Double, R1, R7, VifDivert.Peer.AddressOffset)
            .Store(BpfSize.Double, R10, -16, R1)
            .LoadMap(R1, demands.Number)
            .Move(R2, R10)
            .Add(R2, -16)
            .Move(R3, Demand.Size)
            .Move(R4, 0)
            // A full queue loses the report; the next window brings another.
            .Call(BpfHelper.ringbuf_output)

            .Label("pass")
            .Move(R0, Next)
            .Exit();
        return program.ToArray();
    }

    /// <summary>R2 = the packet, R3 = its end; a packet that has no Ethernet header passes. A helper's call clobbers both.</summary>
    private static BpfProgram LoadHeader(BpfProgram program) => program
        .Load(BpfSize.Word, R2, R6, SkbData)
        .Load(BpfSize.Word, R3, R6, SkbDataEnd)
        .Move(R4, R2)
        .Add(R4, EthernetHeader)
        .JumpIfGreater(R4, R3, "pass");

    /// <summary>
    /// At the ingress of a channel's TAP, before act_mirred: every packet matches, and is for this host. The TAP's MAC address is
    /// not the vif's, so the kernel took the packet for somebody else's and would discard it.
    /// </summary>
    public static BpfInstruction[] Accept() =>
        new BpfProgram()
            .Move(R2, PACKET_HOST)
            .Call(BpfHelper.skb_change_type)
            .Move(R0, Match)
            .Exit()
            .ToArray();

    /// <summary>At the ingress of a channel's TAP: everything goes to the ingress of the vif.</summary>
    public static BpfInstruction[] Inject(int vifIndex) =>
        new BpfProgram()
            .Move(R1, vifIndex)
            .Move(R2, BPF_F_INGRESS)
            .Call(BpfHelper.redirect)
            .Exit()
            .ToArray();
}
