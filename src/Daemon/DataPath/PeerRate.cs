using System.Diagnostics;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>What a peer may have this side do for nothing: more of it in a second is an attack on our CPU. The clock is read once in <paramref name="most"/> times.</summary>
/// <param name="most">Times a second.</param>
/// <param name="what">Of what, for the message, as in "events a second with nothing in the ring".</param>
internal struct PeerRate(int most, string what)
{
    private int _count;
    private long _since = Stopwatch.GetTimestamp();

    /// <summary>Once more.</summary>
    /// <exception cref="PeerViolationException">There are too many.</exception>
    public void Count()
    {
        if (++_count == most)
        {
            long now = Stopwatch.GetTimestamp();
            if (now - _since < Stopwatch.Frequency)
            {
                throw new PeerViolationException($"more than {most} {what}");
            }

            _count = 0;
            _since = now;
        }
    }
}
