using System.Text.Json;
using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Service;

namespace XenLoop.Guest.Channels;

/// <summary>What a channel needs of the guest it belongs to.</summary>
internal sealed record ChannelContext(
    IHypervisor Hypervisor, XenStore XenStore, WatchSet Watches, DataLoop Loop, Offer Offer, uint RingBytes)
{
    /// <summary>This guest's domid. It becomes another by restore and migration, when there is no channel.</summary>
    public ushort Self { get; set; }

    /// <summary>A channel that carries nothing for so long is dropped.</summary>
    public TimeSpan IdleTime { get; set; }

    /// <summary>What peers had, and may have not let go of.</summary>
    public KeptMemory Kept { get; } = new(Hypervisor.EventChannels);

    /// <summary>Removes the TAPs of channels that are over.</summary>
    public TapReaper Taps { get; } = new();

    /// <summary>The log, as far as peers fill it.</summary>
    public PeerLog Messages { get; } = new();

    /// <summary>To be called before anything of the hypervisor's is given back: after a suspend it must not be.</summary>
    public required Action CheckNotResumed { get; init; }
}

/// <summary>
/// One channel, from the first demand until nobody needs it: does what its <see cref="ChannelMachine"/> decides, with its
/// <see cref="ChannelResources"/> and its <see cref="ChannelNode"/>, and tells the administrator.
/// </summary>
internal sealed class Channel
{
    // For what a peer that says it has stopped has left in its ring: a full one of the smallest packets, ten times over, for others may want the processor.
    private static readonly TimeSpan _drainTime = TimeSpan.FromMilliseconds(500);

    private readonly ChannelContext _context;
    private readonly VifPort _port;
    private readonly bool _listener;
    private readonly ChannelMachine _machine;
    private readonly ChannelResources _resources;
    private readonly ChannelNode _node;

    // What it is, is for this side's log and status: the peer is another guest, and hears no names of processes.
    private const string Obstructed = "obstructed";

    private string? _obstacle;
    private string _lastComplaint = "";
    // Kept while the channel has not proved itself: a peer that fails in the same way each time is logged once.
    private string _lastLogged = "";
    private bool _heard;
    private ChannelMessage? _said;
    private bool _toldOfAddress;

    public Channel(ChannelContext context, ChannelKey key, VifPort port, in Introduction peer)
    {
        _context = context;
        _port = port;
        Key = key;
        PeerMac = peer.Mac;
        PeerSources = peer.Sources;
        PeerMtu = peer.Mtu;
        _listener = context.Self < key.Peer;
        _machine = new ChannelMachine(_listener, key.Peer, () => (ulong)Random.Shared.NextInt64(1, long.MaxValue));
        _machine.SetIdleTime(context.IdleTime, TimeSpan.Zero);
        _resources = new ChannelResources(context, key, port, peer.Mac, peer.Sources);
        _node = new ChannelNode(context.XenStore, context.Watches, context.Self, key, () => _heard = true);
    }

    public ChannelKey Key { get; }

    public MacAddress PeerMac { get; }

    /// <summary>The addresses that the peer may use, see <see cref="AddressList"/>; null for all.</summary>
    public string? PeerSources { get; }

    /// <summary>Bytes of the longest packet that Dom0 would let through to the peer.</summary>
    public int PeerMtu { get; }

    /// <summary>Index of the TAP; 0 while there is none.</summary>
    public int TapIndex => _resources.TapIndex;

    /// <summary>Bytes of the rings; before they are there, what they will have.</summary>
    public long MemoryBytes => 2L * (_resources.RingBytes is > 0 and uint bytes ? bytes : _context.RingBytes);

    /// <summary>Nothing is held; it is kept for the distance to the next attempt.</summary>
    public bool IsWaiting => _machine.Step == ChannelStep.Waiting;

    /// <summary>Both sides divert.</summary>
    public bool IsRunning => _machine.Step == ChannelStep.Running;

    /// <summary>When to call <see cref="Turn"/> again though nothing has changed.</summary>
    public Deadline Due => _machine.Due.Or(_node.Due);

    /// <summary>Running, and for so long that dropping it would not be restless.</summary>
    public bool IsProven(TimeSpan now) => IsRunning && _machine.IsProven(now);

    /// <summary>Nobody needs it, and nothing is held any more: call <see cref="Retire"/> and forget it.</summary>
    public bool IsFinished(TimeSpan now) => _machine.IsFinished(now);

    /// <summary>This side has packets for the peer: an attempt is due; or, while the channel is up, a look why they pass it by.</summary>
    public void Demand(TimeSpan now)
    {
        _machine.Demand(now);
        _resources.LookAgain();
    }

    /// <summary>Closes the channel in two phases at the next turn, if it runs.</summary>
    public void Drop(string reason) => _machine.Drop(reason);

    /// <summary>See <see cref="ChannelMachine.CloseBy"/>.</summary>
    public Deadline CloseBy
    {
        set => _machine.CloseBy = value;
    }

    /// <summary>See <see cref="ChannelResources.BeginToStop"/>. Of one that runs.</summary>
    public void BeginToStop() => _resources.BeginToStop();

