using System.Globalization;
using System.Text.Json;
using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Guest.Channels;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Guest;

/// <summary>How a guest stands to channels.</summary>
internal enum Standing
{
    /// <summary>Its configuration says that it takes no part.</summary>
    Apart,

    /// <summary>It offers itself, and may have channels.</summary>
    Offering,

    /// <summary>It is about to be suspended: it closes its channels, and opens none.</summary>
    Quiescing,

    /// <summary>It has no channel any more, and has said so.</summary>
    Quiesced,

    /// <summary>The daemon ends.</summary>
    Stopping,
}

/// <summary>
/// The daemon in a guest: offers itself, follows Dom0's introductions, counts what goes to each peer introduced, and
/// keeps a channel to those with traffic.
/// </summary>
internal sealed class GuestRole : IRole
{
    // Longer than a channel's own deadlines (docs/protocol.md): drain, then close.
    private static readonly TimeSpan _shutdownTime = TimeSpan.FromMilliseconds(2500);

    // Before a suspend, which waits for it: for all channels together. What their peers have not taken by then is lost.
    // The more channels, the sooner, for each takes some milliseconds to be released after that.
    private const int LongestQuiesceMilliseconds = 1000;
    private const int ShortestQuiesceMilliseconds = 400;
    private const int ReleaseMilliseconds = 12;

    private const int DemandQueueBytes = 4096;

    private readonly TimeProvider _clock;
    private readonly XenStore _xenStore;
    private readonly WatchSet _watches;
    private readonly LinkMonitor _links = new(trafficControl: true, addresses: true);
    private readonly BpfRingBuffer _demands;
    private readonly DataLoop _loop;
    private readonly ChannelContext _context;
    private readonly Introductions _introductions;
    private readonly Vifs _vifs;
    private readonly ChannelTable _channels;
    private readonly DisabledPeers _disabled;
    private readonly GuestStatus _status;

    // Peers that call, or whose vif has come, since the last turn.
    private readonly HashSet<ChannelKey> _calls = [];

    // Indices, since the last turn.
    private readonly HashSet<int> _changedInterfaces = [];

    // Turns come while packets flow, and leave no garbage then.
    private readonly Func<int, bool> _usesVif;
    private readonly Func<Channel, bool> _isWanted;
    private readonly PeerChange _peerChanged;

    private GuestSettings _settings = new() { Enabled = false };
    private string _offer = "";
    private string? _quiesced;
    private bool _stopping;
    private int _domidFired;

    /// <param name="hypervisor">Stays open until after <see cref="Dispose"/>.</param>
    /// <param name="configuration">Of this guest.</param>
    /// <param name="mode">What the data loop does when idle.</param>
    /// <param name="ringBytes">Bytes of each ring of the channels this guest listens on.</param>
    /// <param name="faults">Signalled when the data loop gave a channel up: a turn is due.</param>
    /// <param name="clock">The monotonic clock.</param>
    public GuestRole(IHypervisor hypervisor, Configuration configuration, IdleMode mode, uint ringBytes, EventFd faults, TimeProvider clock)
    {
        _clock = clock;
        _xenStore = hypervisor.OpenXenStore();
        _watches = new WatchSet(_xenStore);
        _demands = new BpfRingBuffer("xenloop_demand", DemandQueueBytes);
        Descriptors = [_xenStore.FileDescriptor, _links.FileDescriptor, _demands.FileDescriptor];
        ushort self = ReadDomid() ?? throw new InvalidDataException("this domain has no \"domid\" node in XenStore");
        Features features = TapDevice.ProbeUso() ? Features.Uso : Features.None;
        _loop = new DataLoop(mode, GuestSettings.MostChannels, faults);
        _context = new ChannelContext(hypervisor, _xenStore, _watches, _loop, new Offer(Offer.CurrentVersion, features), ringBytes)
        {
            Self = self,
            CheckNotResumed = CheckNotResumed,
        };
        _introductions = new Introductions(_xenStore);
        _vifs = new Vifs(hypervisor, _introductions, _demands, () => Standing == Standing.Offering);
        _channels = new ChannelTable(_context);
        (_usesVif, _isWanted, _peerChanged) = (_channels.Uses, IsWanted, PeerChanged);
        _disabled = new DisabledPeers(_introductions, _channels, _calls, clock);
        _status = new GuestStatus(_introductions, _vifs, _channels, _context.Kept, _disabled);
        BeginAnew();
        _watches.Add(StorePaths.OwnIntroductions, _introductions.Note);
        _watches.Add(StorePaths.OwnDomid, _ => _domidFired++);
        Configure(configuration);
    }

    public string Activity => "offering this guest";

    public IReadOnlyList<int> Descriptors { get; }

    private Standing Standing =>
        _stopping ? Standing.Stopping
        : !_settings.Enabled ? Standing.Apart
        : _introductions.QuiesceRequest is null ? Standing.Offering
        : _introductions.QuiesceRequest != _quiesced ? Standing.Quiescing
        : Standing.Quiesced;

