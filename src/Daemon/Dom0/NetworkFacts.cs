using XenLoop.Interop.Linux;

namespace XenLoop.Dom0;

/// <summary>What Dom0's kernel says of the ports of its switches and of what stands in the way of frames there, at one moment.</summary>
internal sealed class NetworkFacts
{
    /// <summary>By the interface's name.</summary>
    public Dictionary<string, SwitchPort> Ports { get; init; } = [];

    /// <summary>By the interface's index: what shapes or filters there, in words.</summary>
    public Dictionary<int, string> TrafficControl { get; init; } = [];

    /// <summary>By the interface's name, or with an asterisk how it begins: what filters there, in words.</summary>
    public Dictionary<string, string> DeviceFilters { get; init; } = [];

    /// <summary>What filters the frames of all bridges, in words; null for nothing.</summary>
    public string? BridgeFilter { get; init; }

    /// <summary>What filters the packets that bridges hand to iptables; null for nothing.</summary>
    public string? PacketFilter { get; init; }

    /// <summary>All bridges hand packets to iptables.</summary>
    public bool CallsIpTables { get; init; }

    /// <summary>What filters at an interface, in words; null for nothing.</summary>
    public string? DeviceFilterOf(string interfaceName) =>
        DeviceFilters.GetValueOrDefault(interfaceName)
        ?? DeviceFilters.FirstOrDefault(f => f.Key.EndsWith('*') && interfaceName.StartsWith(f.Key[..^1], StringComparison.Ordinal)).Value;

    /// <summary>What the qdiscs of all interfaces come to.</summary>
    /// <param name="qdiscs">Of all interfaces.</param>
    /// <param name="hasFilters">See <see cref="TrafficControl.HasFilters"/>.</param>
    public static Dictionary<int, string> DescribeQdiscs(List<TcQdisc> qdiscs, Predicate<TcQdisc> hasFilters)
    {
        Dictionary<int, string> found = [];
        foreach (TcQdisc qdisc in qdiscs)
        {
            // The qdisc ingress has no other use.
            string? what = qdisc.Limit ?? (qdisc.SharesFilters || qdisc.Kind == "ingress" || hasFilters(qdisc) ? "a tc filter" : null);
            if (what is not null)
            {
                found[qdisc.Interface] = what;
            }
        }

        return found;
    }

    /// <summary>What nftables' chains come to: what filters the frames of all bridges, the packets that bridges hand on, and those of single interfaces.</summary>
    public static (string? Frames, string? Packets, Dictionary<string, string> Devices) DescribeChains(List<NfChain> chains)
    {
        string? frames = null, packets = null;
        Dictionary<string, string> devices = [];
        foreach (NfChain chain in chains)
        {
            if (chain.Hook is not { } hook)
            {
                continue;
            }

            string name = $"nftables: {chain.Family.ToString().ToLowerInvariant()} {chain.Table} {chain.Name}";
            if (chain.Devices.Length > 0)
            {
                // Of netdev or inet, at ingress or egress: any rule counts there, as for frames.
                if (chain.Rules > 0 || chain.Policy != 1)
                {
                    Array.ForEach(chain.Devices, d => devices[d] = name);
                }
            }
            else if (IsForwarding(hook))
            {
                if (chain.Family == NfFamily.Bridge && (chain.Rules > 0 || chain.Policy != 1))
                {
                    frames = name;
                }
                else if (chain.Family is NfFamily.Ip or NfFamily.Ip6 or NfFamily.Inet or NfFamily.Arp && (chain.Policy != 1 || MayStop(chain, chains)))
                {
                    packets = name;
                }
            }
        }

        return (frames, packets, devices);
    }

    /// <summary>Prerouting, forward, postrouting: the same numbers in all families (NF_ARP_FORWARD, too). Input and output are Dom0's own.</summary>
    private static bool IsForwarding(uint hook) => hook is 0 or 2 or 4;

    private static bool MayStop(NfChain chain, List<NfChain> chains)
    {
        List<NfChain> reached = [chain];
        for (int i = 0; i < reached.Count; i++)
        {
            if (reached[i].MayStop)
            {
                return true;
            }

            foreach (string target in reached[i].Targets)
            {
                if (chains.Find(c => c.Family == chain.Family && c.Table == chain.Table && c.Name == target) is { } next && !reached.Contains(next))
                {
                    reached.Add(next);
                }
            }
        }

        return false;
    }
}
