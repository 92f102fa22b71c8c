using System.Globalization;
using XenLoop.Guest.Channels;
using XenLoop.Loop;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Every transition of docs/protocol.md, "A channel's life", by the clock of the test.</summary>
public sealed class ChannelMachineTests
{
    private const ushort Peer = 5;
    private const string Other = "00000000000000ff";

    private static readonly ChannelFault _violation = new(FaultOf.Peer, "bad ring");
    private static readonly ChannelFault _gone = new(FaultOf.DeadPeer, "the peer's daemon is gone");
    private static readonly ChannelFault _own = new(FaultOf.Self, "readv on the channel's TAP: EIO");

    private TimeSpan _now = TimeSpan.FromHours(1);
    private ulong _sessions;

    /// <summary>One decision.</summary>
    /// <param name="role">This side's.</param>
    /// <param name="step">Where the channel is, since this moment.</param>
    /// <param name="happens">What has changed; "+5 s" for time that passed.</param>
    /// <param name="said">The peer's node: "own" stands for the session that this side is in, "other" for another.</param>
    /// <param name="move">What is to be done.</param>
    /// <param name="next">Where the channel is when it is done.</param>
    [Theory]
    // Waiting: an attempt has a reason, packets or a call.
    [InlineData("listener", "Waiting", "", "", "None", "Waiting")]
    [InlineData("connector", "Waiting", "", "", "None", "Waiting")]
    [InlineData("listener", "Waiting", "demand", "", "Listen", "Listening")]
    [InlineData("connector", "Waiting", "demand", "", "Call", "Calling")]
    [InlineData("listener", "Waiting", "", "calling other", "Listen", "Listening")]
    [InlineData("listener", "Waiting", "", "rubbish", "None", "Waiting")]
    [InlineData("listener", "Waiting", "", "listening other 1 0 7 9", "None", "Waiting")]
    [InlineData("listener", "Waiting", "", "closed other idle", "None", "Waiting")]
    [InlineData("connector", "Waiting", "", "calling other", "None", "Waiting")]
    [InlineData("connector", "Waiting", "", "listening other 1 0 7 9", "Connect", "Connected")]
    [InlineData("connector", "Waiting", "demand", "listening other 1 0 7 9", "Connect", "Connected")]
    [InlineData("connector", "Waiting", "", "listening other 2 0 7 9", "Release failed: the peer speaks version 2, this daemon 1; update the older one", "Waiting")]
    [InlineData("connector", "Waiting", "", "connected other", "None", "Waiting")]
    [InlineData("listener", "Waiting", "demand unwanted", "", "None", "Waiting")]
    [InlineData("listener", "Waiting", "unwanted", "calling other", "None", "Waiting")]
    [InlineData("connector", "Waiting", "unwanted", "listening other 1 0 7 9", "None", "Waiting")]
    // Calling.
    [InlineData("connector", "Calling", "", "", "None", "Calling")]
    [InlineData("connector", "Calling", "", "listening other 1 0 7 9", "Connect", "Connected")]
    [InlineData("connector", "Calling", "+4.999 s", "", "None", "Calling")]
    [InlineData("connector", "Calling", "+5 s", "", "Release failed: domain 5 does not answer the call", "Waiting")]
    [InlineData("connector", "Calling", "+5 s", "listening other 1 0 7 9", "Connect", "Connected")]
    [InlineData("connector", "Calling", "", "closed own no", "None", "Calling")]
    [InlineData("connector", "Calling", "unwanted", "", "Release: no longer introduced", "Waiting")]
    [InlineData("connector", "Calling", "unwanted", "listening other 1 0 7 9", "Release: no longer introduced", "Waiting")]
    // Listening.
    [InlineData("listener", "Listening", "", "", "None", "Listening")]
    [InlineData("listener", "Listening", "", "connected other 1 0", "None", "Listening")]
    [InlineData("listener", "Listening", "", "connected own 1 0", "Accept", "Running")]
    [InlineData("listener", "Listening", "", "connected own 3 0", "Release failed: the peer speaks version 3, this daemon 1; update the older one", "Waiting")]
    [InlineData("listener", "Listening", "", "closed own xengnttab_map", "Release failed: the peer could not connect: xengnttab_map", "Waiting")]
    [InlineData("listener", "Listening", "", "calling other", "None", "Listening")]
    [InlineData("listener", "Listening", "+4.999 s", "", "None", "Listening")]
    [InlineData("listener", "Listening", "+5 s", "", "Release failed: domain 5 does not answer", "Waiting")]
    [InlineData("listener", "Listening", "+5 s", "connected own 1 0", "Accept", "Running")]
    [InlineData("listener", "Listening", "unwanted", "connected own 1 0", "Release: no longer introduced", "Waiting")]
    // Connected: the connector waits for the listener to receive as well.
    [InlineData("connector", "Connected", "", "listening own 1 0 7 9", "None", "Connected")]
    [InlineData("connector", "Connected", "", "connected own", "Divert", "Running")]
    [InlineData("connector", "Connected", "+4.999 s", "listening own 1 0 7 9", "None", "Connected")]
    [InlineData("connector", "Connected", "+5 s", "listening own 1 0 7 9", "Release failed: domain 5 does not answer", "Waiting")]
    [InlineData("connector", "Connected", "", "", "Release: the peer's side is gone", "Waiting")]
    [InlineData("connector", "Connected", "", "listening other 1 0 7 9", "Release: the peer's side is gone", "Waiting")]
    [InlineData("connector", "Connected", "violation", "listening own 1 0 7 9", "Release failed: bad ring", "Waiting")]
    [InlineData("connector", "Connected", "own fault", "listening own 1 0 7 9", "Release failed: readv on the channel's TAP: EIO", "Waiting")]
    [InlineData("connector", "Connected", "peer died", "listening own 1 0 7 9", "Release: the peer's daemon is gone", "Waiting")]
    [InlineData("connector", "Connected", "", "closed own idle", "StopDiverting: the peer closes", "Draining")]
    [InlineData("connector", "Connected", "unwanted", "listening own 1 0 7 9", "StopDiverting: no longer introduced", "Draining")]
    // Running.
    [InlineData("listener", "Running", "", "connected own 1 0", "None", "Running")]
    [InlineData("connector", "Running", "", "connected own", "None", "Running")]
    [InlineData("listener", "Running", "+60 s", "connected own 1 0", "None", "Running")]
    [InlineData("listener", "Running", "", "", "Release: the peer's side is gone", "Waiting")]
    [InlineData("listener", "Running", "", "calling other", "Release: the peer's side is gone", "Waiting")]
    [InlineData("connector", "Running", "", "rubbish", "Release: the peer's side is gone", "Waiting")]
    [InlineData("connector", "Running", "", "listening other 1 0 7 9", "Release: the peer's side is gone", "Waiting")]
    [InlineData("listener", "Running", "", "closing own", "StopDiverting: the peer closes", "Draining")]
    [InlineData("connector", "Running", "", "closing own", "StopDiverting: the peer closes", "Draining")]
    [InlineData("listener", "Running", "", "closed own idle", "StopDiverting: the peer closes", "Draining")]
    [InlineData("listener", "Running", "unwanted", "connected own 1 0", "StopDiverting: no longer introduced", "Draining")]
    [InlineData("connector", "Running", "drop", "connected own", "StopDiverting: makes room", "Draining")]
    [InlineData("listener", "Running", "peer died", "connected own 1 0", "Release: the peer's daemon is gone", "Waiting")]
    [InlineData("listener", "Running", "violation", "connected own 1 0", "Release failed: bad ring", "Waiting")]
    [InlineData("connector", "Running", "own fault", "connected own", "Release failed: readv on the channel's TAP: EIO", "Waiting")]
    [InlineData("connector", "Running", "violation", "", "Release failed: bad ring", "Waiting")]
    // Draining: the TAP into the ring, then "closing".
    [InlineData("listener", "Draining", "", "connected own 1 0", "DrainTap", "Closing")]
    [InlineData("connector", "Draining", "", "closing own", "DrainTap", "Closing")]
    [InlineData("listener", "Draining", "unwanted", "connected own 1 0", "DrainTap", "Closing")]
    [InlineData("listener", "Draining", "+2 s", "connected own 1 0", "DrainTap", "Closing")]
    [InlineData("listener", "Draining", "+2.001 s", "connected own 1 0", "DrainTapLast", "Closing")]
    [InlineData("listener", "Draining", "violation", "connected own 1 0", "SayClosing", "Closing")]
    [InlineData("listener", "Draining", "peer died", "connected own 1 0", "SayClosing", "Closing")]
    [InlineData("listener", "Draining", "", "", "Release: the peer's side is gone", "Waiting")]
    // Closing: the connector goes when the listener has stopped producing, the listener when the connector has unmapped.
    [InlineData("listener", "Closing", "", "connected own 1 0", "None", "Closing")]
    [InlineData("connector", "Closing", "", "connected own", "None", "Closing")]
    [InlineData("listener", "Closing", "", "closing own", "None", "Closing")]
    [InlineData("connector", "Closing", "", "closing own", "Release: makes room", "Waiting")]
    [InlineData("listener", "Closing", "", "closed own idle", "Release: makes room", "Waiting")]
    [InlineData("connector", "Closing", "", "closed own idle", "Release: makes room", "Waiting")]
    [InlineData("listener", "Closing", "+1.999 s", "connected own 1 0", "None", "Closing")]
    [InlineData("listener", "Closing", "+2 s", "connected own 1 0", "Release: makes room", "Waiting")]
    [InlineData("listener", "Closing", "peer died", "closing own", "Release: makes room", "Waiting")]
    [InlineData("listener", "Closing", "own fault", "closing own", "Release: readv on the channel's TAP: EIO", "Waiting")]
    [InlineData("listener", "Closing", "violation", "closing own", "Release failed: bad ring", "Waiting")]
    [InlineData("listener", "Closing", "unwanted", "connected own 1 0", "None", "Closing")]
    [InlineData("listener", "Closing", "", "", "Release: the peer's side is gone", "Waiting")]
    // An obstacle: who asks is told, and nobody else.
    [InlineData("listener", "Waiting", "obstacle", "", "None", "Waiting")]
    [InlineData("listener", "Waiting", "obstacle", "calling other", "Decline: tbf", "Waiting")]
    [InlineData("connector", "Waiting", "obstacle", "listening other 1 0 7 9", "Decline: tbf", "Waiting")]
    [InlineData("connector", "Waiting", "demand obstacle", "", "None", "Waiting")]
    [InlineData("connector", "Calling", "obstacle", "", "Release: tbf", "Waiting")]
    [InlineData("listener", "Listening", "obstacle", "", "Release: tbf", "Waiting")]
    [InlineData("connector", "Connected", "obstacle", "listening own 1 0 7 9", "StopDiverting: tbf", "Draining")]
    [InlineData("listener", "Running", "obstacle", "connected own 1 0", "StopDiverting: tbf", "Draining")]
    // A peer that declines.
    [InlineData("listener", "Waiting", "demand", "declined other tbf", "None", "Waiting")]
    [InlineData("connector", "Waiting", "demand", "declined other tbf", "None", "Waiting")]
    [InlineData("connector", "Calling", "", "declined other tbf", "Release: the peer declines: tbf", "Waiting")]
    [InlineData("listener", "Listening", "", "declined other tbf", "Release: the peer declines: tbf", "Waiting")]
    [InlineData("connector", "Connected", "", "declined other tbf", "StopDiverting: the peer closes", "Draining")]
    [InlineData("listener", "Running", "", "declined other tbf", "StopDiverting: the peer closes", "Draining")]
    [InlineData("listener", "Draining", "", "declined other tbf", "DrainTap", "Closing")]
    [InlineData("listener", "Closing", "", "declined other tbf", "Release: makes room", "Waiting")]
    public void Each_step_and_what_happens_in_it(string role, string step, string happens, string said, string move, string next)
    {
        ChannelMachine machine = At(role, step, out ulong session);
        ChannelFault? fault = null;
        foreach (string one in happens.Split(' ', 2)[0] == "demand" ? happens.Split(' ') : [happens])
        {
            fault = Happen(machine, one) ?? fault;
        }

        ChannelMove made = machine.Decide(Parse(said, session), fault, _now);
        Assert.Equal(move, Show(made));
        if (made.Act != ChannelAct.None)
        {
            machine.Did(made, _now);
        }

        Assert.Equal(next, machine.Step.ToString());
    }