    public void AwaitThreads() => _loop.Invoke(static () => { });

    public void Register(ControlSocket control) => _disabled.Register(control);

    public void Configure(Configuration configuration)
    {
        _settings = configuration.Guest;
        _context.IdleTime = TimeSpan.FromSeconds(_settings.IdleSeconds);
        string offer = _settings.Enabled ? _context.Offer.ToString() : Offer.Off;
        if (offer != _offer)
        {
            _offer = offer;
            _xenStore.Write(StorePaths.OwnOffer, _offer);
            Log.Info(_settings.Enabled
                ? $"domain {_context.Self} offers itself (features {(uint)_context.Offer.Features:x}); waiting for Dom0's introductions"
                : $"domain {_context.Self} takes no part, as its configuration says");
        }

        _vifs.PacketsPerSecond = _settings.PacketsPerSecond;
        _vifs.TrackAll();
        // The vifs may be wanted again before Dom0 has noticed that they were not.
        _vifs.LookAgain();
        _channels.Configure(_settings, _clock.Now());
    }

    public Deadline Turn()
    {
        bool introduced = false, more;
        do
        {
            _watches.Drain();
            FollowResume();
            // Dom0 writes several nodes for one change: what fires while they are read is read before anything is done.
            more = !_stopping && _introductions.Read(_peerChanged);
            introduced |= more;
        }
        while (more);

        FollowQuiesce();

        TimeSpan now = _clock.Now();
        _disabled.Expire(now);
        if (_loop.TakeTraffic())
        {
            _vifs.LookSoon(now);
        }

        bool changed = _links.TakeChanges(_changedInterfaces);
        if (changed)
        {
            _channels.RemoveAddresses(_changedInterfaces);
        }

        if (changed | introduced | _vifs.Due.IsDue(now))
        {
            FollowVifs(introduced, now);
        }

        while (_demands.TryTake(out Demand demand))
        {
            Follow(demand, now);
        }

        AnswerCalls(now);
        bool retired = _channels.Turn(_isWanted, now);
        // What was in the way of a successor (another MAC address in the same place) is gone: look again.
        if (_vifs.Drop(_usesVif))
        {
            FollowVifs(introduced: true, now);
            AnswerCalls(now);
        }

        // Not before the last channel is closed, when that is what a suspend waits for.
        if (_channels.CloseBy.IsNever || _channels.Count == 0)
        {
            _context.Taps.Start();
        }

        if (Standing == Standing.Quiescing && _channels.Count == 0)
        {
            // The interfaces as well, while there is time: no other guest knows of them.
            if (!_context.Taps.IsIdle && !_channels.CloseBy.IsDue(now))
            {
                return Deadline.At(now + ChannelMachine.DrainPoll);
            }

            if (_context.Kept.Bytes > 0)
            {
                CheckNotResumed();
                _context.Kept.Clear();
            }

            _quiesced = _introductions.QuiesceRequest!;
            _xenStore.Write(StorePaths.OwnQuiesced, _quiesced);
            Log.Info("quiesced: nothing is shared with other guests until the suspend is over");
        }

        KeepLooking(now);
        _context.Kept.Look(now, CheckNotResumed);
        return retired ? Deadline.Now : _channels.Due.Or(_vifs.Due).Or(_context.Kept.Due).Or(_disabled.Due);
    }

    public void WriteStatus(Utf8JsonWriter json) => _status.Write(json, _context.Self, Standing, _settings, _clock.Now());

    /// <summary>Closes every channel in two phases, then removes every trace.</summary>
    public void Dispose()
    {
        // From here on no introduction counts, whatever still fires.
        _stopping = true;
        _introductions.Clear();
        _calls.Clear();
        Deadline deadline = Deadline.At(_clock.Now() + _shutdownTime);
        while (_channels.Count > 0 && !deadline.IsDue(_clock.Now()))
        {
            Turn();
            Thread.Sleep(2);
        }

        _channels.RetireAll(_clock.Now());
        _context.Taps.Wait(null);
        _context.Kept.Clear();
        _vifs.Dispose();
        _loop.Dispose();
        _demands.Dispose();
        _links.Dispose();
        _xenStore.Remove(StorePaths.OwnArea);
        _xenStore.Dispose();
    }

    /// <summary>Makes the guest's own area in XenStore. What a killed predecessor left goes first: peers see it go and drop their side.</summary>
    private void BeginAnew()
    {
        _xenStore.Remove(StorePaths.OwnArea);
        _xenStore.MakeDirectory(StorePaths.OwnArea);
        _xenStore.SetPermissions(StorePaths.OwnArea, (_context.Self, XenStoreAccess.None));
    }

    private ushort? ReadDomid() =>
        ushort.TryParse(_xenStore.Read(StorePaths.OwnDomid), NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid) ? domid : null;

