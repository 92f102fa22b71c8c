using System.Text.Json;
using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Ring;
using XenLoop.Service;

namespace XenLoop.Guest;

/// <summary>What a channel needs of the guest it belongs to.</summary>
internal sealed record ChannelContext(
    IHypervisor Hypervisor, XenStore XenStore, DataLoop Loop, Offer Offer, uint RingBytes)
{
    /// <summary>This guest's domid. It becomes another by restore and migration, when there is no channel.</summary>
    public ushort Self { get; set; }

    /// <summary>A channel that carries nothing for so long is dropped.</summary>
    public long IdleMilliseconds { get; set; }

    /// <summary>To be called before anything of the hypervisor's is given back: after a suspend it must not be.</summary>
    public required Action CheckNotResumed { get; init; }
}

/// <summary>
/// One channel, from the first demand until nobody needs it: bootstrap, use, two-phase close, and again after a failure.
/// The states and who writes what are in docs/protocol.md. <see cref="Turn"/> looks at everything afresh each time
/// and moves as far as it can; it may be called too often, never too seldom.
/// </summary>
internal sealed class Channel
{
    private enum Step
    {
        /// <summary>Nothing is held. A new attempt may be due.</summary>
        Waiting,

        /// <summary>Connector: asked the listener to listen.</summary>
        Calling,

        /// <summary>Listener: memory granted, the connector not there yet.</summary>
        Listening,

        /// <summary>Connector: receiving; the listener has not yet said that it is.</summary>
        Connected,

        /// <summary>Both receive; packets are diverted.</summary>
        Running,

        /// <summary>No longer diverting; emptying the TAP into the ring.</summary>
        Draining,

        /// <summary>Said "closing"; emptying the receive ring until the peer says it, too.</summary>
        Closing,
    }

    private const long AnswerDeadlineMilliseconds = 5000;
    private const long CloseDeadlineMilliseconds = 2000;
    private const long FirstBackoffMilliseconds = 250;
    private const long LastBackoffMilliseconds = 30_000;
    // The divert reports packets to a peer once a second: what is forgotten sooner would start at the first back-off each time.
    private const long ShortestMemoryMilliseconds = 2000;
    // For a peer that connects and leaves over and over: it may be a daemon under repair, or a guest that wants our time.
    private const long LastRestlessBackoffMilliseconds = 4000;
    // A channel that ran for so long was no failure: the next attempt starts at the first back-off again.
    private const long ProvenMilliseconds = 10_000;
    private const long DrainPollMilliseconds = 5;
    // Looks at a running channel within the time after which it counts as idle: one wake-up each.
    private const int IdleLooks = 4;

    private readonly ChannelContext _context;
    private readonly VifPort _port;
    private readonly bool _listener;
    private readonly string _peerNode;

    private Step _step = Step.Waiting;
    private ulong _session;
    // The connector's: a session is tried once, for its port can be bound once.
    private ulong _usedSession;
    // The listener's: the connector's call that was answered last.
    private ulong _answeredCall;
    private bool _demanded;
    private bool _attemptDue;
    private ChannelMemory? _memory;
    private ChannelTap? _tap;
    private ChannelPath? _path;
    private int _slot = -1;
    private long _retryAt;
    private long _forgetAt;
    private long _backoff = FirstBackoffMilliseconds;
    private long _stepSince;
    private long _upSince;
    private string? _dropReason;
    private string _closeReason = "";
    private long _lookAt;
    private int _quietLooks;
    private ulong _movedAtLook;
    private ulong _movedAtCensus;
    private long _censusAt;
    private double _rate;
    private string _lastComplaint = "";
    // Kept while the channel has not proved itself: a peer that fails in the same way each time is logged once.
    private string _lastLogged = "";
    private bool _revealed;

    public Channel(ChannelContext context, ChannelKey key, VifPort port, MacAddress peerMac)
    {
        _context = context;
        _port = port;
        Key = key;
        PeerMac = peerMac;
        _listener = context.Self < key.Peer;
        _peerNode = key.PeerNode(context.Self);
        WatchToken = $"peer {key}";
        context.XenStore.Watch(_peerNode, WatchToken);
    }

    public ChannelKey Key { get; }

