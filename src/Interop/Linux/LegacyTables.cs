using System.Buffers.Binary;
using System.Text;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>
/// What iptables-legacy, ip6tables-legacy and ebtables-legacy do to packets that a bridge forwards, in the network namespace of the
/// calling thread. The kernel tells nobody when that changes. To ask for a table that is not there would make it.
/// One that cannot be read (no CAP_NET_ADMIN, no sockets of AF_INET) may hold anything, and counts as one that stops packets.
/// </summary>
internal static unsafe class LegacyTables
{
    private const int SOL_IPV6 = 41;
    // IPT_SO_GET_INFO and IP6T_SO_GET_INFO; the entries are one further.
    private const int SO_GET_INFO = 64;
    private const int EBT_SO_GET_INFO = 128;
    private const int NameBytes = 32;
    private const int NF_INET_PRE_ROUTING = 0, NF_INET_FORWARD = 2, NF_INET_POST_ROUTING = 4, NF_INET_NUMHOOKS = 5;
    private const int InfoBytes = NameBytes + 4 + (2 * 4 * NF_INET_NUMHOOKS) + 4 + 4; // struct ipt_getinfo
    private const int EntriesOffset = 40; // struct ipt_get_entries
    private const int IpTargetOffset = 88, Ip6TargetOffset = 140; // struct ipt_entry, ip6t_entry: u16 target_offset, u16 next_offset
    private const int TargetDataOffset = 32; // struct xt_entry_target
    private const int Accept = -1 - 1, Return = -4 - 1; // -verdict - 1; XT_RETURN is -NF_REPEAT - 1

    private const int EbtReplaceBytes = 120; // struct ebt_replace
    private const int EbtEntryCountOffset = 36, EbtSizeOffset = 40, EbtEntriesOffset = 112;
    private const int EbtChainBytes = 48; // struct ebt_entries: distinguisher, name, counter_offset, policy, nentries
    private const int EbtChainNameOffset = 4, EbtChainPolicyOffset = 40;
    private const int EBT_ACCEPT = -1;

    /// <summary>Some such table is there: who relies on its state has to look again from time to time.</summary>
    public static bool Exist => Tables("ip").Length + Tables("ip6").Length + EbTables().Length > 0;

    /// <summary>The name of a table of iptables-legacy whose rules or policies may stop a packet that is forwarded; null when none does.</summary>
    public static string? FindIpTables() => Find(LibC.AF_INET, LibC.SOL_IP, "ip", IpTargetOffset);

    /// <summary>As <see cref="FindIpTables"/>, of IPv6.</summary>
    public static string? FindIp6Tables() => Find(LibC.AF_INET6, SOL_IPV6, "ip6", Ip6TargetOffset);

    /// <summary>As <see cref="FindIpTables"/>, of frames. Any rule counts.</summary>
    public static string? FindEbTables()
    {
        foreach (string table in EbTables())
        {
            byte[] request = new byte[EbtReplaceBytes];
            Encoding.ASCII.GetBytes(table, request);
            switch (Ask(LibC.AF_INET, LibC.SOL_IP, EBT_SO_GET_INFO, request))
            {
                case 0:
                    break;
                case Errno.ENOENT:
                    continue; // in other namespaces, not in this one
                case int errno:
                    return Unreadable(table, errno);
            }

            byte[] entries = new byte[BinaryPrimitives.ReadInt32LittleEndian(request.AsSpan(EbtSizeOffset))];
            fixed (byte* pointer = entries)
            {
                BinaryPrimitives.WriteUInt64LittleEndian(request.AsSpan(EbtEntriesOffset), (ulong)pointer);
                if (BinaryPrimitives.ReadInt32LittleEndian(request.AsSpan(EbtEntryCountOffset)) > 0
                    || Ask(LibC.AF_INET, LibC.SOL_IP, EBT_SO_GET_INFO + 1, request) != 0
                    || MayStopFrames(entries))
                {
                    return table;
                }
            }
        }

        return null;
    }

    /// <summary>Whether a table of iptables may stop a packet that is forwarded.</summary>
    /// <param name="info">struct ipt_getinfo.</param>
    /// <param name="entries">The table's entries.</param>
    /// <param name="targetOffset">Of target_offset in an entry.</param>
    internal static bool MayStop(ReadOnlySpan<byte> info, ReadOnlySpan<byte> entries, int targetOffset)
    {
        uint hooks = BinaryPrimitives.ReadUInt32LittleEndian(info[NameBytes..]);
        int first = int.MaxValue;
        for (int offset = 0; offset + targetOffset + 4 <= entries.Length;)
        {
            ReadOnlySpan<byte> entry = entries[offset..];
            int target = BinaryPrimitives.ReadUInt16LittleEndian(entry[targetOffset..]);
            int next = BinaryPrimitives.ReadUInt16LittleEndian(entry[(targetOffset + 2)..]);
            if (target + TargetDataOffset > next || next > entry.Length)
            {
                return true;
            }

            ReadOnlySpan<byte> name = entry[(target + 2)..(target + TargetDataOffset - 1)];
            name = name[..Math.Max(0, name.IndexOf((byte)0))];
            // Chains that people made come behind those of the hooks, each begins with an entry of this name, and so does the table's end.
            bool own = name.SequenceEqual("ERROR"u8);
            first = own ? Math.Min(first, offset) : first;
            bool counts = offset > first || IsForwarding(info, hooks, offset);
            if (counts && !own && (name.IsEmpty ? IsStop(entry[target..next]) : !(name.SequenceEqual("LOG"u8) || name.SequenceEqual("NFLOG"u8) || name.SequenceEqual("MARK"u8))))
            {
                return true;
            }

            offset += next;
        }

        return false;
    }

