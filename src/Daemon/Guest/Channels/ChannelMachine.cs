using XenLoop.Loop;
using XenLoop.Protocol;

namespace XenLoop.Guest.Channels;

/// <summary>Where a channel is in its life.</summary>
internal enum ChannelStep
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

/// <summary>What is to be done for a channel. Each but <see cref="None"/> leads to another step.</summary>
internal enum ChannelAct
{
    None,

    /// <summary>Connector: say "calling".</summary>
    Call,

    /// <summary>Listener: grant memory, say "listening".</summary>
    Listen,

    /// <summary>Connector: map what the peer granted, open the path, say "connected".</summary>
    Connect,

    /// <summary>Listener: open the path, say "connected", and divert.</summary>
    Accept,

    /// <summary>Connector: the listener receives as well: divert.</summary>
    Divert,

    /// <summary>Let no more packets in.</summary>
    StopDiverting,

    /// <summary>Empty the TAP into the ring, and say "closing" when it is empty; else to be done again.</summary>
    DrainTap,

    /// <summary>Empty the TAP as far as there is room, and say "closing".</summary>
    DrainTapLast,

    /// <summary>Say "closing".</summary>
    SayClosing,

    /// <summary>Give everything back, say "closed".</summary>
    Release,

    /// <summary>Say "declined".</summary>
    Decline,

    /// <summary>Say "closed" where "declined" stood.</summary>
    TakeBack,
}

/// <summary>One move of a channel.</summary>
/// <param name="Act">What to do.</param>
/// <param name="Session">Of what is said with it.</param>
/// <param name="Cause">The peer's word that it answers, if it answers one.</param>
/// <param name="Reason">Of a <see cref="ChannelAct.Release"/> or <see cref="ChannelAct.Decline"/>.</param>
/// <param name="Failed">A release that counts as a failure: logged as a warning, and the next attempt keeps more distance.</param>
internal readonly record struct ChannelMove(
    ChannelAct Act, ulong Session = 0, ChannelMessage? Cause = null, string Reason = "", bool Failed = false);

/// <summary>
/// The life of one channel, as docs/protocol.md has it, without doing anything: <see cref="Decide"/> says what is to be done,
/// and is told by <see cref="Did"/> that it was, or by <see cref="Fail"/> that it could not be. Whoever does it asks again until
/// there is nothing to do, and comes back when something changes and at <see cref="Due"/>: too often never harms, too seldom does.
/// </summary>
/// <param name="listener">This side owns the memory.</param>
/// <param name="peer">For messages.</param>
/// <param name="newSession">Makes up a session; never 0.</param>
internal sealed class ChannelMachine(bool listener, ushort peer, Func<ulong> newSession)
{
    public static readonly TimeSpan AnswerTime = TimeSpan.FromSeconds(5);
    public static readonly TimeSpan CloseTime = TimeSpan.FromSeconds(2);

    /// <summary>A channel that ran for so long was no failure, whatever ended it.</summary>
    public static readonly TimeSpan ProvenTime = TimeSpan.FromSeconds(10);

    public static readonly TimeSpan DrainPoll = TimeSpan.FromMilliseconds(5);

    /// <summary>What waits for a peer that declines is forgotten when no packets have asked for it for so long.</summary>
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(30);

    /// <summary>Of what there is until <see cref="CloseBy"/>, so much is for the peer to hear "closing" and to take the rest.</summary>
    public static readonly TimeSpan LastWords = TimeSpan.FromMilliseconds(150);

    private static readonly ChannelMove _nothing = new(ChannelAct.None);

    private readonly Backoff _backoff = new();
    private readonly TrafficMeter _meter = new();

    // The connector's: a session is tried once, for its port can be bound once.
    private ulong _usedSession;
    // The listener's: the connector's call that was answered last.
    private ulong _answeredCall;
    private ulong _session;
    private bool _demanded;
    private TimeSpan _demandedAt;
    private bool _attemptDue;
    private string? _declined;
    private bool _peerAsks;
    private bool _peerDeclines;
    private TimeSpan _stepSince;
    private TimeSpan _upSince;
    private string? _dropReason;
    private string _closeReason = "";

