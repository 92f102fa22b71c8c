using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Loop;
using XenLoop.Service;

namespace XenLoop.Dom0;

/// <summary>Reads <see cref="NetworkFacts"/> of Dom0's namespace, and knows when they have changed.</summary>
internal sealed class NetworkReader : IDisposable
{
    // A set of rules is put in place by many messages: read at the first of them, and not again at each.
    private static readonly TimeSpan _distance = TimeSpan.FromMilliseconds(200);

    private static readonly TimeSpan _retry = TimeSpan.FromSeconds(1);

    // The kernel tells nobody of legacy tables and of TCX programs.
    private static readonly TimeSpan _poll = TimeSpan.FromSeconds(5);

    private readonly NetlinkSocket _routes = new();
    private readonly TrafficControl _trafficControl = new();
    private readonly NetlinkMonitor _changes = new LinkMonitor(trafficControl: true);
    private readonly NetlinkSocket? _filters;
    private readonly NetlinkMonitor? _filterChanges;
    private TimeSpan _readAt = TimeSpan.MinValue;
    private TimeSpan _polledAt = TimeSpan.MinValue;
    private bool _portsChanged = true;
    private bool _filtersChanged = true;
    private bool _polls = true;
    private Dictionary<int, bool> _tcx = [];
    private bool _callsAnywhere;
    private string? _frames;
    private string? _packets;
    private Dictionary<string, string> _devices = [];
    private bool _legacy;
    // A look that was wanted too soon after another.
    private bool _wanted;

    public NetworkReader()
    {
        try
        {
            _filters = new NetlinkSocket(NetlinkSocket.NETLINK_NETFILTER);
            _filterChanges = new NetlinkMonitor(NetlinkSocket.NETLINK_NETFILTER, NfTables.Group);
        }
        catch (NativeException e)
        {
            // A kernel without nfnetlink has no rules either.
            Log.Info($"no changes of nftables are followed: {e.Message}");
        }
    }

    /// <summary>Readable when something may have changed.</summary>
    public IReadOnlyList<int> Descriptors => _filterChanges is null ? [_changes.FileDescriptor] : [_changes.FileDescriptor, _filterChanges.FileDescriptor];

    /// <summary>As they were read last.</summary>
    public NetworkFacts Facts { get; private set; } = new();

    /// <summary>They have been read once.</summary>
    public bool IsKnown { get; private set; }

    /// <summary>Reads them when something has changed, or it is time to look.</summary>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="introduced">Whether somebody relies on what nobody tells of.</param>
    /// <param name="look">Somebody is about to rely on it.</param>
    /// <returns>True when they were read.</returns>
    public bool Follow(TimeSpan now, bool introduced, bool look)
    {
        // A new vif may have the name of an old one, which was on another bridge: what is known of ports is never older than what XenStore says.
        bool moved = _changes.TakeChanges();
        _wanted |= look;
        bool poll = (_wanted && now >= _polledAt + _retry) || (introduced && _legacy && now >= _polledAt + _poll);
        _wanted &= !poll;
        _polledAt = poll ? now : _polledAt;
        _polls |= poll;
        _portsChanged |= moved | poll;
        _filtersChanged |= poll | (_filterChanges?.TakeChanges() == true);
        if (!(_portsChanged | _filtersChanged) || (!moved && now < _readAt + _distance))
        {
            return false;
        }

        _readAt = now;
        try
        {
            Read();
            (_portsChanged, _filtersChanged, _polls) = (false, false, false);
            IsKnown = true;
            return true;
        }
        catch (NativeException e)
        {
            // Mostly, something was changed in the midst of it. What is known counts until it is read again.
            _readAt = now + _retry;
            Log.Warning($"Dom0's network cannot be read, and is read again: {e.Message}");
            return false;
        }
    }

    /// <summary>When <see cref="Follow"/> is due though nothing fires.</summary>
    /// <param name="introduced">Whether somebody relies on what nobody tells of.</param>
    public Deadline Due(bool introduced) =>
        _portsChanged | _filtersChanged ? Deadline.At(_readAt + _distance) : _wanted ? Deadline.At(_polledAt + _retry) : introduced && _legacy ? Deadline.At(_polledAt + _poll) : Deadline.Never;

