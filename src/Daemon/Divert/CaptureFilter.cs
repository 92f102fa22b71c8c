using XenLoop.Interop.Linux;

namespace XenLoop.Divert;

/// <summary>
/// Whether a packet socket could miss packets that are diverted. A DHCP client, a DHCP server and an LLDP agent hold such sockets for life,
/// with a filter that takes nothing of what a channel carries: theirs must not keep every packet of the interface on netfront.
/// Follows a filter (classic BPF) along each way that a diverted packet could take; what it does not understand it takes for possible.
/// </summary>
internal static class CaptureFilter
{
    // Each jump may double the ways; filters in use have a few.
    private const int MostSteps = 20_000;

    private const int BPF_LD = 0, BPF_LDX = 1, BPF_ST = 2, BPF_STX = 3, BPF_ALU = 4, BPF_JMP = 5, BPF_RET = 6, BPF_MISC = 7;
    private const int BPF_W = 0x00, BPF_H = 0x08, BPF_B = 0x10;
    private const int BPF_IMM = 0x00, BPF_ABS = 0x20, BPF_IND = 0x40, BPF_MSH = 0xa0;
    private const int BPF_ADD = 0x00, BPF_MUL = 0x20, BPF_AND = 0x50, BPF_LSH = 0x60;
    private const int BPF_JA = 0x00, BPF_JEQ = 0x10, BPF_JSET = 0x40;
    private const int BPF_A = 0x10, BPF_X = 0x08;

    private const uint SKF_AD_OFF = 0xFFFFF000;
    private const uint SKF_AD_PROTOCOL = SKF_AD_OFF + 0;
    private const uint SKF_AD_PKTTYPE = SKF_AD_OFF + 4;
    private const uint SKF_AD_VLAN_TAG_PRESENT = SKF_AD_OFF + 48;
    private const uint PACKET_OUTGOING = 4;

    private const uint Ethernet = 14;
    private const uint EtherType = 12;
    private const uint IPv4Protocol = Ethernet + 9;
    private const uint IPv6NextHeader = Ethernet + 6;
    private const uint IPv6Header = 40;
    private const uint ETH_P_IP = 0x0800, ETH_P_IPV6 = 0x86DD, IPPROTO_UDP = 17;

    /// <summary>Whether the filter may take a packet that a channel would carry.</summary>
    /// <param name="filter">Empty for none.</param>
    /// <param name="hasLinkHeader">Whether what it sees begins with the Ethernet header.</param>
    public static bool MayMiss(ReadOnlySpan<sock_filter> filter, bool hasLinkHeader)
    {
        if (filter.IsEmpty || !hasLinkHeader)
        {
            return true;
        }

        int steps = 0;
        return Follow(filter, 0, default, default, default, ref steps);
    }

    private static bool Follow(ReadOnlySpan<sock_filter> filter, int at, Value a, Value x, Known known, ref int steps)
    {
        while (at < filter.Length && steps++ < MostSteps)
        {
            sock_filter now = filter[at++];
            switch (now.Code & 7)
            {
                case BPF_LD:
                    a = Load(now, x);
                    break;
                case BPF_LDX:
                    x = (now.Code & 0xe0) switch
                    {
                        BPF_IMM => Value.Constant(now.K),
                        BPF_MSH when now.K == Ethernet => new Value(Of.HeaderLength),
                        _ => default,
                    };
                    break;
                case BPF_ST or BPF_STX:
                    // What is kept in memory is loaded as something unknown.
                    break;
                case BPF_ALU:
                    a = Calculate(now, a, x);
                    break;
                case BPF_MISC:
                    (a, x) = (now.Code & 0xf8) == 0 ? (a, a) : (x, x);
                    break;
                case BPF_RET:
                    bool refuses = (now.Code & 0x18) != BPF_A && now.K == 0;
                    return !refuses && !known.IsConfiguration;
                default:
                    if ((now.Code & 0xf0) == BPF_JA)
                    {
                        at += (int)Math.Min(now.K, (uint)filter.Length);
                        continue;
                    }

                    if (Decide(now, a, known) is { } taken)
                    {
                        at += taken ? now.JumpTrue : now.JumpFalse;
                        continue;
                    }

                    bool equality = (now.Code & 0xf0) == BPF_JEQ && (now.Code & BPF_X) == 0;
                    if (Follow(filter, at + now.JumpTrue, a, x, equality ? known.With(a, now.K) : known, ref steps))
                    {
                        return true;
                    }

                    at += now.JumpFalse;
                    break;
            }
        }

        // Beyond the end, which the kernel does not allow, or too many ways.
        return true;
    }

    /// <summary>How a jump goes for every diverted packet that comes to it; null when that depends on the packet.</summary>
    private static bool? Decide(in sock_filter jump, Value a, Known known) => (jump.Code & 0xf0, jump.Code & BPF_X) switch
    {
        (BPF_JEQ, 0) when known.Get(a) is { } value => value == jump.K,
        (BPF_JSET, 0) when known.Get(a.Masked(jump.K)) is { } bits => bits != 0,
        _ => null,
    };