    public ChannelStep Step { get; private set; }

    /// <summary>False once the introduction is withdrawn: the channel closes and makes no new attempt.</summary>
    public bool Wanted { get; set; } = true;

    /// <summary>What keeps packets of this side's vif on netfront for now: the channel closes, and the peer is told; null for nothing.</summary>
    public string? Obstacle { get; set; }

    /// <summary>A channel that carries nothing for so long is dropped.</summary>
    public TimeSpan IdleTime { get; private set; } = TimeSpan.FromMinutes(5);

    /// <summary>A close, now or later, is over by then, whatever the peer does.</summary>
    public Deadline CloseBy { get; set; } = Deadline.Never;

    /// <summary>When it came to its step.</summary>
    public TimeSpan StepSince => _stepSince;

    /// <summary>When to decide again though nothing has changed.</summary>
    public Deadline Due { get; private set; }

    /// <summary>The next attempt comes no earlier.</summary>
    public Deadline Retry => _backoff.Retry;

    /// <summary>Running, draining or closing.</summary>
    public bool IsUp => Step is ChannelStep.Running or ChannelStep.Draining or ChannelStep.Closing;

    /// <summary>Up, and for so long that its end is no failure of it.</summary>
    public bool IsProven(TimeSpan now) => IsUp && now - _upSince > ProvenTime;

    /// <summary>Nobody needs it, and nothing is held any more. What failed is remembered for a while, so that the next attempt keeps its distance.</summary>
    public bool IsFinished(TimeSpan now) => Step == ChannelStep.Waiting
        && (!Wanted
            || (_peerDeclines ? now - _demandedAt >= Patience : !_attemptDue && !_peerAsks && _backoff.Forgotten.IsDue(now)));

    /// <summary>This side has packets for the peer: an attempt is due.</summary>
    public void Demand(TimeSpan now)
    {
        _demanded = true;
        _demandedAt = now;
    }

    /// <summary>Closes the channel in two phases, if it runs.</summary>
    public void Drop(string reason) => _dropReason ??= reason;

    /// <summary>The time after which a channel counts as idle.</summary>
    public void SetIdleTime(TimeSpan idleTime, TimeSpan now)
    {
        IdleTime = idleTime;
        if (Step == ChannelStep.Running)
        {
            _meter.Retime(now, idleTime);
            Due = _meter.NextLook;
        }
    }

    /// <summary>See <see cref="TrafficMeter.TakeRate"/>.</summary>
    public double TakeRate(ulong moved, TimeSpan now) => _meter.TakeRate(moved, now);

    /// <summary>To be told at the begin of each turn how many packets have passed: drops the channel when it is idle.</summary>
    public void Look(ulong moved, TimeSpan now)
    {
        if (Step == ChannelStep.Running && _meter.IsIdle(moved, now, IdleTime))
        {
            Drop("idle");
        }
    }

