using System.Text.Json;
using XenLoop.Control;
using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Ring;

namespace XenLoop.Guest;

/// <summary>What a channel needs of the guest it belongs to.</summary>
internal sealed record ChannelContext(
    IHypervisor Hypervisor, XenStore XenStore, DataLoop Loop, ushort Self, Offer Offer, uint RingBytes);

/// <summary>
/// One channel, from the introduction to its withdrawal: bootstrap, use, two-phase close, and again after a failure.
/// The states and who writes what are in docs/protocol.md. <see cref="Turn"/> looks at everything afresh each time
/// and moves as far as it can; it may be called too often, never too seldom.
/// </summary>
internal sealed class Channel
{
    private enum Step
    {
        /// <summary>Nothing is held. A new attempt may be due.</summary>
        Waiting,

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

    private const long CloseDeadlineMilliseconds = 2000;
    private const long FirstBackoffMilliseconds = 250;
    private const long LastBackoffMilliseconds = 30_000;
    // A channel that ran for so long was no failure: the next attempt starts at the first back-off again.
    private const long ProvenMilliseconds = 10_000;
    private const long DrainPollMilliseconds = 5;

    private readonly ChannelContext _context;
    private readonly VifPort _port;
    private readonly bool _listener;
    private readonly string _peerNode;

    private Step _step = Step.Waiting;
    private ulong _session;
    // The connector's: a session is tried once, for its port can be bound once.
    private ulong _usedSession;
    private ChannelMemory? _memory;
    private ChannelTap? _tap;
    private ChannelPath? _path;
    private int _slot = -1;
    private long _retryAt;
    private long _backoff = FirstBackoffMilliseconds;
    private long _stepSince;
    private long _upSince;
    private string _closeReason = "";
    private string _lastComplaint = "";
    // Kept while the channel has not proved itself: a peer that fails in the same way each time is logged once.
    private string _lastLogged = "";
    // The connector's end of a session, when XenStore would not take it: the listener waits for it.
    private ChannelState? _unsaid;
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
        port.Divert.Track(peerMac);
        context.XenStore.Watch(_peerNode, WatchToken);
    }

    public ChannelKey Key { get; }

    public MacAddress PeerMac { get; }

    /// <summary>False once the introduction is withdrawn: the channel closes and makes no new attempt.</summary>
    public bool Wanted { get; set; } = true;

    /// <summary>Withdrawn, closed, and nothing held any more: call <see cref="Retire"/> and forget it.</summary>
    public bool Finished => !Wanted && _step == Step.Waiting;

    /// <summary>The token of the watch on the peer's node.</summary>
    public string WatchToken { get; }

    /// <summary>When to call <see cref="Turn"/> again though nothing fires, as <see cref="Environment.TickCount64"/>;
    /// <see cref="long.MaxValue"/> for never.</summary>
    public long Due { get; private set; }

    /// <summary>The data loop gave the channel up.</summary>
    public bool Faulted => _path?.Fault is not null;

    /// <summary>Moves as far as possible.</summary>
    /// <param name="now">Milliseconds of <see cref="Environment.TickCount64"/>.</param>
    public void Turn(long now)
    {
        ChannelState? peer = ChannelState.Parse(_context.XenStore.ReadIfVisible(_peerNode));
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

        Due = _step switch
        {
            Step.Waiting when Wanted && _listener => _retryAt,
            Step.Waiting when Wanted && (CanConnect(peer) || _unsaid is not null) => _retryAt,
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

        _port.Divert.Forget(PeerMac);
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
            case Step.Waiting when Wanted && now >= _retryAt:
                if (_listener)
                {
                    Attempt(Listen, now);
                }
                else if (CanConnect(peer))
                {
                    Attempt(() => Connect(peer!.Value), now);
                }
                else if (_unsaid is { } closed && !TrySay(closed))
                {
                    BackOff(now, failed: true);
                }

                break;

            case Step.Listening when !Wanted:
                Release("no longer introduced", now, failed: false);
                break;

            case Step.Listening when samePeerSession && peer!.Value.Phase == ChannelPhase.Connected:
                Attempt(() => Accept(peer.Value, now), now);
                break;

            case Step.Listening when samePeerSession:
                Release($"the peer could not connect: {peer!.Value.Reason}", now, failed: true);
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

            case Step.Connected or Step.Running when !Wanted || peer!.Value.Phase is ChannelPhase.Closing or ChannelPhase.Closed:
                _closeReason = Wanted ? "the peer closes" : "no longer introduced";
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
                Release(_path!.Fault?.Message ?? _closeReason, now, failed: _path.Fault is PeerViolationException);
                break;
        }
    }

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

    private void Listen()
    {
        _session = (ulong)Random.Shared.NextInt64(long.MinValue, long.MaxValue);
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
        _session = peer.Session;
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
        _upSince = now;
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
            _memory.Dispose();
            _memory = null;
        }

        _usedSession = _session;
        if (wasUp && now - _upSince > ProvenMilliseconds)
        {
            _backoff = FirstBackoffMilliseconds;
            _lastLogged = "";
        }

        BackOff(now, failed);
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

        ChannelState closed = new(ChannelPhase.Closed, _session, Reason: reason);
        if (!TrySay(closed) && !_listener)
        {
            _unsaid = closed;
        }

        _step = Step.Waiting;
    }

    private void BackOff(long now, bool failed)
    {
        _retryAt = now + _backoff;
        if (failed)
        {
            _backoff = Math.Min(_backoff * 2, LastBackoffMilliseconds);
        }
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
    private bool TrySay(ChannelState state)
    {
        try
        {
            Say(state);
            return true;
        }
        catch (NativeException e)
        {
            if (IsNews(e.Message))
            {
                Log.Warning($"{Key}: {e.Message}");
            }

            return false;
        }
    }

    private void Say(ChannelState state)
    {
        _context.XenStore.Write(Key.OwnNode, state.ToString());
        _unsaid = null;
        if (!_revealed)
        {
            _context.XenStore.SetPermissions(Key.OwnNode, (_context.Self, XenStoreAccess.None), (Key.Peer, XenStoreAccess.Read));
            _revealed = true;
        }
    }
}