    /// <summary>What could not be done is given back; the step does not matter, nor who is to blame.</summary>
    [Theory]
    [InlineData("listener", "Waiting", "calling other", "Listen")]
    [InlineData("connector", "Waiting", "listening other 1 0 7 9", "Connect")]
    [InlineData("connector", "Calling", "listening other 1 0 7 9", "Connect")]
    [InlineData("listener", "Listening", "connected own 1 0", "Accept")]
    [InlineData("connector", "Connected", "connected own", "Divert")]
    public void What_fails_is_released_and_said_with_its_session(string role, string step, string said, string act)
    {
        ChannelMachine machine = At(role, step, out ulong session);
        ChannelMove move = machine.Decide(Parse(said, session), null, _now);
        Assert.Equal(act, move.Act.ToString());
        ChannelMove instead = machine.Fail(move, new ChannelFault(FaultOf.Self, "every slot of the divert is in use"));
        Assert.Equal("Release failed: every slot of the divert is in use", Show(instead));
        Assert.Equal(move.Session, instead.Session);
        machine.Did(instead, _now);
        Assert.Equal(ChannelStep.Waiting, machine.Step);
        // The same offer or call is not tried again, whatever time passes.
        _now += TimeSpan.FromMinutes(1);
        Assert.Equal(ChannelAct.None, machine.Decide(Parse(said, move.Session), null, _now).Act);
    }

