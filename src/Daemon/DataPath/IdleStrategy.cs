namespace XenLoop.DataPath;

/// <summary>What the data loop does when there is nothing to do.</summary>
internal enum IdleMode
{
    /// <summary>Look again for a little while after activity where that pays; then sleep.</summary>
    Adaptive,

    /// <summary>Sleep at once.</summary>
    Event,

    /// <summary>Never sleep. For dedicated CPUs only.</summary>
    Poll,
}

/// <summary>
/// Whether to spin, that is to look again and again, before sleeping. A spin pays when work comes within its window. Whether it will
/// depends on whose turn it is: the peer's after something was sent, else the local application's. Of each it is told separately
/// whether the last wait was short, and how much time may be lost: a budget that fills with time, and with each spin that pays, and from
/// which each that does not pay takes its window. So on a host where all domains share a processor, where no answer comes
/// while its waiter spins, with sparse traffic and under a hostile peer, spins cost next to nothing; and a new flow of
/// questions and answers always finds the budget to show that they pay. While bulk flows there is no spinning: packets that
/// are taken one by one keep TCP's windows from filling. (docs/performance.md)
/// </summary>
internal sealed class IdleStrategy
{
    /// <summary>Microseconds that a spin lasts at most: a peer that sleeps must be able to wake up and answer meanwhile.</summary>
    internal const int Window = 100;

    /// <summary>Most microseconds that can be lost at once.</summary>
    internal const int Budget = 3 * Window;

    /// <summary>Of which each takes so long to come back, in microseconds: a 400th of the time.</summary>
    internal const int Refill = 400;

    /// <summary>Microseconds that come back for a spin that paid: about what going to sleep and waking up would have cost.</summary>
    internal const int Earned = 32;

    /// <summary>A wait is short below this: the coarse clock goes in steps of up to 10 ms, mostly 4.</summary>
    internal const int ShortMilliseconds = 8;

    /// <summary>Bytes of a burst that is bulk, and how many smaller ones on end are its end.</summary>
    internal const uint BulkBytes = 16 * 1024;
    internal const int SmallBursts = 64;

    /// <summary>
    /// Milliseconds between two looks at whether something else in this guest waits for a processor while we spin, which giving way alone
    /// does not prevent: the scheduler lets a thread that has slept catch up first.
    /// </summary>
    internal const int LookMilliseconds = 16;

    /// <summary>So many looks in a row, for once the application may just have been woken; then no spin for so many milliseconds.</summary>
    internal const int CrowdedLooks = 3;
    internal const int RestMilliseconds = 64;

    // The precise clock is looked at first after so many turns, which most spins that pay do not reach, and then as often.
    private const int TurnsPerLook = 16;

    private readonly IdleMode _mode;
    private readonly IdleClock _clock;
    private readonly Expectation _peer;
    private readonly Expectation _application;
    private Expectation _awaited;
    private int _bulk;
    private int _turns;
    private long _begun;
    private long _since;
    private long _lookAt;
    private long _restsUntil;
    private int _crowded;
    private long _asleepSince;

    public IdleStrategy(IdleMode mode, IdleClock clock)
    {
        _mode = mode;
        _clock = clock;
        _peer = new Expectation(_clock.Milliseconds);
        _application = new Expectation(_clock.Milliseconds);
        _awaited = _application;
    }

    /// <summary>
    /// Whether peers run while we do, as the last wait for one has shown: on processors of their own. Then they are to have at once what there is for them;
    /// where all domains share one it is better to give it to them all at once.
    /// </summary>
    public bool PeersRunBeside => _mode == IdleMode.Poll || _peer.HasPaid;

    /// <summary>There was work: bursts of so many bytes, or of none.</summary>
    public void Worked(uint received, uint sent)
    {
        if (_mode != IdleMode.Adaptive)
        {
            return;
        }

        if (_turns != 0)
        {
            _turns = 0;
            _awaited.Paid();
        }

        _bulk = Math.Max(received, sent) >= BulkBytes ? SmallBursts : Math.Max(0, _bulk - 1);
        _awaited = sent != 0 ? _peer : _application;
    }

    /// <summary>There is none. True: look again; false: sleep.</summary>
    public bool Spin()
    {
        if (_mode != IdleMode.Adaptive)
        {
            Thread.SpinWait(1);
            return _mode == IdleMode.Poll;
        }

        if ((_turns == 0 && !Begins()) || (++_turns % TurnsPerLook == 0 && Ends()))
        {
            _turns = 0;
            return false;
        }

        _clock.GiveWay();
        return true;
    }

    /// <summary>The loop goes to sleep.</summary>
    public void FallsAsleep()
    {
        _turns = 0;
        if (_mode == IdleMode.Adaptive)
        {
            _asleepSince = _clock.Milliseconds;
        }
    }

    /// <summary>It has slept.</summary>
    public void Slept()
    {
        if (_mode == IdleMode.Adaptive)
        {
            _awaited.Waited(_clock.Milliseconds - _asleepSince);
        }
    }

    private bool Begins()
    {
        if (_bulk != 0)
        {
            return false;
        }

        _begun = _clock.Milliseconds;
        return _begun >= _restsUntil && _awaited.Affords(_begun);
    }

    private bool Ends()
    {
        if (_turns == TurnsPerLook)
        {
            _since = _clock.Microseconds;
            return IsCrowded();
        }

        if (_clock.Microseconds - _since < Window)
        {
            return false;
        }

        _awaited.Failed();
        return true;
    }

    private bool IsCrowded()
    {
        if (_begun < _lookAt)
        {
            return false;
        }

        if (!_clock.IsCrowded)
        {
            _crowded = 0;
            _lookAt = _begun + LookMilliseconds;
            return false;
        }

        if (++_crowded < CrowdedLooks)
        {
            return false;
        }

        // After the rest one look is enough.
        _crowded = CrowdedLooks - 1;
        _restsUntil = _begun + RestMilliseconds;
        return true;
    }

    /// <summary>What is known of waiting for one of the two.</summary>
    private sealed class Expectation(long now)
    {
        private bool _short = true;
        private long _budget = Budget;
        private long _filled = now;

        /// <summary>Whether the last spin for it paid.</summary>
        public bool HasPaid { get; private set; }

        public bool Affords(long now)
        {
            // Milliseconds times 1000 over Refill are microseconds.
            _budget = Math.Min(Budget, _budget + ((now - _filled) * 1000 / Refill));
            _filled = now;
            return _short && _budget >= Window;
        }

        public void Paid()
        {
            HasPaid = true;
            _short = true;
            _budget = Math.Min(Budget, _budget + Earned);
        }

        public void Failed()
        {
            HasPaid = false;
            _budget -= Window;
        }

        public void Waited(long milliseconds) => _short = milliseconds < ShortMilliseconds;
    }
}