    /// <summary>The time after which a channel counts as idle is another one.</summary>
    public void IdleTimeChanged(TimeSpan now) => _machine.SetIdleTime(_context.IdleTime, now);

    /// <summary>Packets a second since the last call, or over a longer time if that was a moment ago.</summary>
    public double TakeRate(TimeSpan now) => _machine.TakeRate(_resources.Moved, now);

    /// <summary>True when a turn is due: the peer has said something, the data loop gave the channel up, time is over, or it is wanted no
    /// more, or again.</summary>
    /// <param name="wanted">False once the introduction is withdrawn: the channel closes and makes no new attempt.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    public bool NeedsTurn(bool wanted, TimeSpan now)
    {
        _node.Bound(now);
        bool changed = _machine.Wanted != wanted || _obstacle != Obstacle;
        _machine.Wanted = wanted;
        return changed || _heard || _resources.Fault is not null || Due.IsDue(now);
    }

    /// <summary>The TAP had an address, which is gone again: tells the administrator once.</summary>
    public void AddressRemoved()
    {
        if (!_toldOfAddress)
        {
            _toldOfAddress = true;
            Log.Warning($"{_resources.TapName} is no interface of this guest's own: the address that somebody gave it is removed. "
                + "Whatever configures interfaces (systemd-networkd, NetworkManager, dhcpcd) should leave xl* alone");
        }
    }

    /// <summary>Moves as far as possible.</summary>
    public void Turn(TimeSpan now)
    {
        // Each change is told; with sixty channels to close, to look at each time as well would take longer than the rest.
        if (_heard || _said is null)
        {
            _heard = false;
            _said = _node.Read();
        }

        ChannelMessage? said = _said;
        _obstacle = Obstacle;
        _machine.Obstacle = _obstacle is null ? null : $"{Obstructed}: {_obstacle}";
        if (said is { Phase: ChannelPhase.Declined })
        {
            TellKept($"the peer declines: {said.Value.Reason}", now);
        }
        else if (ObstacleAtPeer is { } obstacle)
        {
            TellKept(obstacle, now);
        }

        _machine.Look(_resources.Moved, now);
        while (_machine.Decide(said, _resources.Fault, now) is { Act: not ChannelAct.None } move && Do(move, now))
        {
        }

        _machine.Settle(said, now);
    }

    /// <summary>Leaves nothing behind: releases what is held without ceremony, removes the own node.</summary>
    public void Retire(TimeSpan now)
    {
        if (_machine.Retire() is { Act: ChannelAct.Release } move)
        {
            Release(move, now);
        }

        _node.Remove();
    }

    /// <summary>Writes the members of a peer's object.</summary>
    public void WriteStatus(Utf8JsonWriter json, TimeSpan now)
    {
        DivertCounters divert = _port.Divert.Read(PeerMac);
        PathSnapshot? path = _resources.Snapshot;
        json.WriteNumber("domid", Key.Peer);
        json.WriteNumber("vif", Key.PeerVif);
        json.WriteString("mac", PeerMac.ToString());
        json.WriteString("state", IsRunning && path is { Stalled: true } ? "stalled" : _machine.Step.ToString().ToLowerInvariant());
        json.WriteString("role", _listener ? "listener" : "connector");
        // One that has never been more than wanted has come to no step.
        if (_machine.StepSince > TimeSpan.Zero)
        {
            json.WriteNumber("seconds", Math.Round((now - _machine.StepSince).TotalSeconds, 3));
        }

        if (IsWaiting && !_machine.Retry.IsDue(now))
        {
            json.WriteNumber("retry_seconds", Math.Round(_machine.Retry.In(now).TotalSeconds, 3));
        }

        json.WriteNumber("packets_seen", divert.Seen);
        json.WriteNumber("packets_diverted", divert.Diverted);
        if (path is { Counters: { } counters })
        {
            json.WriteString("tap", _resources.TapName);
            json.WriteNumber("ring_bytes", _resources.RingBytes);
            json.WriteNumber("sent_packets", counters.SentPackets);
            json.WriteNumber("sent_bytes", counters.SentBytes);
            json.WriteNumber("received_packets", counters.ReceivedPackets);
            json.WriteNumber("received_bytes", counters.ReceivedBytes);
            json.WriteNumber("receive_errors", counters.ReceiveErrors);
            json.WriteNumber("foreign_sources", counters.ForeignSources);
            json.WriteNumber("notifications", counters.Notifications);
            json.WriteNumber("stalls", counters.Stalls);
            json.WriteNumber("discarded_packets", counters.Discarded);
        }

        if (ObstacleAtPeer is { } obstacle)
        {
            json.WriteString("obstacle", obstacle);
        }

        if (_lastComplaint.Length > 0)
        {
            json.WriteString("last_error", _lastComplaint);
        }
    }

    private string? Obstacle => _port.Obstacle ?? ObstacleAtPeer;

