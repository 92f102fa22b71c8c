using System.Runtime.InteropServices;
using System.Text;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>NFPROTO_* of linux/netfilter.h, those that nftables has tables for.</summary>
internal enum NfFamily : byte
{
    All = 0,
    Inet = 1,
    Ip = 2,
    Arp = 3,
    Netdev = 5,
    Bridge = 7,
    Ip6 = 10,
}

/// <summary>A chain of nftables, with what its rules can do to a packet.</summary>
internal sealed class NfChain
{
    public required NfFamily Family { get; init; }

    public required string Table { get; init; }

    public required string Name { get; init; }

    /// <summary>Where packets come to it from the network stack; null for a chain that others jump to.</summary>
    public uint? Hook { get; init; }

    /// <summary>What becomes of packets that no rule decided: accept is 1.</summary>
    public uint Policy { get; init; } = 1;

    /// <summary>The interfaces of a hook that belongs to some; all whose names begin so for one that ends with an asterisk (Linux 6.16).</summary>
    public string[] Devices { get; init; } = [];

    public int Rules { get; set; }

    /// <summary>Some rule may do something else than accept, count, mark, log or go to another chain; true as well for what is not known here.</summary>
    public bool MayStop { get; set; }

    /// <summary>The chains that rules jump or go to.</summary>
    public HashSet<string> Targets { get; } = [];
}

/// <summary>Reads nftables' rules, iptables-nft's and ebtables-nft's among them, of the namespace of the thread that opened the socket.</summary>
internal static class NfTables
{
    /// <summary>The group of netlink sockets that is told of changes (NFNLGRP_NFTABLES).</summary>
    public const uint Group = 1 << (7 - 1);

    private const ushort NFNL_SUBSYS_NFTABLES = 10 << 8;
    private const ushort NFT_MSG_NEWCHAIN = NFNL_SUBSYS_NFTABLES | 3;
    private const ushort NFT_MSG_GETCHAIN = NFNL_SUBSYS_NFTABLES | 4;
    private const ushort NFT_MSG_NEWRULE = NFNL_SUBSYS_NFTABLES | 6;
    private const ushort NFT_MSG_GETRULE = NFNL_SUBSYS_NFTABLES | 7;
    private const ushort NFTA_CHAIN_TABLE = 1, NFTA_CHAIN_NAME = 3, NFTA_CHAIN_HOOK = 4, NFTA_CHAIN_POLICY = 5;
    private const ushort NFTA_HOOK_HOOKNUM = 1, NFTA_HOOK_DEV = 3, NFTA_HOOK_DEVS = 4, NFTA_DEVICE_PREFIX = 2;
    private const ushort NFTA_RULE_TABLE = 1, NFTA_RULE_CHAIN = 2, NFTA_RULE_EXPRESSIONS = 4;
    private const ushort NFTA_EXPR_NAME = 1, NFTA_EXPR_DATA = 2;
    private const ushort NFTA_IMMEDIATE_DATA = 2, NFTA_DATA_VERDICT = 2, NFTA_VERDICT_CODE = 1, NFTA_VERDICT_CHAIN = 2;
    private const ushort NFTA_LOOKUP_DREG = 3, NFTA_PAYLOAD_SREG = 5, NFTA_EXTHDR_SREG = 7, NFTA_TARGET_NAME = 1;
    private const int NF_ACCEPT = 1, NFT_CONTINUE = -1, NFT_BREAK = -2, NFT_JUMP = -3, NFT_GOTO = -4, NFT_RETURN = -5;

    /// <summary>All chains, without their rules. Empty where the kernel has no nftables.</summary>
    public static List<NfChain> ListChains(NetlinkSocket socket)
    {
        List<NfChain> chains = [];
        NetlinkMessage message = socket.Begin(NFT_MSG_GETCHAIN, NLM_F_DUMP);
        message.Append(default(nfgenmsg));
        NetlinkError error = socket.Try(message, (type, payload) =>
        {
            if (type == NFT_MSG_NEWCHAIN)
            {
                chains.Add(ReadChain(payload));
            }
        });
        ThrowUnlessAbsent(error, "NFT_MSG_GETCHAIN");
        return chains;
    }

    /// <summary>Reads the rules of a family into the chains that <see cref="ListChains"/> gave.</summary>
    public static void ReadRules(NetlinkSocket socket, NfFamily family, List<NfChain> chains)
    {
        NetlinkMessage message = socket.Begin(NFT_MSG_GETRULE, NLM_F_DUMP);
        message.Append(new nfgenmsg { nfgen_family = (byte)family });
        NetlinkError error = socket.Try(message, (type, payload) =>
        {
            if (type == NFT_MSG_NEWRULE)
            {
                ReadRule(payload, chains);
            }
        });
        ThrowUnlessAbsent(error, "NFT_MSG_GETRULE");
    }

    /// <summary>A kernel without nftables says EINVAL, and nobody has made a rule there; but an error of another kind is no answer.</summary>
    private static void ThrowUnlessAbsent(in NetlinkError error, string request)
    {
        if (error.Errno is not (0 or EINVAL or ENOENT or EOPNOTSUPP))
        {
            throw error.ToException(request, "nftables");
        }
    }