    public MacAddress PeerMac { get; }

    /// <summary>False once the introduction is withdrawn: the channel closes and makes no new attempt.</summary>
    public bool Wanted { get; set; } = true;

    /// <summary>Bytes of the rings; before they are there, what they will have.</summary>
    public long MemoryBytes => 2L * (_memory?.RingBytes ?? _context.RingBytes);

    /// <summary>Nothing is held; it is kept for the distance to the next attempt.</summary>
    public bool IsWaiting => _step == Step.Waiting;

    /// <summary>Both sides divert.</summary>
    public bool IsRunning => _step == Step.Running;

    /// <summary>Running, and for so long that dropping it would not be restless.</summary>
    public bool IsProven(long now) => _step == Step.Running && now - _upSince > ProvenMilliseconds;

    /// <summary>Nobody needs it, and nothing is held any more: call <see cref="Retire"/> and forget it. What failed is
    /// remembered for a while, so that the next attempt keeps its distance.</summary>
    public bool IsFinished(long now) => _step == Step.Waiting && (!Wanted || (!_attemptDue && now >= _forgetAt));

    /// <summary>The token of the watch on the peer's node.</summary>
    public string WatchToken { get; }

    /// <summary>When to call <see cref="Turn"/> again though nothing fires, as <see cref="Environment.TickCount64"/>;
    /// <see cref="long.MaxValue"/> for never.</summary>
    public long Due { get; private set; }

    /// <summary>The data loop gave the channel up.</summary>
    public bool Faulted => _path?.Fault is not null;

    /// <summary>This side has packets for the peer: an attempt is due.</summary>
    public void Demand() => _demanded = true;

    /// <summary>Closes the channel in two phases at the next turn, if it runs.</summary>
    public void Drop(string reason) => _dropReason ??= reason;

    /// <summary>The time after which a channel counts as idle is another one.</summary>
    public void IdleTimeChanged(long now)
    {
        if (_step == Step.Running)
        {
            Due = _lookAt = Math.Min(_lookAt, now + (_context.IdleMilliseconds / IdleLooks));
        }
    }

    /// <summary>Packets a second since the last call, or over a longer time if that was a moment ago.</summary>
    public double TakeRate(long now)
    {
        const long ShortestMilliseconds = 1000;
        if (now - _censusAt >= ShortestMilliseconds)
        {
            ulong moved = Moved();
            _rate = (moved - _movedAtCensus) * 1000.0 / (now - _censusAt);
            _movedAtCensus = moved;
            _censusAt = now;
        }

        return _rate;
    }

    /// <summary>Moves as far as possible.</summary>
    /// <param name="now">Milliseconds of <see cref="Environment.TickCount64"/>.</param>
    public void Turn(long now)
    {
        ChannelState? peer = ChannelState.Parse(_context.XenStore.ReadIfVisible(_peerNode));
        LookForIdleness(now);
        // Each pass takes at most one step; a step may make the next one possible.
        Step before;
        do
        {
            before = _step;
            Advance(peer, now);
            if (_step != before)
            {
                _stepSince = now;
            }
        }
        while (_step != before);

        _attemptDue = _step == Step.Waiting && Wanted && (_demanded || IsCalled(peer) || CanConnect(peer));
        Due = _step switch
        {
            Step.Waiting => _attemptDue ? _retryAt : _forgetAt,
            Step.Calling or Step.Listening or Step.Connected => _stepSince + AnswerDeadlineMilliseconds,
            Step.Running => _lookAt,
            Step.Draining => now + DrainPollMilliseconds,
            Step.Closing => _stepSince + CloseDeadlineMilliseconds,
            _ => long.MaxValue,
        };
    }

    /// <summary>Leaves nothing behind: releases what is held without ceremony, removes the own node.</summary>
    public void Retire()
    {
        if (_step != Step.Waiting)
        {
            Release("the daemon ends", now: 0, failed: false);
        }

        _context.XenStore.Unwatch(_peerNode, WatchToken);
        _context.XenStore.Remove(Key.OwnNode);
    }

