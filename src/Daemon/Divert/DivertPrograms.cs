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
    private const int IPv4Header = 20;
    private const int IPv4FragmentOffset = EthernetHeader + 6;
    private const int IPv6NextHeader = EthernetHeader + 6;
    private const int IPv6FragmentOffset = EthernetHeader + 40 + 2;
    private const int ICMPv6Type = EthernetHeader + 40;

    // As the little-endian load of two bytes in network order.
    private const int ETH_P_IP = 0x0008;
    private const int ETH_P_IPV6 = 0xDD86;
    private const int ETH_P_8021Q = 0x0081;
    private const int ETH_P_8021AD = 0xA888;
    private const int IP_MF = 0x0020;
    private const int IP_OFFSET = 0xFF1F;
    private const int IP6_OFFSET = 0xF8FF;
    private const int NEXTHDR_FRAGMENT = 44;
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
    public static BpfInstruction[] Divert(MacAddress own, int vif, SafeFd peers, SafeFd slots, SafeFd demands)
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

            // R9 = the slot.
            .Load(BpfSize.Word, R1, R7, VifDivert.Peer.SlotOffset)
            .Store(BpfSize.Word, R10, -8, R1)
            .LoadMap(R1, slots.Number)
            .Move(R2, R10)
            .Add(R2, -8)
            .Call(BpfHelper.map_lookup_elem)
            .JumpIfEqual(R0, 0, "pass")
            .Move(R9, R0)
            .Load(BpfSize.Double, R1, R9, DivertSlot.BlockedOffset)
            .JumpIfNotEqual(R1, 0, "blocked")

            // A packet that is to be sent later (TCP that the qdisc fq paces, SO_TXTIME) is for a qdisc to hold: 0 is no time.
            .Call(BpfHelper.ktime_get_ns)
            .Load(BpfSize.Double, R1, R6, SkbTimestamp)
            .JumpIfGreater(R1, R0, "pass")

            // R1 = frames drained. Anything since the last packet was diverted: somebody drains. If not, how long has that been so?
            .Load(BpfSize.Double, R1, R9, DivertSlot.DrainedOffset)
            .Load(BpfSize.Double, R2, R9, DivertSlot.MovedToOffset)
            .JumpIfNotEqual(R1, R2, "room")
            // Signed: another CPU may have written its time after this one looked at the clock, an age just below zero.
            .Load(BpfSize.Double, R3, R9, DivertSlot.MovedAtOffset)
            .Move(R2, R0)
            .Subtract(R2, R3)
            .JumpIfGreaterSigned(R2, DivertSlot.StaleNanoseconds, "stale")

            // R2 = frames in the TAP's queue; signed, as one may be drained before it is counted.
            .Label("room")
            .Load(BpfSize.Double, R2, R9, DivertSlot.QueuedOffset)
            .Subtract(R2, R1)
            .Load(BpfSize.Double, R3, R9, DivertSlot.FullOffset)
            .JumpIfNotEqual(R3, 0, "crowded")
            .JumpIfGreaterSigned(R2, DivertSlot.MostQueued - 1, "crowded")
            .Load(BpfSize.Double, R3, R9, DivertSlot.FullAtOffset)
            .JumpIfEqual(R3, 0, "divert")

            // The queue is full, or was. R5 != 0: the packet is a fragment; R4 != 0: not the first of its datagram, which it follows.
            .Label("crowded")
            .Load(BpfSize.Word, R1, R6, SkbData)
            .Load(BpfSize.Word, R3, R6, SkbDataEnd)
            .Move(R4, R1)
            .Add(R4, EthernetHeader + IPv4Header)
            .JumpIfGreater(R4, R3, "whole")
            .Load(BpfSize.Half, R4, R1, EtherType)
            .JumpIfEqual(R4, ETH_P_IPV6, "ipv6")
            .JumpIfNotEqual(R4, ETH_P_IP, "whole")
            .Load(BpfSize.Half, R5, R1, IPv4FragmentOffset)
            .Move(R4, R5)
            .And(R5, IP_MF | IP_OFFSET)
            .And(R4, IP_OFFSET)
            .Jump("weigh")
            .Label("ipv6")
            .Load(BpfSize.Byte, R4, R1, IPv6NextHeader)
            .JumpIfNotEqual(R4, NEXTHDR_FRAGMENT, "whole")
            .Move(R4, R1)
            .Add(R4, IPv6FragmentOffset + 2)
            .JumpIfGreater(R4, R3, "whole")
            .Load(BpfSize.Half, R4, R1, IPv6FragmentOffset)
            .And(R4, IP6_OFFSET)
            .Move(R5, 1)
            .Jump("weigh")
            .Label("whole")
            .Move(R5, 0)
            .Move(R4, 0)

            .Label("weigh")
            .Load(BpfSize.Double, R3, R9, DivertSlot.FullOffset)
            .JumpIfEqual(R3, 0, "was full")
            .JumpIfGreaterSigned(R2, DivertSlot.FewQueued, "pass")
            .JumpIfNotEqual(R4, 0, "pass")
            .Store(BpfSize.Double, R9, DivertSlot.FullOffset, 0)

            .Label("was full")
            .JumpIfGreaterSigned(R2, DivertSlot.MostQueued - 1, "fills")
            // Signed, as above.
            .Load(BpfSize.Double, R3, R9, DivertSlot.FullAtOffset)
            .Move(R1, R0)
            .Subtract(R1, R3)
            .ShiftRight(R1, 30)
            .JumpIfGreaterSigned(R1, DivertSlot.FragmentsAway, "forget")
            .JumpIfEqual(R5, 0, "divert")
            .Jump("pass")
            .Label("forget")
            .JumpIfNotEqual(R4, 0, "pass")
            .Store(BpfSize.Double, R9, DivertSlot.FullAtOffset, 0)
            .Jump("divert")

            .Label("fills")
            .JumpIfNotEqual(R4, 0, "divert")
            .Store(BpfSize.Double, R9, DivertSlot.FullOffset, 1)
            .Store(BpfSize.Double, R9, DivertSlot.FullAtOffset, R0)
            .Jump("pass")

            // The first since something was drained starts the clock. CPUs that race write the same, or nearly.
            .Label("divert")
            .Load(BpfSize.Double, R1, R9, DivertSlot.DrainedOffset)
            .Load(BpfSize.Double, R2, R9, DivertSlot.MovedToOffset)
            .JumpIfEqual(R1, R2, "count it")
            .Store(BpfSize.Double, R9, DivertSlot.MovedToOffset, R1)
            .Store(BpfSize.Double, R9, DivertSlot.MovedAtOffset, R0)
            .Label("count it")
            .Move(R1, 1)
            .AtomicAdd(R9, DivertSlot.DivertedOffset, R1)
            .Move(R1, R8)
            .Move(R2, 0)
            .Call(BpfHelper.redirect)
            .Exit()

            // The peer takes nothing, or nobody drains. What is in ring and queue is older than this packet, which overtakes it: R1 = the
            // end of that. Then it is demand, as without a channel: the report wakes whoever might set this right.
            .Label("blocked")
            .Call(BpfHelper.ktime_get_ns)
            .Label("stale")
            .Load(BpfSize.Double, R1, R9, DivertSlot.QueuedOffset)
            .Load(BpfSize.Double, R2, R9, DivertSlot.OvertakenOffset)
            .JumpIfEqual(R1, R2, "unconnected")
            .Store(BpfSize.Double, R9, DivertSlot.OvertakenAtOffset, R0)
            .Store(BpfSize.Double, R9, DivertSlot.OvertakenOffset, R1)

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
    /// At the queue of a channel's TAP: only frames from this vif to the channel's peer get in, whatever else is sent on the TAP by
    /// whomever, and they are counted.
    /// </summary>
    public static BpfInstruction[] Enqueue(MacAddress own, MacAddress peer, SafeFd slots, int slot)
    {
        const int Whole = -1;
        BpfProgram program = new BpfProgram()
            // Destination and source, by one call.
            .Move(R2, 0)
            .Move(R3, R10)
            .Add(R3, -16)
            .Move(R4, 2 * MacAddress.Length)
            .Call(BpfHelper.skb_load_bytes)
            .JumpIfNotEqual(R0, 0, "drop")
            .Load(BpfSize.Word, R1, R10, -16)
            .JumpIfNotEqual32(R1, (int)(uint)peer.Bits, "drop")
            .Load(BpfSize.Half, R1, R10, -12)
            .JumpIfNotEqual(R1, (int)(peer.Bits >> 32), "drop")
            .Load(BpfSize.Half, R1, R10, -10)
            .JumpIfNotEqual(R1, (int)(own.Bits & 0xFFFF), "drop")
            .Load(BpfSize.Word, R1, R10, -8)
            .JumpIfNotEqual32(R1, (int)(uint)(own.Bits >> 16), "drop");
        return Count(program, slots, slot, DivertSlot.QueuedOffset)
            .Move(R0, Whole)
            .Exit()
            .Label("drop")
            .Move(R0, 0)
            .Exit()
            .ToArray();
    }

    /// <summary>
    /// At the ingress of a channel's TAP, before act_mirred: every packet matches, is counted, and is for this host. The TAP's MAC
    /// address is not the vif's, so the kernel took the packet for somebody else's and would discard it.
    /// </summary>
    public static BpfInstruction[] Accept(SafeFd slots, int slot) =>
        Count(new BpfProgram().Move(R6, R1), slots, slot, DivertSlot.ArrivedOffset)
            .Move(R1, R6)
            .Move(R2, PACKET_HOST)
            .Call(BpfHelper.skb_change_type)
            .Move(R0, Match)
            .Exit()
            .ToArray();

    /// <summary>At the ingress of a channel's TAP: everything is counted and goes to the ingress of the vif.</summary>
    public static BpfInstruction[] Inject(int vifIndex, SafeFd slots, int slot) =>
        Count(new BpfProgram(), slots, slot, DivertSlot.ArrivedOffset)
            .Move(R1, vifIndex)
            .Move(R2, BPF_F_INGRESS)
            .Call(BpfHelper.redirect)
            .Exit()
            .ToArray();

    /// <summary>One more in a word of the slot. Atomic: packets of one TAP may be on several CPUs.</summary>
    private static BpfProgram Count(BpfProgram program, SafeFd slots, int slot, int offset) => program
        .Store(BpfSize.Word, R10, -4, slot)
        .LoadMap(R1, slots.Number)
        .Move(R2, R10)
        .Add(R2, -4)
        .Call(BpfHelper.map_lookup_elem)
        .JumpIfEqual(R0, 0, "uncounted") // never; the verifier asks
        .Move(R1, 1)
        .AtomicAdd(R0, offset, R1)
        .Label("uncounted");
}