    internal static NfChain ReadChain(ReadOnlySpan<byte> payload)
    {
        string table = "", name = "";
        uint? hook = null;
        uint policy = NF_ACCEPT;
        List<string> devices = [];
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out nfgenmsg header);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case NFTA_CHAIN_TABLE:
                    table = attributes.Text;
                    break;
                case NFTA_CHAIN_NAME:
                    name = attributes.Text;
                    break;
                case NFTA_CHAIN_POLICY:
                    policy = attributes.BigEndian;
                    break;
                case NFTA_CHAIN_HOOK:
                    hook = ReadHook(attributes.Data, devices);
                    break;
                default:
                    break;
            }
        }

        return new NfChain { Family = (NfFamily)header.nfgen_family, Table = table, Name = name, Hook = hook, Policy = policy, Devices = [.. devices] };
    }

    private static uint? ReadHook(ReadOnlySpan<byte> data, List<string> devices)
    {
        uint? hook = null;
        NetlinkAttributes attributes = new(data);
        while (attributes.MoveNext())
        {
            if (attributes.Type == NFTA_HOOK_HOOKNUM)
            {
                hook = attributes.BigEndian;
            }
            else if (attributes.Type == NFTA_HOOK_DEV)
            {
                devices.Add(attributes.Text);
            }
            else if (attributes.Type == NFTA_HOOK_DEVS)
            {
                NetlinkAttributes names = new(attributes.Data);
                while (names.MoveNext())
                {
                    devices.Add(names.Type == NFTA_DEVICE_PREFIX ? $"{names.Text}*" : names.Text);
                }
            }
        }

        return hook;
    }

    internal static void ReadRule(ReadOnlySpan<byte> payload, List<NfChain> chains)
    {
        string table = "";
        NfChain? chain = null;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out nfgenmsg header);
        NfFamily family = (NfFamily)header.nfgen_family;
        while (attributes.MoveNext())
        {
            if (attributes.Type == NFTA_RULE_TABLE)
            {
                table = attributes.Text;
            }
            else if (attributes.Type == NFTA_RULE_CHAIN)
            {
                string name = attributes.Text;
                chain = chains.Find(c => c.Family == family && c.Table == table && c.Name == name);
                if (chain is not null)
                {
                    chain.Rules++;
                }
            }
            else if (attributes.Type == NFTA_RULE_EXPRESSIONS && chain is not null)
            {
                NetlinkAttributes expressions = new(attributes.Data);
                while (expressions.MoveNext())
                {
                    ReadExpression(expressions.Data, chain);
                }
            }
        }
    }

    private static void ReadExpression(ReadOnlySpan<byte> expression, NfChain chain)
    {
        _ = Has(expression, NFTA_EXPR_NAME, out ReadOnlySpan<byte> name);
        _ = Has(expression, NFTA_EXPR_DATA, out ReadOnlySpan<byte> data);
        chain.MayStop |= Text(name) switch
        {
            "immediate" => MayStop(data, chain),
            "payload" => Has(data, NFTA_PAYLOAD_SREG, out _),
            "exthdr" => Has(data, NFTA_EXTHDR_SREG, out _),
            // Verdict maps.
            "lookup" => Number(data, NFTA_LOOKUP_DREG) == 0,
            "target" => !(Has(data, NFTA_TARGET_NAME, out ReadOnlySpan<byte> target)
                && (target.StartsWith("LOG\0"u8) || target.StartsWith("NFLOG\0"u8) || target.StartsWith("MARK\0"u8) || target.StartsWith("CONNMARK\0"u8))),
            "cmp" or "bitwise" or "byteorder" or "range" or "counter" or "meta" or "ct" or "match" or "log" or "fib" or "rt" or "socket" or "hash" or "numgen"
                or "limit" or "quota" or "connlimit" or "osf" => false,
            _ => true,
        };
    }

    /// <summary>What an immediate puts into the register of verdicts. Into others it puts numbers.</summary>
    private static bool MayStop(ReadOnlySpan<byte> data, NfChain chain)
    {
        if (!Has(data, NFTA_IMMEDIATE_DATA, out ReadOnlySpan<byte> value) || !Has(value, NFTA_DATA_VERDICT, out ReadOnlySpan<byte> verdict))
        {
            return false;
        }

        if (Has(verdict, NFTA_VERDICT_CHAIN, out ReadOnlySpan<byte> target))
        {
            chain.Targets.Add(Text(target));
        }

        return (int?)Number(verdict, NFTA_VERDICT_CODE) is not (NF_ACCEPT or NFT_CONTINUE or NFT_BREAK or NFT_JUMP or NFT_GOTO or NFT_RETURN);
    }

    private static string Text(ReadOnlySpan<byte> value) => Encoding.ASCII.GetString(value.TrimEnd((byte)0));

    private static uint? Number(ReadOnlySpan<byte> data, ushort type)
    {
        NetlinkAttributes attributes = new(data);
        while (attributes.MoveNext())
        {
            if (attributes.Type == type)
            {
                return attributes.BigEndian;
            }
        }

        return null;
    }

    private static bool Has(ReadOnlySpan<byte> data, ushort type, out ReadOnlySpan<byte> value)
    {
        NetlinkAttributes attributes = new(data);
        while (attributes.MoveNext())
        {
            if (attributes.Type == type)
            {
                value = attributes.Data;
                return true;
            }
        }

        value = default;
        return false;
    }

    /// <summary>struct nfgenmsg of linux/netfilter/nfnetlink.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct nfgenmsg
    {
        public byte nfgen_family;
        public byte version;
        public ushort res_id;
    }
}