    [Fact]
    public void A_session_is_connected_to_once()
    {
        ChannelMachine machine = At("connector", "Running", out ulong session);
        Do(machine, "", session);
        _now += TimeSpan.FromMinutes(1);
        Assert.Equal(ChannelAct.None, machine.Decide(Parse($"listening {session:x16} 1 0 7 9", 0), null, _now).Act);
        Assert.Equal(ChannelAct.Connect, machine.Decide(Parse("listening other 1 0 7 9", 0), null, _now).Act);
    }

    [Fact]
    public void A_call_is_answered_once_but_packets_make_a_new_attempt()
    {
        ChannelMachine machine = At("listener", "Waiting", out _);
        Do(machine, "calling other", 0);
        _now += ChannelMachine.AnswerTime;
        Do(machine, "calling other", 0);
        Assert.Equal(ChannelStep.Waiting, machine.Step);
        _now += TimeSpan.FromMinutes(1);
        Assert.Equal(ChannelAct.None, machine.Decide(Parse("calling other", 0), null, _now).Act);
        machine.Demand(_now);
        Assert.Equal(ChannelAct.Listen, machine.Decide(Parse("calling other", 0), null, _now).Act);
    }

    [Fact]
    public void Attempts_that_fail_keep_a_distance_that_doubles_up_to_thirty_seconds()
    {
        ChannelMachine machine = At("listener", "Waiting", out _);
        foreach (double seconds in new[] { 0.25, 0.5, 1, 2, 4, 8, 16, 30, 30 })
        {
            Fail(machine);
            Assert.Equal(TimeSpan.FromSeconds(seconds), machine.Retry.In(_now));
            _now += TimeSpan.FromSeconds(seconds);
        }
    }

