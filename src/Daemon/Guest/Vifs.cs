using XenLoop.Guest.Channels;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Service;

namespace XenLoop.Guest;

/// <summary>
/// This guest's vifs: attaches the divert to those that are introduced and have their interface, and detaches it from those that
/// are not, or not the same, any more; and counts there what goes to each peer.
/// </summary>
/// <param name="hypervisor">Knows their interfaces.</param>
/// <param name="introductions">Which take part, and whom they may meet.</param>
/// <param name="demands">Gets the reports of packets.</param>
/// <param name="takesPart">False while this guest is to have no channels: no vif counts as current then.</param>
internal sealed class Vifs(IHypervisor hypervisor, Introductions introductions, BpfRingBuffer demands, Func<bool> takesPart) : IDisposable
{
    // What cannot be attached to (a kernel without BPF, say) is tried again when something changes, and after this at first.
    private static readonly TimeSpan _firstRetry = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan _lastRetry = TimeSpan.FromMinutes(5);

    // A look costs some system calls; what happens without a notification is found once in this time, while packets move.
    private static readonly TimeSpan _lookDistance = TimeSpan.FromMilliseconds(300);

    // Not in the way of the packets that give the reason.
    private static readonly TimeSpan _lookDelay = TimeSpan.FromMilliseconds(20);

    private readonly Links _links = new();
    private readonly TrafficControl _trafficControl = new();
    private readonly Dictionary<int, string> _told = [];
    private readonly Dictionary<int, VifPort> _ports = [];
    private TimeSpan _retry = _firstRetry;
    private string _lastComplaint = "";
    private Deadline _attachDue = Deadline.Never;
    private Deadline _lookDue = Deadline.Never;
    private TimeSpan _lookedAt;

    /// <summary>When <see cref="Follow"/> is due though nothing has changed.</summary>
    public Deadline Due => _attachDue.Or(_lookDue);

    /// <summary>What is wrong with a vif, or a peer on it, since <see cref="Follow"/> was called last.</summary>
    public string? Complaint { get; private set; }

    /// <summary>By their numbers.</summary>
    public IEnumerable<VifPort> Ports => _ports.Values.OrderBy(p => p.Vif);

    /// <summary>Packets within one second to a peer that are to be reported.</summary>
    public int PacketsPerSecond { get; set; }

    /// <summary>The vif, if it takes part, and is the one that Dom0 speaks of. It may have channels while it has no <see cref="VifPort.Obstacle"/>.</summary>
    public VifPort? Current(int vif) =>
        takesPart() && _ports.TryGetValue(vif, out VifPort? port) && introductions.Vifs.TryGetValue(vif, out MacAddress mac) && mac == port.Mac && port.IsInPlace
            ? port
            : null;

    /// <summary>Looks for vifs at the next turn.</summary>
    public void LookAgain() => _attachDue = Deadline.Now;

    /// <summary>Looks at all that there are soon: packets move, or have a reason to.</summary>
    public void LookSoon(TimeSpan now)
    {
        TimeSpan earliest = now + _lookDelay, next = _lookedAt + _lookDistance;
        _lookDue = _lookDue.Or(Deadline.At(next > earliest ? next : earliest));
    }

    /// <summary>A look at all that there are is due, or will be.</summary>
    public bool WillLook => !_lookDue.IsNever;

    /// <summary>Looks at all that there are, if the last look was not just now.</summary>
    /// <returns>True when it has.</returns>
    public bool LookNow(TimeSpan now)
    {
        if (now - _lookedAt < _lookDistance)
        {
            return false;
        }

        Look(now, null);
        return true;
    }

    /// <summary>Attaches to what is introduced and there.</summary>
    /// <param name="changed">Indices of interfaces that have changed. See <see cref="NetlinkMonitor.TakeChanges"/>.</param>
    /// <param name="introduced">There may be others to attach to than before.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <returns>The vifs that were not attached to before.</returns>
    public IReadOnlyList<int> Follow(HashSet<int> changed, bool introduced, TimeSpan now)
    {
        if (changed.Count > 0)
        {
            Look(now, changed);
        }

        if (_lookDue.IsDue(now))
        {
            Look(now, null);
        }

        // A look is no reason to try again what was refused.
        if (!introduced && changed.Count == 0 && !_attachDue.IsDue(now))
        {
            return [];
        }

        _attachDue = Deadline.Never;
        Complaint = null;
        List<int> added = [];
        foreach ((int vif, MacAddress mac) in introductions.Vifs)
        {
            if (!takesPart() || _ports.ContainsKey(vif))
            {
                continue;
            }

            try
            {
                // A vif that Dom0 introduces may not have its interface yet (hot-plug): the kernel tells when it has.
                if (hypervisor.FindVifInterface(vif) is { } interfaceName)
                {
                    _ports[vif] = new VifPort(vif, interfaceName, mac, _links, _trafficControl, demands);
                    _retry = _firstRetry;
                    Log.Info($"vif {vif} is {interfaceName}, {mac}, divert by {_ports[vif].Divert.Rung}");
                    Tell(_ports[vif]);
                    added.Add(vif);
                    foreach ((ChannelKey key, Introduction peer) in introductions.Peers)
                    {
                        if (key.Vif == vif)
                        {
                            Track(key, peer.Mac);
                        }
                    }
                }
            }
            catch (NativeException e)
            {
                Complain($"vif {vif} stays on netfront: {e.Message}");
                _attachDue = Deadline.At(now + _retry);
                _retry = _retry * 2 < _lastRetry ? _retry * 2 : _lastRetry;
            }
        }

        return added;
    }