    /// <summary>What is to be done next.</summary>
    /// <param name="said">What the peer's node says; null for nothing sensible.</param>
    /// <param name="fault">Why the data loop gave the channel up; null while it serves it.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    public ChannelMove Decide(ChannelMessage? said, ChannelFault? fault, TimeSpan now)
    {
        // Of this session, or nothing. Who declines means any.
        bool declines = said is { Phase: ChannelPhase.Declined };
        ChannelPhase? phase = declines || said?.Session == _session ? said?.Phase : null;
        switch (Step)
        {
            case ChannelStep.Waiting when Wanted && Obstacle is not null:
                // Who does not ask need not know.
                return said is not null && Obstacle != _declined ? new(ChannelAct.Decline, _session, Reason: Obstacle) : _nothing;

            case ChannelStep.Waiting when _declined is not null:
                return new(ChannelAct.TakeBack, _session);

            case ChannelStep.Waiting when declines:
                return _nothing;

            case ChannelStep.Calling or ChannelStep.Listening when Obstacle is not null:
                return Release(Obstacle, failed: false);

            case ChannelStep.Calling or ChannelStep.Listening when declines:
                return Release($"the peer declines: {said!.Value.Reason}", failed: false);

            case ChannelStep.Waiting or ChannelStep.Calling when Wanted && Retry.IsDue(now) && CanConnect(said):
                return VersionFault(said!.Value.Offer) is { } refusal
                    ? Release(refusal.Message, failed: true) with { Session = said.Value.Session, Cause = said }
                    : new(ChannelAct.Connect, said.Value.Session, said);

            case ChannelStep.Waiting when Wanted && Retry.IsDue(now) && IsCalled(said):
                return new(ChannelAct.Listen, newSession(), said);

            case ChannelStep.Waiting when Wanted && Retry.IsDue(now) && _demanded:
                return new(listener ? ChannelAct.Listen : ChannelAct.Call, newSession());

            case ChannelStep.Calling or ChannelStep.Listening when !Wanted:
                return Release("no longer introduced", failed: false);

            case ChannelStep.Calling when HasLasted(AnswerTime, now):
                return Release($"domain {peer} does not answer the call", failed: true);

            case ChannelStep.Listening when phase == ChannelPhase.Connected:
                return VersionFault(said!.Value.Offer) is { } mismatch
                    ? Release(mismatch.Message, failed: true)
                    : new(ChannelAct.Accept, _session, said);

            case ChannelStep.Listening when phase is not null:
                return Release($"the peer could not connect: {said!.Value.Reason}", failed: true);

            case ChannelStep.Listening or ChannelStep.Connected when HasLasted(AnswerTime, now):
                return Release($"domain {peer} does not answer", failed: true);

            case ChannelStep.Connected when phase == ChannelPhase.Connected:
                return new(ChannelAct.Divert, _session, said);

            case ChannelStep.Connected or ChannelStep.Running when fault is not null:
                return Release(fault.Message, failed: fault.Of != FaultOf.DeadPeer);

            case ChannelStep.Connected or ChannelStep.Running or ChannelStep.Draining or ChannelStep.Closing when phase is null:
                return Release("the peer's side is gone", failed: false);

            case ChannelStep.Connected or ChannelStep.Running when !Wanted || Obstacle is not null || _dropReason is not null
                || phase is ChannelPhase.Closing or ChannelPhase.Closed or ChannelPhase.Declined:
                return new(ChannelAct.StopDiverting, _session, said, _dropReason ?? (!Wanted ? "no longer introduced" : Obstacle ?? "the peer closes"));

            case ChannelStep.Draining:
                return new(
                    fault is not null ? ChannelAct.SayClosing
                    : now - _stepSince > CloseTime || CloseBy.Plus(-LastWords).IsDue(now) ? ChannelAct.DrainTapLast
                    : ChannelAct.DrainTap,
                    _session);

            case ChannelStep.Closing when phase is ChannelPhase.Closed or ChannelPhase.Declined
                // The connector owns no memory: once the listener has stopped producing, it may drain and go.
                || (!listener && phase == ChannelPhase.Closing)
                || fault is not null
                || HasLasted(CloseTime, now)
                || CloseBy.IsDue(now):
                // A peer that has unmapped already looks as if it had died.
                return Release(fault is null or { Of: FaultOf.DeadPeer } ? _closeReason : fault.Message, failed: fault is { Of: FaultOf.Peer });

            default:
                return _nothing;
        }
    }

    /// <summary>The move is done: the channel has come to its next step.</summary>
    public void Did(in ChannelMove move, TimeSpan now)
    {
        ChannelStep next = move.Act switch
        {
            ChannelAct.Call => ChannelStep.Calling,
            ChannelAct.Listen => ChannelStep.Listening,
            ChannelAct.Connect => ChannelStep.Connected,
            ChannelAct.Accept or ChannelAct.Divert => ChannelStep.Running,
            ChannelAct.StopDiverting => ChannelStep.Draining,
            ChannelAct.DrainTap or ChannelAct.DrainTapLast or ChannelAct.SayClosing => ChannelStep.Closing,
            ChannelAct.Release => ChannelStep.Waiting,
            _ => Step,
        };
        Remember(move);
        _session = move.Session;
        if (move.Act == ChannelAct.StopDiverting)
        {
            _closeReason = move.Reason;
        }
        else if (move.Act == ChannelAct.Release)
        {
            End(move.Failed, now);
        }
        else if (move.Act is ChannelAct.Decline or ChannelAct.TakeBack)
        {
            // Packets that ask for the channel will ask again.
            _demanded &= move.Act == ChannelAct.TakeBack;
            _declined = move.Act == ChannelAct.Decline ? move.Reason : null;
        }
        else if (next == ChannelStep.Running)
        {
            _upSince = now;
            _meter.Start(now, IdleTime);
        }

        if (next != Step)
        {
            _stepSince = now;
        }

        Step = next;
    }