    public void Dispose()
    {
        _filterChanges?.Dispose();
        _filters?.Dispose();
        _changes.Dispose();
        _trafficControl.Dispose();
        _routes.Dispose();
    }

    private void Read()
    {
        Dictionary<string, SwitchPort> ports = SwitchPorts.List(_routes);
        HashSet<int> indices = [.. ports.Values.Select(p => p.Index)];
        // Of interfaces that are no ports, nobody asks.
        Dictionary<int, string> trafficControl = NetworkFacts.DescribeQdiscs(
            _trafficControl.ListQdiscs(TrafficControl.AllInterfaces), q => indices.Contains(q.Interface) && _trafficControl.HasFilters(q));
        bool calls = CallsIpTables("iptables") || CallsIpTables("ip6tables") || CallsIpTables("arptables");
        bool callsAnywhere = calls;
        Dictionary<int, bool> tcx = [];
        foreach (SwitchPort port in ports.Values)
        {
            // Two calls for each port are too many for each change of some other.
            bool known = _tcx.TryGetValue(port.Index, out bool has);
            tcx[port.Index] = has = known && !_polls ? has : HasTcx(port.Index);
            if (has)
            {
                trafficControl[port.Index] = "a TCX program";
            }

            callsAnywhere |= port.CallsIpTables;
        }

        _tcx = tcx;
        if (_filtersChanged || callsAnywhere != _callsAnywhere)
        {
            _callsAnywhere = callsAnywhere;
            ReadFilters();
        }

        Facts = new NetworkFacts
        {
            Ports = ports,
            TrafficControl = trafficControl,
            DeviceFilters = _devices,
            BridgeFilter = _frames,
            PacketFilter = _packets,
            CallsIpTables = calls,
        };
    }

    private void ReadFilters()
    {
        List<NfChain> chains = _filters is null ? [] : NfTables.ListChains(_filters);
        // What a host's own firewall and its containers have of rules may be long, and is mostly none of a bridge's business.
        chains.RemoveAll(c => !_callsAnywhere && c.Family is NfFamily.Ip or NfFamily.Ip6 or NfFamily.Arp);
        foreach (NfFamily family in (ReadOnlySpan<NfFamily>)[NfFamily.Inet, NfFamily.Ip, NfFamily.Arp, NfFamily.Netdev, NfFamily.Bridge, NfFamily.Ip6])
        {
            if (chains.Exists(c => c.Family == family && c.Hook is not null))
            {
                NfTables.ReadRules(_filters!, family, chains);
            }
        }

        (_frames, _packets, _devices) = NetworkFacts.DescribeChains(chains);
        _legacy = LegacyTables.Exist;
        if (_legacy)
        {
            _frames ??= LegacyTables.FindEbTables() is { } ebtable ? $"ebtables-legacy: {ebtable}" : null;
            _packets ??= LegacyTables.FindIpTables() is { } iptable ? $"iptables-legacy: {iptable}" : null;
            _packets ??= LegacyTables.FindIp6Tables() is { } ip6table ? $"ip6tables-legacy: {ip6table}" : null;
        }
    }

    private static bool HasTcx(int port)
    {
        try
        {
            return Bpf.ListTcxPrograms(port, BpfAttachType.BPF_TCX_INGRESS).Length + Bpf.ListTcxPrograms(port, BpfAttachType.BPF_TCX_EGRESS).Length > 0;
        }
        catch (NativeException e) when (e.Errno is Errno.EINVAL or Errno.ENODEV)
        {
            // The kernel is older than 6.6, or the port has gone.
            return false;
        }
    }

    /// <summary>There only while br_netfilter is loaded.</summary>
    private static bool CallsIpTables(string which)
    {
        try
        {
            return File.ReadAllText($"/proc/sys/net/bridge/bridge-nf-call-{which}").Trim() != "0";
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return false;
        }
    }
}
