using XenLoop.Loop;

namespace XenLoop.Dom0;

/// <summary>
/// Bounds the work that one guest can cause by writing to its own nodes: a guest that offers itself and takes it back
/// makes Dom0 write to all its neighbours each time. Measured in XenStore requests; a token bucket that may be overdrawn once.
/// </summary>
internal sealed class WorkBudget(TimeSpan now)
{
    // Enough for a guest that comes to a host of a thousand. Later changes are those of its channels, a few requests each.
    public const double Capacity = 4000;
    public const double RequestsPerSecond = 200;

    private double _left = Capacity;
    private TimeSpan _at = now;

    /// <summary>When work may be done.</summary>
    public Deadline Due(TimeSpan now)
    {
        _left = Math.Min(Capacity, _left + ((now - _at).TotalSeconds * RequestsPerSecond));
        _at = now;
        return _left > 0 ? Deadline.Now : Deadline.At(now + TimeSpan.FromSeconds((1 - _left) / RequestsPerSecond));
    }

    public void Charge(int requests) => _left -= requests;
}