    [Fact]
    public void A_channel_that_has_proved_itself_begins_with_the_first_distance_again()
    {
        ChannelMachine machine = At("listener", "Waiting", out _);
        Fail(machine);
        _now += machine.Retry.In(_now);
        Fail(machine);
        _now += machine.Retry.In(_now);
        machine.Demand(_now);
        ulong session = Do(machine, "", 0);
        Do(machine, "connected own 1 0", session);
        _now += ChannelMachine.ProvenTime + TimeSpan.FromMilliseconds(1);
        Assert.True(machine.IsProven(_now));
        Do(machine, "", session);
        Assert.Equal(Backoff.First, machine.Retry.In(_now));
        machine.Settle(null, _now);
        Assert.Equal(Backoff.First, machine.Due.In(_now));
    }

    [Fact]
    public void A_peer_that_connects_and_leaves_is_kept_at_a_distance_of_up_to_four_seconds()
    {
        ChannelMachine machine = At("listener", "Waiting", out _);
        foreach (double seconds in new[] { 0.25, 0.5, 1, 2, 4, 4 })
        {
            machine.Demand(_now);
            ulong session = Do(machine, "", 0);
            Do(machine, "connected own 1 0", session);
            Do(machine, "", session);
            Assert.Equal(TimeSpan.FromSeconds(seconds), machine.Retry.In(_now));
            _now += TimeSpan.FromSeconds(seconds);
        }
    }