    public void WriteStatus(Utf8JsonWriter json)
    {
        DivertCounters divert = _port.Divert.Read(PeerMac);
        json.WriteStartObject();
        json.WriteNumber("domid", Key.Peer);
        json.WriteNumber("vif", Key.PeerVif);
        json.WriteString("mac", PeerMac.ToString());
        json.WriteString("state", _step == Step.Running && _path!.Stalled ? "stalled" : _step.ToString().ToLowerInvariant());
        json.WriteString("role", _listener ? "listener" : "connector");
        json.WriteNumber("packets_seen", divert.Seen);
        json.WriteNumber("packets_diverted", divert.Diverted);
        if (_path is { } path)
        {
            json.WriteString("tap", _tap!.Device.Name);
            json.WriteNumber("ring_bytes", _memory!.RingBytes);
            json.WriteNumber("sent_packets", path.Counters.SentPackets);
            json.WriteNumber("sent_bytes", path.Counters.SentBytes);
            json.WriteNumber("received_packets", path.Counters.ReceivedPackets);
            json.WriteNumber("received_bytes", path.Counters.ReceivedBytes);
            json.WriteNumber("receive_errors", path.Counters.ReceiveErrors);
            json.WriteNumber("notifications", path.Counters.Notifications);
            json.WriteNumber("stalls", path.Counters.Stalls);
        }

        if (_lastComplaint.Length > 0)
        {
            json.WriteString("last_error", _lastComplaint);
        }

        json.WriteEndObject();
    }

    private void Advance(ChannelState? peer, long now)
    {
        bool samePeerSession = peer?.Session == _session;
        switch (_step)
        {
            case Step.Waiting or Step.Calling when Wanted && now >= _retryAt && CanConnect(peer):
                Attempt(() => Connect(peer!.Value), now);
                break;

            case Step.Waiting when Wanted && now >= _retryAt && (_demanded || IsCalled(peer)):
                if (IsCalled(peer))
                {
                    _answeredCall = peer!.Value.Session;
                }

                Attempt(_listener ? Listen : Call, now);
                break;

            case Step.Calling or Step.Listening when !Wanted:
                Release("no longer introduced", now, failed: false);
                break;

            case Step.Calling when Expired(now):
                Release($"domain {Key.Peer} does not answer the call", now, failed: true);
                break;

            case Step.Listening when samePeerSession && peer!.Value.Phase == ChannelPhase.Connected:
                Attempt(() => Accept(peer.Value, now), now);
                break;

            case Step.Listening when samePeerSession:
                Release($"the peer could not connect: {peer!.Value.Reason}", now, failed: true);
                break;

            case Step.Listening or Step.Connected when Expired(now):
                Release($"domain {Key.Peer} does not answer", now, failed: true);
                break;

            case Step.Connected when samePeerSession && peer!.Value.Phase == ChannelPhase.Connected:
                StartDiverting(now);
                break;

            case Step.Connected or Step.Running when _path!.Fault is { } fault:
                Release(fault.Message, now, failed: fault is not PeerGoneException);
                break;

            case Step.Connected or Step.Running or Step.Draining or Step.Closing when !samePeerSession:
                Release("the peer's side is gone", now, failed: false);
                break;

            case Step.Connected or Step.Running when !Wanted || _dropReason is not null || peer!.Value.Phase is ChannelPhase.Closing or ChannelPhase.Closed:
                _closeReason = !Wanted ? "no longer introduced" : _dropReason ?? "the peer closes";
                StopDiverting();
                // What another CPU was about to divert is in the TAP afterwards, and is drained with the rest.
                VifDivert.WaitForPackets();
                _step = Step.Draining;
                break;

            case Step.Draining when _path!.Fault is not null || TapIsDrained() || now - _stepSince > CloseDeadlineMilliseconds:
                TrySay(new ChannelState(ChannelPhase.Closing, _session));
                _step = Step.Closing;
                break;

            case Step.Closing when peer!.Value.Phase == ChannelPhase.Closed
                // The connector owns no memory: once the listener has stopped producing, it may drain and go.
                || (!_listener && peer.Value.Phase == ChannelPhase.Closing)
                || _path!.Fault is not null
                || now - _stepSince >= CloseDeadlineMilliseconds:
                // A peer that has unmapped already looks as if it had died.
                Release(_path!.Fault is null or PeerGoneException ? _closeReason : _path.Fault.Message, now, failed: _path.Fault is PeerViolationException);
                break;
        }
    }