    /// <summary>Detaches from what is not current, as soon as no channel needs it.</summary>
    /// <returns>True when there was one.</returns>
    public bool Drop(Func<int, bool> isUsed)
    {
        bool dropped = false;
        foreach ((int vif, VifPort port) in _ports)
        {
            if (Current(vif) is null && !isUsed(vif))
            {
                port.Dispose();
                // The enumeration may go on.
                _ports.Remove(vif);
                _told.Remove(vif);
                dropped = true;
            }
        }

        return dropped;
    }

    /// <summary>Whether somebody has a use for a vif with an obstacle.</summary>
    public bool AnyObstacleMatters(Func<int, bool> isUsed)
    {
        foreach ((int vif, VifPort port) in _ports)
        {
            if (port.Obstacle is not null && isUsed(vif))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>Counts what goes to the peers as Dom0 tells of them now. See <see cref="PeerChange"/>.</summary>
    public void PeerChanged(ChannelKey key, Introduction? before, Introduction? after)
    {
        if (before?.Mac == after?.Mac)
        {
            return;
        }

        if (before is { } gone && Current(key.Vif) is { } port && !introductions.Peers.Any(p => p.Key.Vif == key.Vif && p.Value.Mac == gone.Mac))
        {
            port.Divert.Forget(gone.Mac);
        }

        if (after is { } peer)
        {
            Track(key, peer.Mac);
        }
    }

    /// <summary>Counts the packets to all peers at the present rate.</summary>
    public void TrackAll()
    {
        foreach ((ChannelKey key, Introduction peer) in introductions.Peers)
        {
            Track(key, peer.Mac);
        }
    }

    public void Dispose()
    {
        foreach (VifPort port in _ports.Values)
        {
            port.Dispose();
        }

        _trafficControl.Dispose();
        _links.Dispose();
    }

    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="changed">What rtnetlink tells of; null to look for what it does not tell of.</param>
    private void Look(TimeSpan now, HashSet<int>? changed)
    {
        if (changed is null)
        {
            (_lookedAt, _lookDue) = (now, Deadline.Never);
        }

        foreach (VifPort port in _ports.Values)
        {
            if (changed is null ? port.HasChanged() : changed.Contains(port.Divert.InterfaceIndex) || changed.Contains(LinkMonitor.Any))
            {
                port.Look();
                Tell(port);
            }

            if (changed is { Count: > 0 })
            {
                port.LookAtTaps(changed);
            }
        }
    }

    /// <summary>Each obstacle once, though it comes and goes.</summary>
    private void Tell(VifPort port)
    {
        bool known = _told.TryGetValue(port.Vif, out string? told);
        if (port.Obstacle is { } obstacle && obstacle != told)
        {
            _told[port.Vif] = obstacle;
            Log.Warning($"vif {port.Vif} ({port.InterfaceName}) stays on netfront while this lasts: {obstacle}");
        }
        else if (port.Obstacle is null && known && told != "")
        {
            _told[port.Vif] = "";
            Log.Info($"vif {port.Vif} ({port.InterfaceName}) may have channels again");
        }
    }

    /// <summary>Counts the packets to a peer, if its vif's interface is there: else that comes later.</summary>
    private void Track(ChannelKey key, MacAddress mac)
    {
        try
        {
            Current(key.Vif)?.Divert.Track(mac, PacketsPerSecond);
        }
        catch (NativeException e)
        {
            Complain($"{key} stays on netfront: {e.Message}");
        }
    }

    private void Complain(string message)
    {
        Complaint = message;
        if (_lastComplaint != message)
        {
            _lastComplaint = message;
            Log.Error(message);
        }
    }
}