    [Fact]
    public void What_this_side_drops_costs_no_distance()
    {
        ChannelMachine machine = At("listener", "Closing", out ulong session);
        Do(machine, "closed own idle", session);
        Assert.Equal(Backoff.First, machine.Retry.In(_now));
        _now += Backoff.First;
        machine.Settle(null, _now);
        Assert.True(machine.IsFinished(_now));
    }

    [Fact]
    public void A_failure_is_remembered_for_two_seconds_at_least()
    {
        ChannelMachine machine = At("listener", "Waiting", out _);
        Fail(machine);
        machine.Settle(null, _now);
        Assert.Equal(Backoff.First + Backoff.ShortestMemory, machine.Due.In(_now));
        Assert.False(machine.IsFinished(_now + Backoff.First));
        Assert.True(machine.IsFinished(_now + Backoff.First + Backoff.ShortestMemory));
        // A reason that came meanwhile keeps it, for the attempt.
        machine.Demand(_now);
        machine.Settle(null, _now);
        Assert.Equal(Backoff.First, machine.Due.In(_now));
        Assert.False(machine.IsFinished(_now + TimeSpan.FromMinutes(1)));
    }

    [Fact]
    public void An_attempt_waits_for_its_time()
    {
        ChannelMachine machine = At("connector", "Waiting", out _);
        ChannelMove move = machine.Decide(Parse("listening other 1 0 7 9", 0), null, _now);
        machine.Did(machine.Fail(move, _own), _now);
        ChannelMessage? next = Parse("listening 0000000000000abc 1 0 7 9", 0);
        Assert.Equal(ChannelAct.None, machine.Decide(next, null, _now + Backoff.First - TimeSpan.FromTicks(1)).Act);
        Assert.Equal(ChannelAct.Connect, machine.Decide(next, null, _now + Backoff.First).Act);
        machine.Settle(next, _now);
        Assert.Equal(Backoff.First, machine.Due.In(_now));
    }

    [Theory]
    [InlineData("connector", "Calling", 5)]
    [InlineData("listener", "Listening", 5)]
    [InlineData("connector", "Connected", 5)]
    [InlineData("listener", "Running", 75)]
    [InlineData("listener", "Draining", 0.005)]
    [InlineData("connector", "Closing", 2)]
    public void Each_step_has_its_time(string role, string step, double seconds)
    {
        ChannelMachine machine = At(role, step, out ulong session);
        machine.Settle(Parse("connected own 1 0", session), _now);
        Assert.Equal(TimeSpan.FromSeconds(seconds), machine.Due.In(_now));
    }

    [Fact]
    public void A_channel_that_carries_nothing_for_its_time_is_dropped_and_looks_four_times()
    {
        ChannelMachine machine = At("listener", "Running", out ulong session);
        ChannelMessage? said = Parse("connected own 1 0", session);
        TimeSpan since = _now;
        ulong moved = 3;
        int looks = 0;
        while (machine.Decide(said, null, _now).Act == ChannelAct.None)
        {
            machine.Settle(said, _now);
            _now += machine.Due.In(_now);
            looks++;
            // The last packet within the first quarter.
            machine.Look(moved, _now);
            Assert.InRange(looks, 1, 10);
        }

        Assert.Equal(5, looks);
        Assert.Equal(1.25 * 300, (_now - since).TotalSeconds);
        Assert.Equal("StopDiverting: idle", Show(machine.Decide(said, null, _now)));
    }

    [Fact]
    public void Packets_keep_a_channel_and_a_shorter_idle_time_holds_at_once()
    {
        ChannelMachine machine = At("listener", "Running", out ulong session);
        for (ulong moved = 1; moved < 20; moved++)
        {
            machine.Settle(Parse("connected own 1 0", session), _now);
            _now += machine.Due.In(_now);
            machine.Look(moved, _now);
            Assert.Equal(ChannelAct.None, machine.Decide(Parse("connected own 1 0", session), null, _now).Act);
        }

        machine.SetIdleTime(TimeSpan.FromSeconds(4), _now);
        Assert.Equal(TimeSpan.FromSeconds(1), machine.Due.In(_now));
    }

    [Theory]
    [InlineData("listener", "Waiting", "None")]
    [InlineData("connector", "Calling", "Release: the daemon ends")]
    [InlineData("listener", "Listening", "Release: the daemon ends")]
    [InlineData("connector", "Connected", "Release: the daemon ends")]
    [InlineData("listener", "Running", "Release: the daemon ends")]
    [InlineData("listener", "Draining", "Release: the daemon ends")]
    [InlineData("listener", "Closing", "Release: the daemon ends")]
    public void A_daemon_that_ends_gives_back_whatever_there_is(string role, string step, string move) =>
        Assert.Equal(move, Show(At(role, step, out _).Retire()));