    private bool Expired(long now) => now - _stepSince >= AnswerDeadlineMilliseconds;

    private ulong Moved() => _path is { } path ? path.Counters.SentPackets + path.Counters.ReceivedPackets : 0;

    private void LookForIdleness(long now)
    {
        if (_step != Step.Running || now < _lookAt)
        {
            return;
        }

        ulong moved = Moved();
        _quietLooks = moved == _movedAtLook ? _quietLooks + 1 : 0;
        _movedAtLook = moved;
        _lookAt = now + (_context.IdleMilliseconds / IdleLooks);
        if (_quietLooks >= IdleLooks)
        {
            Drop("idle");
        }
    }

    private bool IsCalled(ChannelState? peer) =>
        _listener && peer is { Phase: ChannelPhase.Calling } && peer.Value.Session != _answeredCall;

    private bool CanConnect(ChannelState? peer) =>
        !_listener && peer is { Phase: ChannelPhase.Listening } && peer.Value.Session != _usedSession;

    private void Attempt(Action step, long now)
    {
        try
        {
            step();
        }
        catch (Exception e) when (e is NativeException or PeerViolationException)
        {
            Release(e.Message, now, failed: true);
        }
    }

    private void Call()
    {
        _session = NewSession();
        Say(new ChannelState(ChannelPhase.Calling, _session));
        _step = Step.Calling;
    }

    private static ulong NewSession() => (ulong)Random.Shared.NextInt64(1, long.MaxValue);

    private void Listen()
    {
        _session = NewSession();
        _memory = ChannelMemory.Listen(_context.Hypervisor, Key.Peer, _session, _context.RingBytes);
        Say(new ChannelState(ChannelPhase.Listening, _session, _context.Offer, _memory.GrantReference, _memory.Events.Port));
        _step = Step.Listening;
    }

    private void Accept(ChannelState peer, long now)
    {
        RequireVersion(peer.Offer);
        OpenPath(peer.Offer);
        Say(new ChannelState(ChannelPhase.Connected, _session));
        StartDiverting(now);
    }

    private void Connect(ChannelState peer)
    {
        _session = _usedSession = peer.Session;
        RequireVersion(peer.Offer);
        _memory = ChannelMemory.Connect(_context.Hypervisor, Key.Peer, _session, peer.GrantReference, peer.Port);
        OpenPath(peer.Offer);
        Say(new ChannelState(ChannelPhase.Connected, _session, _context.Offer));
        _step = Step.Connected;
    }

    private unsafe void OpenPath(Offer peer)
    {
        _slot = _port.TakeSlot();
        if (_slot < 0)
        {
            throw new PeerViolationException("every slot of the divert is in use; the channel waits for another to close");
        }

        // What this TAP hands over goes to the peer's TAP as it is: only what both can take.
        bool uso = (_context.Offer.Features & peer.Features & Features.Uso) != 0;
        _tap = _port.OpenTap(Key.TapName, uso);
        _path = new ChannelPath(_tap.Device, _memory!.Events, _memory.CreateProducer(), _memory.CreateConsumer(), _memory.PeerAlive,
            _port.Divert.Stamp(_slot), _port.Mac, PeerMac);
        _context.Loop.Add(_path);
    }

    private void StartDiverting(long now)
    {
        _port.Divert.Connect(PeerMac, _tap!.Device.Index, _slot);
        _port.Divert.Stamp(_slot).Open();
        _step = Step.Running;
        _upSince = _censusAt = now;
        _movedAtLook = _movedAtCensus = 0;
        _quietLooks = 0;
        _lookAt = now + (_context.IdleMilliseconds / IdleLooks);
        _lastComplaint = "";
        Log.Info($"channel up: {Key}, {(_listener ? "listener" : "connector")}, rings of {_memory!.RingBytes / 1024} KiB");
    }

    private void StopDiverting()
    {
        _port.Divert.Stamp(_slot).Block();
        _port.Divert.Disconnect(PeerMac);
    }