    /// <summary>The move could not be done.</summary>
    /// <returns>What is to be done instead: what it has left is released.</returns>
    public ChannelMove Fail(in ChannelMove move, ChannelFault fault)
    {
        Remember(move);
        return Release(fault.Message, failed: true) with { Session = move.Session };
    }

    /// <summary>Gives everything back, whatever the step, for the daemon ends.</summary>
    public ChannelMove Retire() => Step == ChannelStep.Waiting ? _nothing : Release("the daemon ends", failed: false);

    /// <summary>There is nothing more to do now: when to look again.</summary>
    /// <param name="said">As <see cref="Decide"/> was told.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    public void Settle(ChannelMessage? said, TimeSpan now)
    {
        bool waits = Step == ChannelStep.Waiting && Wanted;
        // While one declines, the other's asking does not count: two that decline forget each other.
        bool declines = said is { Phase: ChannelPhase.Declined };
        _peerDeclines = waits && declines && Obstacle is null;
        _peerAsks = waits && Obstacle is not null && said is not null && !declines;
        _attemptDue = waits && !declines && Obstacle is null && (_demanded || IsCalled(said) || CanConnect(said));
        Due = Step switch
        {
            ChannelStep.Waiting when _peerDeclines => Deadline.At(_demandedAt + Patience),
            ChannelStep.Waiting when _peerAsks => Deadline.Never,
            ChannelStep.Waiting => _attemptDue ? Retry : _backoff.Forgotten,
            ChannelStep.Calling or ChannelStep.Listening or ChannelStep.Connected => Deadline.At(_stepSince + AnswerTime),
            ChannelStep.Running => _meter.NextLook,
            ChannelStep.Draining => Deadline.At(now + DrainPoll),
            _ => CloseBy.Or(Deadline.At(_stepSince + CloseTime)),
        };
    }

    private static ChannelFault? VersionFault(Offer offer) => offer.Version == Offer.CurrentVersion
        ? null
        : new(FaultOf.Version, $"the peer speaks version {offer.Version}, this daemon {Offer.CurrentVersion}; update the older one");

    private bool HasLasted(TimeSpan time, TimeSpan now) => now - _stepSince >= time;

    private bool IsCalled(ChannelMessage? said) =>
        listener && said is { Phase: ChannelPhase.Calling } call && call.Session != _answeredCall;

    private bool CanConnect(ChannelMessage? said) =>
        !listener && said is { Phase: ChannelPhase.Listening } offer && offer.Session != _usedSession;

    private ChannelMove Release(string reason, bool failed) => new(ChannelAct.Release, _session, null, reason, failed);

    private void Remember(in ChannelMove move)
    {
        switch (move.Cause)
        {
            case { Phase: ChannelPhase.Listening } offer when !listener:
                _usedSession = offer.Session;
                break;
            case { Phase: ChannelPhase.Calling } call when listener && move.Act == ChannelAct.Listen:
                _answeredCall = call.Session;
                break;
        }
    }

    private void End(bool failed, TimeSpan now)
    {
        if (IsProven(now))
        {
            _backoff.Prove();
        }

        bool restless = IsUp && !failed && Wanted && Obstacle is null && _dropReason is null && !IsProven(now);
        _backoff.Ended(failed ? ChannelEnd.Failed : restless ? ChannelEnd.Restless : ChannelEnd.Quiet, now);
        _demanded = false;
        _dropReason = null;
    }
}