    private static Value Calculate(in sock_filter now, Value a, Value x)
    {
        Value operand = (now.Code & BPF_X) != 0 ? x : Value.Constant(now.K);
        return (now.Code & 0xf0, a.What, operand) switch
        {
            (BPF_AND, _, { What: Of.Constant, Number: uint mask }) => a.Masked(mask),
            (BPF_MUL, Of.HeaderWords, { What: Of.Constant, Number: 4 }) or (BPF_LSH, Of.HeaderWords, { What: Of.Constant, Number: 2 }) => new Value(Of.HeaderLength),
            (BPF_ADD, Of.HeaderLength, { What: Of.Constant, Number: Ethernet }) => new Value(Of.HeaderEnd),
            _ => default,
        };
    }

    private static Value Load(in sock_filter load, Value x)
    {
        int mode = load.Code & 0xe0, size = load.Code & 0x18;
        uint place = load.K;
        if (mode == BPF_IND && x.What == Of.Constant)
        {
            (mode, place) = (BPF_ABS, place + x.Number);
        }
        else if (mode == BPF_IND && x.What == Of.HeaderEnd)
        {
            (x, place) = (new Value(Of.HeaderLength), place + Ethernet);
        }

        return (mode, size, place) switch
        {
            (BPF_IMM, _, _) => Value.Constant(place),
            (BPF_ABS, _, SKF_AD_PKTTYPE) => Value.Constant(PACKET_OUTGOING),
            (BPF_ABS, _, SKF_AD_VLAN_TAG_PRESENT) => Value.Constant(0),
            (BPF_ABS, BPF_H, EtherType) or (BPF_ABS, _, SKF_AD_PROTOCOL) => new Value(Of.EtherType),
            (BPF_ABS, BPF_B, 0) => new Value(Of.FirstByte),
            (BPF_ABS, BPF_B, Ethernet) => new Value(Of.VersionAndWords),
            (BPF_ABS, BPF_B, IPv4Protocol) => new Value(Of.IPv4Protocol),
            (BPF_ABS, BPF_B, IPv6NextHeader) => new Value(Of.IPv6NextHeader),
            // The destination port, alone or behind the source port.
            (BPF_IND, BPF_H, Ethernet + 2) or (BPF_IND, BPF_W, Ethernet) when x.What == Of.HeaderLength => new Value(Of.IPv4Port),
            (BPF_ABS, BPF_H, Ethernet + IPv6Header + 2) or (BPF_ABS, BPF_W, Ethernet + IPv6Header) => new Value(Of.IPv6Port),
            _ => default,
        };
    }

    /// <summary>What of a packet a register holds.</summary>
    private enum Of
    {
        Unknown,
        Constant,
        VersionAndWords,

        /// <summary>Of IPv4's header, in words of four bytes.</summary>
        HeaderWords,

        /// <summary>Of IPv4's header, in bytes.</summary>
        HeaderLength,

        /// <summary>Where IPv4's header ends in the frame.</summary>
        HeaderEnd,
        FirstByte,
        EtherType,
        IPv4Protocol,
        IPv4Port,
        IPv6NextHeader,
        IPv6Port,
    }

    private readonly record struct Value(Of What, uint Number = 0)
    {
        public static Value Constant(uint number) => new(Of.Constant, number);

        /// <summary>Each channel's peer has a unicast address: the lowest bit of its first byte is 0.</summary>
        public Value Masked(uint mask) => What switch
        {
            Of.FirstByte when mask == 1 => Constant(0),
            Of.VersionAndWords when mask == 0x0f => new(Of.HeaderWords),
            Of.Constant => Constant(Number & mask),
            _ => default,
        };
    }

    /// <summary>What the equal comparisons on the way here have said of the packet.</summary>
    private readonly record struct Known(uint? EtherType, uint? IPv4Protocol, uint? IPv4Port, uint? IPv6NextHeader, uint? IPv6Port)
    {
        /// <summary>A message of DHCP (67, 68) or DHCPv6 (546, 547), between client and server.</summary>
        public bool IsConfiguration => EtherType switch
        {
            ETH_P_IP => IPv4Protocol == IPPROTO_UDP && (IPv4Port & 0xFFFF) is 67 or 68,
            ETH_P_IPV6 => IPv6NextHeader == IPPROTO_UDP && (IPv6Port & 0xFFFF) is 546 or 547,
            _ => false,
        };

        public uint? Get(Value value) => value.What switch
        {
            Of.Constant => value.Number,
            Of.EtherType => EtherType,
            Of.IPv4Protocol => IPv4Protocol,
            Of.IPv4Port => IPv4Port,
            Of.IPv6NextHeader => IPv6NextHeader,
            Of.IPv6Port => IPv6Port,
            _ => null,
        };

        public Known With(Value value, uint number) => value.What switch
        {
            Of.EtherType => this with { EtherType = number },
            Of.IPv4Protocol => this with { IPv4Protocol = number },
            Of.IPv4Port => this with { IPv4Port = number },
            Of.IPv6NextHeader => this with { IPv6NextHeader = number },
            Of.IPv6Port => this with { IPv6Port = number },
            _ => this,
        };
    }
}