    /// <summary>Two machines that hear each other, from a packet to the end: nobody waits for the other's time to run out.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Two_sides_meet_and_part(bool listenerBegins)
    {
        ChannelMachine listener = New("listener"), connector = New("connector");
        string? listenerSays = null, connectorSays = null;
        (listenerBegins ? listener : connector).Demand(_now);
        Talk();
        Assert.Equal((ChannelStep.Running, ChannelStep.Running), (listener.Step, connector.Step));
        // A quiesce: both lose their introductions; or only one side hears of it yet.
        (listenerBegins ? connector : listener).Wanted = false;
        Talk();
        Assert.Equal((ChannelStep.Waiting, ChannelStep.Waiting), (listener.Step, connector.Step));

        void Talk() => MeetAndTalk(listener, connector, ref listenerSays, ref connectorSays);
    }

    /// <summary>A vif with an obstacle has no channel; the peer waits, and is told at once when it may have one again.</summary>
    [Theory]
    [InlineData(true, true)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(false, false)]
    public void An_obstacle_keeps_two_sides_apart_until_it_goes(bool atListener, bool whileRunning)
    {
        ChannelMachine listener = New("listener"), connector = New("connector");
        (ChannelMachine obstructed, ChannelMachine peer) = atListener ? (listener, connector) : (connector, listener);
        string? listenerSays = null, connectorSays = null;
        if (whileRunning)
        {
            peer.Demand(_now);
            MeetAndTalk(listener, connector, ref listenerSays, ref connectorSays);
            Assert.Equal((ChannelStep.Running, ChannelStep.Running), (listener.Step, connector.Step));
        }

        obstructed.Obstacle = "tbf";
        MeetAndTalk(listener, connector, ref listenerSays, ref connectorSays);
        for (int second = 0; second < 60; second++)
        {
            // Packets go on, and ask.
            peer.Demand(_now);
            MeetAndTalk(listener, connector, ref listenerSays, ref connectorSays);
            Assert.Equal((ChannelStep.Waiting, ChannelStep.Waiting), (listener.Step, connector.Step));
            Assert.StartsWith("declined", atListener ? listenerSays : connectorSays, StringComparison.Ordinal);
            // Nobody wakes for it but by the clock of what asks.
            Assert.True(obstructed.Due.IsNever);
            Assert.False(peer.IsFinished(_now));
            Assert.Equal(ChannelMachine.Patience, peer.Due.In(_now));
            _now += TimeSpan.FromSeconds(1);
        }

        obstructed.Obstacle = null;
        MeetAndTalk(listener, connector, ref listenerSays, ref connectorSays);
        Assert.Equal((ChannelStep.Running, ChannelStep.Running), (listener.Step, connector.Step));
    }

    [Fact]
    public void What_waits_for_a_peer_that_declines_is_forgotten_without_packets_and_two_that_decline_forget_each_other()
    {
        ChannelMachine machine = At("listener", "Waiting", out _);
        machine.Demand(_now);
        machine.Settle(Parse("declined other tbf", 0), _now);
        Assert.False(machine.IsFinished(_now + TimeSpan.FromSeconds(29)));
        Assert.True(machine.IsFinished(_now + ChannelMachine.Patience));

        machine.Obstacle = "a capture";
        machine.Settle(Parse("closed other", 0), _now);
        Assert.False(machine.IsFinished(_now + TimeSpan.FromDays(1)));
        machine.Settle(Parse("declined other tbf", 0), _now);
        Assert.True(machine.IsFinished(_now));
        machine.Settle(null, _now);
        Assert.True(machine.IsFinished(_now));
    }

