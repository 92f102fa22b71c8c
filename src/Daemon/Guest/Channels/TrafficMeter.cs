using XenLoop.Loop;

namespace XenLoop.Guest.Channels;

/// <summary>Whether a running channel still carries something, and how much. It looks a few times within the time after which a
/// channel counts as idle: one wake-up each.</summary>
internal sealed class TrafficMeter
{
    /// <summary>Looks within the idle time.</summary>
    public const int Looks = 4;

    private static readonly TimeSpan _shortestCensus = TimeSpan.FromSeconds(1);

    private int _quietLooks;
    private ulong _movedAtLook;
    private ulong _movedAtCensus;
    private TimeSpan _censusAt;
    private double _rate;

    /// <summary>When to look again.</summary>
    public Deadline NextLook { get; private set; }

    /// <summary>A channel begins to run.</summary>
    public void Start(TimeSpan now, TimeSpan idleTime)
    {
        _movedAtLook = _movedAtCensus = 0;
        _quietLooks = 0;
        _censusAt = now;
        NextLook = Deadline.At(now + (idleTime / Looks));
    }

    /// <summary>The time after which a channel counts as idle is another one.</summary>
    public void Retime(TimeSpan now, TimeSpan idleTime) => NextLook = NextLook.Or(Deadline.At(now + (idleTime / Looks)));

    /// <summary>Looks, if it is time.</summary>
    /// <param name="moved">Packets so far.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="idleTime">After so long without a packet a channel counts as idle.</param>
    /// <returns>True when the channel is idle.</returns>
    public bool IsIdle(ulong moved, TimeSpan now, TimeSpan idleTime)
    {
        if (!NextLook.IsDue(now))
        {
            return false;
        }

        _quietLooks = moved == _movedAtLook ? _quietLooks + 1 : 0;
        _movedAtLook = moved;
        NextLook = Deadline.At(now + (idleTime / Looks));
        return _quietLooks >= Looks;
    }

    /// <summary>Packets a second since the last call, or over a longer time if that was a moment ago.</summary>
    public double TakeRate(ulong moved, TimeSpan now)
    {
        TimeSpan since = now - _censusAt;
        if (since >= _shortestCensus)
        {
            _rate = (moved - _movedAtCensus) / since.TotalSeconds;
            _movedAtCensus = moved;
            _censusAt = now;
        }

        return _rate;
    }
}