    /// <summary>What Dom0 would do to some of the packets to this peer.</summary>
    private string? ObstacleAtPeer => _port.Mtu <= PeerMtu ? null
        : $"{_port.InterfaceName} has an MTU of {_port.Mtu} bytes, and Dom0 lets packets of {PeerMtu} bytes through to the peer";

    /// <returns>False when the same move is to be made again later.</returns>
    private bool Do(in ChannelMove move, TimeSpan now)
    {
        try
        {
            switch (move.Act)
            {
                case ChannelAct.Call:
                    _node.Say(new ChannelMessage(ChannelPhase.Calling, move.Session));
                    break;
                case ChannelAct.Listen:
                    (uint reference, uint port) = _resources.Listen(move.Session, now);
                    _node.Say(new ChannelMessage(ChannelPhase.Listening, move.Session, _context.Offer, reference, port));
                    break;
                case ChannelAct.Connect:
                    _resources.Connect(move.Cause!.Value);
                    _resources.Open(move.Cause.Value.Offer);
                    _node.Say(new ChannelMessage(ChannelPhase.Connected, move.Session, _context.Offer));
                    break;
                case ChannelAct.Accept:
                    _resources.Open(move.Cause!.Value.Offer);
                    _node.Say(new ChannelMessage(ChannelPhase.Connected, move.Session));
                    _resources.StartDiverting();
                    break;
                case ChannelAct.Divert:
                    _resources.StartDiverting();
                    break;
                case ChannelAct.StopDiverting:
                    _resources.StopDiverting();
                    break;
                case ChannelAct.DrainTap or ChannelAct.DrainTapLast when !_resources.DrainTap() && move.Act == ChannelAct.DrainTap:
                    return false;
                case ChannelAct.DrainTap or ChannelAct.DrainTapLast or ChannelAct.SayClosing:
                    TrySay(new ChannelMessage(ChannelPhase.Closing, move.Session), now);
                    break;
                case ChannelAct.Release:
                    Release(move, now);
                    return true;
                case ChannelAct.Decline:
                    TrySay(new ChannelMessage(ChannelPhase.Declined, move.Session, Reason: ForPeer(move.Reason)), now);
                    break;
                case ChannelAct.TakeBack:
                    TrySay(new ChannelMessage(ChannelPhase.Closed, move.Session), now);
                    break;
            }
        }
        catch (Exception e) when (ChannelFault.From(e) is not null && move.Act is ChannelAct.Call or ChannelAct.Listen or ChannelAct.Connect or ChannelAct.Accept or ChannelAct.Divert)
        {
            Release(_machine.Fail(move, ChannelFault.From(e)!), now);
            return true;
        }

        _machine.Did(move, now);
        if (IsRunning)
        {
            _lastComplaint = "";
            _context.Messages.Info(Key.Peer, $"channel up: {Key}, {(_listener ? "listener" : "connector")}, rings of {_resources.RingBytes / 1024} KiB", now);
        }

        return true;
    }

    private void Release(in ChannelMove move, TimeSpan now)
    {
        bool wasUp = _machine.IsUp;
        if (_machine.IsProven(now))
        {
            _lastLogged = "";
        }

        TimeSpan patience = _machine.CloseBy.IsNever ? _drainTime : TimeSpan.FromTicks(Math.Min(_drainTime.Ticks, _machine.CloseBy.In(now).Ticks));
        // A listener that nobody has answered has nothing that is mapped, as far as its peer says.
        bool isLetGo = _said is { } said && said.Session == move.Session ? said.Phase == ChannelPhase.Closed : _machine.Step == ChannelStep.Listening;
        _resources.Release(patience, isLetGo, now);
        _machine.Did(move, now);
        if (move.Failed)
        {
            _lastComplaint = move.Reason;
            if (IsNews(move.Reason))
            {
                _context.Messages.Warning(
                    Key.Peer,
                    $"channel closed: {Key}: {move.Reason}. Traffic goes by netfront; next attempt in {(long)_machine.Retry.In(now).TotalMilliseconds} ms",
                    now);
            }
        }
        else if (wasUp)
        {
            _context.Messages.Info(Key.Peer, $"channel closed: {Key}: {move.Reason}", now);
        }

        TrySay(new ChannelMessage(ChannelPhase.Closed, move.Session, Reason: ForPeer(move.Reason)), now);
    }

    private static string ForPeer(string reason) => reason.StartsWith(Obstructed, StringComparison.Ordinal) ? Obstructed : reason;

    private void TellKept(string reason, TimeSpan now)
    {
        _lastComplaint = reason;
        if (IsNews(_lastComplaint))
        {
            _context.Messages.Info(Key.Peer, $"{Key} stays on netfront: {_lastComplaint}", now);
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

    /// <summary>On the way out, what cannot be said (XenStore is full, say) must not keep anything from being released.</summary>
    private void TrySay(in ChannelMessage message, TimeSpan now)
    {
        try
        {
            _node.Say(message);
        }
        catch (NativeException e)
        {
            if (IsNews(e.Message))
            {
                _context.Messages.Warning(Key.Peer, $"{Key}: {e.Message}", now);
            }
        }
    }
}