    /// <summary>Whether a policy of ebtables stops frames that are forwarded.</summary>
    /// <param name="chains">A table without rules: nothing but its chains.</param>
    internal static bool MayStopFrames(ReadOnlySpan<byte> chains)
    {
        for (; chains.Length >= EbtChainBytes; chains = chains[EbtChainBytes..])
        {
            ReadOnlySpan<byte> name = chains.Slice(EbtChainNameOffset, NameBytes);
            if (!name.StartsWith("INPUT\0"u8) && !name.StartsWith("OUTPUT\0"u8) && BinaryPrimitives.ReadInt32LittleEndian(chains[EbtChainPolicyOffset..]) != EBT_ACCEPT)
            {
                return true;
            }
        }

        return false;
    }

    private static bool IsForwarding(ReadOnlySpan<byte> info, uint hooks, int offset)
    {
        foreach (int hook in (ReadOnlySpan<int>)[NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING])
        {
            ReadOnlySpan<byte> entry = info[(NameBytes + 4 + (4 * hook))..];
            if ((hooks & (1u << hook)) != 0
                && offset >= BinaryPrimitives.ReadUInt32LittleEndian(entry)
                && offset <= BinaryPrimitives.ReadUInt32LittleEndian(entry[(4 * NF_INET_NUMHOOKS)..]))
            {
                return true;
            }
        }

        return false;
    }

    private static bool IsStop(ReadOnlySpan<byte> target) =>
        target.Length < TargetDataOffset + 4 || BinaryPrimitives.ReadInt32LittleEndian(target[TargetDataOffset..]) is < 0 and not (Accept or Return);

    private static string? Find(int family, int level, string prefix, int targetOffset)
    {
        foreach (string table in Tables(prefix))
        {
            byte[] info = new byte[InfoBytes];
            Encoding.ASCII.GetBytes(table, info);
            switch (Ask(family, level, SO_GET_INFO, info))
            {
                case 0:
                    break;
                case Errno.ENOENT:
                    continue; // it has gone
                case int errno:
                    return Unreadable(table, errno);
            }

            int size = BinaryPrimitives.ReadInt32LittleEndian(info.AsSpan(InfoBytes - 4));
            byte[] entries = new byte[EntriesOffset + size];
            Encoding.ASCII.GetBytes(table, entries);
            BinaryPrimitives.WriteInt32LittleEndian(entries.AsSpan(NameBytes), size);
            // Refused when the table changed in between: then somebody is at work on it.
            if (Ask(family, level, SO_GET_INFO + 1, entries) != 0 || MayStop(info, entries.AsSpan(EntriesOffset), targetOffset))
            {
                return table;
            }
        }

        return null;
    }

    private static string Unreadable(string table, int errno) => $"{table}, which cannot be read: {Errno.Describe(errno)}";

    /// <returns>0, or what errno says.</returns>
    private static int Ask(int family, int level, int option, Span<byte> request)
    {
        int number = LibC.socket(family, LibC.SOCK_DGRAM | LibC.SOCK_CLOEXEC, 0);
        if (number < 0)
        {
            return LibC.errno;
        }

        using SafeFd fd = new(number);
        fixed (byte* pointer = request)
        {
            socklen_t length = (uint)request.Length;
            return LibC.getsockopt(number, level, option, pointer, &length) == 0 ? 0 : LibC.errno;
        }
    }

    /// <summary>Tables that are in this namespace.</summary>
    private static string[] Tables(string prefix)
    {
        try
        {
            return File.ReadAllText($"/proc/thread-self/net/{prefix}_tables_names").Split('\n', StringSplitOptions.RemoveEmptyEntries);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return [];
        }
    }

    /// <summary>Tables whose modules are loaded. A kernel that has them built in tells nobody, and nobody builds it so.</summary>
    private static string[] EbTables()
    {
        List<string> tables = [];
        foreach (string table in (ReadOnlySpan<string>)["filter", "nat", "broute"])
        {
            if (Directory.Exists($"/sys/module/ebtable_{table}"))
            {
                tables.Add(table);
            }
        }

        return [.. tables];
    }
}