    private bool TapIsDrained()
    {
        ChannelPath path = _path!;
        bool drained = false;
        _context.Loop.Invoke(() =>
        {
            try
            {
                drained = path.DrainTap();
            }
            catch (Exception e) when (e is NativeException or PeerViolationException)
            {
                path.GiveUp(e);
            }
        });
        return drained;
    }

    /// <summary>Gives everything back and says so. Safe at any step; the peer may be dead.</summary>
    private void Release(string reason, long now, bool failed)
    {
        bool wasUp = _step is Step.Running or Step.Draining or Step.Closing;
        if (_path is { } path)
        {
            StopDiverting();
            _context.Loop.Remove(path);
            if (path.Fault is null or PeerGoneException)
            {
                // The thread that pumped has let go of it: what the peer left is taken here, and nothing is lost.
                TryDrain(path);
            }

            _path = null;
        }

        if (_slot >= 0)
        {
            _port.ReturnSlot(_slot);
            _slot = -1;
        }

        _tap?.Dispose();
        _tap = null;
        if (_memory is not null)
        {
            _context.CheckNotResumed();
            _memory.Dispose();
            _memory = null;
        }

        if (wasUp && now - _upSince > ProvenMilliseconds)
        {
            _backoff = FirstBackoffMilliseconds;
            _lastLogged = "";
        }

        bool restless = wasUp && !failed && Wanted && _dropReason is null && now - _upSince <= ProvenMilliseconds;
        BackOff(now, failed ? LastBackoffMilliseconds : restless ? LastRestlessBackoffMilliseconds : 0);
        _demanded = false;
        _dropReason = null;
        if (failed)
        {
            _lastComplaint = reason;
            if (IsNews(reason))
            {
                Log.Warning($"channel closed: {Key}: {reason}. Traffic goes by netfront; next attempt in {_retryAt - now} ms");
            }
        }
        else if (wasUp)
        {
            Log.Info($"channel closed: {Key}: {reason}");
        }

        TrySay(new ChannelState(ChannelPhase.Closed, _session, Reason: reason));
        _step = Step.Waiting;
    }

    /// <param name="now">See <see cref="Turn"/>.</param>
    /// <param name="longest">Up to this each attempt doubles the distance to the next; 0: it stays.</param>
    private void BackOff(long now, long longest)
    {
        _retryAt = now + _backoff;
        _backoff = Math.Max(_backoff, Math.Min(_backoff * 2, longest));
        _forgetAt = _retryAt + (longest > 0 ? Math.Max(_backoff, ShortestMemoryMilliseconds) : 0);
    }

    /// <summary>False for what was logged last. Numbers make no difference: a peer can choose others each time.</summary>
    private bool IsNews(string message)
    {
        string reason = string.Concat(message.Where(c => !char.IsAsciiHexDigit(c)));
        bool news = reason != _lastLogged;
        _lastLogged = reason;
        return news;
    }

    private static void TryDrain(ChannelPath path)
    {
        try
        {
            path.DrainRing();
        }
        catch (PeerViolationException)
        {
            // The channel is closing anyway.
        }
    }

    private static void RequireVersion(Offer peer)
    {
        if (peer.Version != Offer.CurrentVersion)
        {
            throw new PeerViolationException($"the peer speaks version {peer.Version}, this daemon {Offer.CurrentVersion}; update the older one");
        }
    }

    /// <summary>On the way out, what cannot be said (XenStore is full, say) must not keep anything from being released.</summary>
    private void TrySay(ChannelState state)
    {
        try
        {
            Say(state);
        }
        catch (NativeException e)
        {
            if (IsNews(e.Message))
            {
                Log.Warning($"{Key}: {e.Message}");
            }
        }
    }

    private void Say(ChannelState state)
    {
        if (!_revealed)
        {
            // Before it says anything: who is told by Dom0 that there is a call must be able to read it.
            _context.XenStore.MakeDirectory(Key.OwnNode);
            _context.XenStore.SetPermissions(Key.OwnNode, (_context.Self, XenStoreAccess.None), (Key.Peer, XenStoreAccess.Read));
            _revealed = true;
        }

        _context.XenStore.Write(Key.OwnNode, state.ToString());
    }
}
