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

    private readonly Links _links = new();
    private readonly Dictionary<int, VifPort> _ports = [];
    private TimeSpan _retry = _firstRetry;
    private string _lastComplaint = "";

    /// <summary>When <see cref="Follow"/> is due though nothing has changed.</summary>
    public Deadline Due { get; private set; } = Deadline.Never;

    /// <summary>By their numbers.</summary>
    public IEnumerable<VifPort> Ports => _ports.Values.OrderBy(p => p.Vif);

    /// <summary>Packets within one second to a peer that are to be reported.</summary>
    public int PacketsPerSecond { get; set; }

    /// <summary>The vif, if it may have channels: it takes part, and is the one that Dom0 speaks of.</summary>
    public VifPort? Current(int vif) =>
        takesPart() && _ports.TryGetValue(vif, out VifPort? port) && introductions.Vifs.TryGetValue(vif, out MacAddress mac) && mac == port.Mac && port.IsInPlace
            ? port
            : null;

    /// <summary>Looks again at the next turn.</summary>
    public void LookAgain() => Due = Deadline.Now;

    /// <summary>Attaches to what is introduced and there.</summary>
    /// <returns>The vifs that were not attached to before.</returns>
    public IReadOnlyList<int> Follow(TimeSpan now)
    {
        Due = Deadline.Never;
        foreach (VifPort port in _ports.Values)
        {
            port.CheckPlace();
        }

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
                    _ports[vif] = new VifPort(vif, interfaceName, mac, _links, demands);
                    _retry = _firstRetry;
                    Log.Info($"vif {vif} is {interfaceName}, {mac}, divert by {_ports[vif].Divert.Rung}");
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
                Due = Deadline.At(now + _retry);
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
        foreach (VifPort port in _ports.Values.ToArray())
        {
            if (Current(port.Vif) is null && !isUsed(port.Vif))
            {
                port.Dispose();
                _ports.Remove(port.Vif);
                dropped = true;
            }
        }

        return dropped;
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

        _links.Dispose();
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
        if (_lastComplaint != message)
        {
            _lastComplaint = message;
            Log.Error(message);
        }
    }
}