    /// <summary>
    /// After a restore or a migration the home in XenStore is a new one, on the same or on another host, and mostly so is the domid.
    /// Who holds anything was not asked before.
    /// </summary>
    private void FollowResume()
    {
        // The first time is when the watch was set.
        if (_domidFired <= 1)
        {
            return;
        }

        _domidFired = 1;
        if (_channels.HoldsAnything)
        {
            Containment.Run();
        }

        ushort before = _context.Self;
        _context.Self = ReadDomid() ?? before;
        Log.Info($"resumed after a suspend: domain {before} is domain {_context.Self} now");
        // They only remember failures, of peers of another life.
        _channels.RetireAll(_clock.Now());
        BeginAnew();
        _xenStore.Write(StorePaths.OwnOffer, _offer);
    }

    /// <summary>
    /// To be called before a port is closed, for the watch that tells of a resume comes later than the first signs of it: does not
    /// return when the guest has another home in XenStore than when the channel was built.
    /// </summary>
    private void CheckNotResumed()
    {
        try
        {
            if (ReadDomid() is { } domid && domid == _context.Self && _xenStore.ReadIfVisible(StorePaths.OwnArea) is not null)
            {
                return;
            }
        }
        catch (NativeException)
        {
            // Without XenStore there is no knowing; no suspend takes it away.
            return;
        }

        Containment.Run();
    }

    private void PeerChanged(ChannelKey key, Introduction? before, Introduction? after)
    {
        _vifs.PeerChanged(key, before, after);
        if (after is { } peer && peer.Call != before?.Call)
        {
            _calls.Add(key);
        }
    }

    private void FollowQuiesce()
    {
        if (_quiesced is not null && _quiesced != _introductions.QuiesceRequest)
        {
            _xenStore.Remove(StorePaths.OwnQuiesced);
            _quiesced = null;
        }

        if (Standing is not Standing.Quiescing and not Standing.Stopping)
        {
            _channels.CloseBy = Deadline.Never;
        }
        else if (_channels.CloseBy.IsNever)
        {
            _channels.CloseBy = Deadline.At(_clock.Now() + (_stopping ? ChannelMachine.CloseTime : QuiesceTime));
        }
    }

    private TimeSpan QuiesceTime =>
        TimeSpan.FromMilliseconds(Math.Max(ShortestQuiesceMilliseconds, LongestQuiesceMilliseconds - (ReleaseMilliseconds * _channels.Count)));

    private void FollowVifs(bool introduced, TimeSpan now)
    {
        foreach (int vif in _vifs.Follow(_changedInterfaces, introduced, now))
        {
            _calls.UnionWith(_introductions.Peers.Keys.Where(k => k.Vif == vif));
        }

        _changedInterfaces.Clear();
    }

    /// <summary>
    /// Programs of TCX and sockets that capture come and go without a notification. The data thread tells of the next packet, and then
    /// is the time to look; a vif with an obstacle has no packets there, so while a peer asks for a channel it is looked at by the clock.
    /// </summary>
    private void KeepLooking(TimeSpan now)
    {
        if (_vifs.AnyObstacleMatters(_usesVif))
        {
            _vifs.LookSoon(now);
        }
        else if (_channels.Count > 0 && !_vifs.WillLook)
        {
            _loop.TellOfTraffic();
        }
    }

    /// <summary>Answers peers' calls; a peer's node tells whether its call still stands.</summary>
    private void AnswerCalls(TimeSpan now)
    {
        foreach (ChannelKey key in _calls)
        {
            if (_introductions.Peers.TryGetValue(key, out Introduction peer) && peer.Call != 0 && !_disabled.Contains(peer.Mac))
            {
                _ = _vifs.LookNow(now);
                _channels.Open(key, peer, _vifs.Current(key.Vif), now)?.Turn(now);
            }
        }

        _calls.Clear();
    }

    private void Follow(Demand demand, TimeSpan now)
    {
        foreach ((ChannelKey key, Introduction peer) in _introductions.Peers)
        {
            if (key.Vif == demand.Vif && peer.Mac.Bits == demand.Address && _vifs.Current(key.Vif) is { } port)
            {
                _ = _vifs.LookNow(now);
                if (port.Obstacle is null && !_disabled.Contains(peer.Mac) && _channels.Open(key, peer, port, now, Math.Max(demand.PacketsBefore, (uint)_settings.PacketsPerSecond)) is { } channel)
                {
                    channel.Demand(now);
                    channel.Turn(now);
                }

                return;
            }
        }
    }

    private bool IsWanted(Channel channel) =>
        _vifs.Current(channel.Key.Vif) is not null && _introductions.Peers.TryGetValue(channel.Key, out Introduction peer)
        && peer.Mac == channel.PeerMac && peer.Sources == channel.PeerSources && peer.Mtu == channel.PeerMtu && !_disabled.Contains(peer.Mac);
}
