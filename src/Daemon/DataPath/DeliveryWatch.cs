namespace XenLoop.DataPath;

/// <summary>
/// Compares what was handed over with what came out on the other side of something that is not ours to look into: a TAP, where
/// anybody may have put a filter, a program or a qdisc since. Two counters that only grow, modulo 2^64. A difference may be on its
/// way (on another CPU, in a backlog); one that lasts, and does not get smaller meanwhile, is lost.
/// </summary>
internal struct DeliveryWatch
{
    // A single frame may be with a CPU that the hypervisor has stopped in the middle: it gets more time than several, which would
    // have to be with as many CPUs.
    private const long Several = 3;

    private const int PatienceMilliseconds = 100;
    private const int PatienceForOneMilliseconds = 1000;

    // Counts at most between two looks, of which there is one each 50 ms while something is missing: when there is none for longer the whole guest
    // stood still, and with it what is on its way.
    private const int BetweenLooksMilliseconds = 60;

    // What the difference is when nothing is on its way. It becomes smaller when more comes out than was handed over, as where a
    // super-packet is cut to pieces. Only whole ones can be lost later, so that a loss is never taken for what was cut.
    private long _least;
    private long _missing;
    private long _waited;
    private long _lookedAt;

    /// <param name="given">Handed over so far.</param>
    /// <param name="taken">Come out so far. Nothing is on its way.</param>
    public DeliveryWatch(ulong given, ulong taken) => _least = (long)(given - taken);

    /// <summary>Something is on its way, or lost, as of the last look.</summary>
    public readonly bool IsMissing => _missing != 0;

    /// <summary>True when what was handed over has all come out. Cheap; the clock is needed only if not.</summary>
    /// <param name="given">Handed over so far.</param>
    /// <param name="taken">Come out so far. Read before <paramref name="given"/>, if both change meanwhile: a difference that is too
    /// small would be taken for what is normal.</param>
    public bool IsEven(ulong given, ulong taken)
    {
        long difference = (long)(given - taken);
        if (difference > _least)
        {
            return false;
        }

        _least = difference;
        _missing = 0;
        return true;
    }

    /// <summary>True when something is lost.</summary>
    /// <param name="given">See <see cref="IsEven"/>.</param>
    /// <param name="taken">See <see cref="IsEven"/>.</param>
    public bool HasLost(ulong given, ulong taken) => !IsEven(given, taken) && HasLost(given, taken, Environment.TickCount64);

    /// <param name="given">See <see cref="IsEven"/>.</param>
    /// <param name="taken">See <see cref="IsEven"/>.</param>
    /// <param name="now">Milliseconds.</param>
    internal bool HasLost(ulong given, ulong taken, long now)
    {
        if (IsEven(given, taken))
        {
            return false;
        }

        long missing = (long)(given - taken) - _least;
        _waited = _missing == 0 || missing < _missing ? 0 : _waited + Math.Min(now - _lookedAt, BetweenLooksMilliseconds);
        _lookedAt = now;
        _missing = missing;
        return _waited > (missing >= Several ? PatienceMilliseconds : PatienceForOneMilliseconds);
    }
}

/// <summary>What goes through the channel's TAP does not come out of it: somebody has changed something there.</summary>
internal sealed class DeliveryException(string message) : Exception(message);