    /// <summary>Both sides' turns, until neither has anything to do.</summary>
    private void MeetAndTalk(ChannelMachine listener, ChannelMachine connector, ref string? listenerSays, ref string? connectorSays)
    {
        bool moved = true;
        for (int i = 0; moved; i++)
        {
            Assert.InRange(i, 0, 20);
            moved = Turn(listener, connectorSays, ref listenerSays) | Turn(connector, listenerSays, ref connectorSays);
        }

        bool Turn(ChannelMachine machine, string? said, ref string? says)
        {
            bool moved = false;
            while (machine.Decide(ChannelMessage.Parse(said), null, _now) is { Act: not ChannelAct.None } move)
            {
                moved = true;
                Offer offer = new(Offer.CurrentVersion, Features.None);
                if (move.Act is not (ChannelAct.Divert or ChannelAct.StopDiverting))
                {
                    says = (move.Act switch
                    {
                        ChannelAct.Call => new ChannelMessage(ChannelPhase.Calling, move.Session),
                        ChannelAct.Listen => new ChannelMessage(ChannelPhase.Listening, move.Session, offer, 7, 9),
                        ChannelAct.Connect => new ChannelMessage(ChannelPhase.Connected, move.Session, offer),
                        ChannelAct.Accept => new ChannelMessage(ChannelPhase.Connected, move.Session),
                        ChannelAct.DrainTap => new ChannelMessage(ChannelPhase.Closing, move.Session),
                        ChannelAct.Decline => new ChannelMessage(ChannelPhase.Declined, move.Session, Reason: move.Reason),
                        _ => new ChannelMessage(ChannelPhase.Closed, move.Session, Reason: move.Reason),
                    }).ToString();
                }

                machine.Did(move, _now);
            }

            machine.Settle(ChannelMessage.Parse(said), _now);
            return moved;
        }
    }

    private static string Show(in ChannelMove move) => $"{move.Act}{(move.Failed ? " failed" : "")}{(move.Reason.Length > 0 ? $": {move.Reason}" : "")}";

    private static ChannelMessage? Parse(string said, ulong session) => ChannelMessage.Parse(
        said.Replace("own", session.ToString("x16", CultureInfo.InvariantCulture), StringComparison.Ordinal).Replace("other", Other, StringComparison.Ordinal));

    private ChannelMachine New(string role) => new(role == "listener", Peer, () => ++_sessions);

    /// <summary>A machine that has just come to a step.</summary>
    private ChannelMachine At(string role, string step, out ulong session)
    {
        ChannelMachine machine = New(role);
        bool listener = role == "listener";
        session = 0;
        if (step == "Waiting")
        {
            return machine;
        }

        machine.Demand(_now);
        session = Do(machine, "", 0);
        if (step is "Calling" or "Listening")
        {
            Assert.Equal(step, machine.Step.ToString());
            return machine;
        }

        // The connector takes over the listener's session.
        session = listener ? session : Do(machine, "listening 0000000000000077 1 0 7 9", 0);
        if (step != "Connected")
        {
            Do(machine, "connected own 1 0", session);
        }

        if (step is "Draining" or "Closing")
        {
            machine.Drop("makes room");
            Do(machine, "connected own", session);
        }

        if (step == "Closing")
        {
            Do(machine, "connected own", session);
        }

        Assert.Equal(step, machine.Step.ToString());
        return machine;
    }

    private ChannelFault? Happen(ChannelMachine machine, string what)
    {
        switch (what)
        {
            case "":
                return null;
            case "demand":
                machine.Demand(_now);
                return null;
            case "obstacle":
                machine.Obstacle = "tbf";
                return null;
            case "unwanted":
                machine.Wanted = false;
                return null;
            case "drop":
                machine.Drop("makes room");
                return null;
            case "violation":
                return _violation;
            case "own fault":
                return _own;
            case "peer died":
                return _gone;
            default:
                Assert.StartsWith("+", what, StringComparison.Ordinal);
                _now += TimeSpan.FromSeconds(double.Parse(what[1..^2], CultureInfo.InvariantCulture));
                return null;
        }
    }

    /// <summary>Makes one move.</summary>
    /// <returns>Its session.</returns>
    private ulong Do(ChannelMachine machine, string said, ulong session)
    {
        ChannelMove move = machine.Decide(Parse(said, session), null, _now);
        Assert.NotEqual(ChannelAct.None, move.Act);
        machine.Did(move, _now);
        return move.Session;
    }

    /// <summary>One attempt that fails.</summary>
    private void Fail(ChannelMachine machine)
    {
        machine.Demand(_now);
        ChannelMove move = machine.Decide(null, null, _now);
        Assert.Equal(ChannelAct.Listen, move.Act);
        machine.Did(machine.Fail(move, _own), _now);
    }
}
