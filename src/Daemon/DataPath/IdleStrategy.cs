using System.Diagnostics;

namespace XenLoop.DataPath;

/// <summary>What the data loop does when there is nothing to do.</summary>
internal enum IdleMode
{
    /// <summary>Spin for a little while after activity, as long as that has been paying; then sleep.</summary>
    Adaptive,

    /// <summary>Sleep at once.</summary>
    Event,

    /// <summary>Never sleep. For dedicated CPUs only.</summary>
    Poll,
}

/// <summary>
/// How long to look again before sleeping, in the shape of KVM's halt polling: the window grows when a sleep turned
/// out shorter than the longest spin would have been, and shrinks when it was much longer.
/// A guest with one CPU never spins: that CPU is what the application needs to produce the next packet.
/// </summary>
internal sealed class IdleStrategy
{
    private static readonly long _ticksPerMicrosecond = Math.Max(1, Stopwatch.Frequency / 1_000_000);

    private readonly IdleMode _mode;
    private readonly long _cap;
    private readonly long _floor = 4 * _ticksPerMicrosecond;
    private long _window;
    private long _idleSince;

    public IdleStrategy(IdleMode mode, int processors)
    {
        _mode = mode;
        _cap = mode == IdleMode.Event || processors == 1 ? 0 : 50 * _ticksPerMicrosecond;
    }

    /// <summary>There was work.</summary>
    public void Worked() => _idleSince = 0;

    /// <summary>There is none. True: look again; false: sleep.</summary>
    public bool Spin()
    {
        if (_mode == IdleMode.Poll)
        {
            Thread.SpinWait(1);
            return true;
        }

        if (_window == 0)
        {
            return false;
        }

        long now = Stopwatch.GetTimestamp();
        if (_idleSince == 0)
        {
            _idleSince = now;
        }

        if (now - _idleSince >= _window)
        {
            return false;
        }

        Thread.SpinWait(1);
        return true;
    }

    /// <summary>The loop slept for so many <see cref="Stopwatch"/> ticks.</summary>
    public void Slept(long ticks)
    {
        _idleSince = 0;
        if (ticks < _cap)
        {
            _window = Math.Min(_cap, Math.Max(_floor, _window * 2));
        }
        else if (ticks > 8 * _cap)
        {
            _window = _window <= _floor ? 0 : _window / 2;
        }
    }
}
