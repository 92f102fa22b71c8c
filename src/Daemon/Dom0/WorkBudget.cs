namespace XenLoop.Dom0;

/// <summary>
/// Bounds the work that one guest can cause by writing to its own nodes: a guest that offers itself and takes it back
/// makes Dom0 write to all its neighbours each time. Measured in XenStore requests; a token bucket that may be overdrawn once.
/// </summary>
internal sealed class WorkBudget
{
    // Enough for a guest that comes to a host of a thousand. Later changes are those of its channels, a few requests each.
    private const double Capacity = 4000;
    private const double RequestsPerSecond = 200;

    private double _left = Capacity;
    private long _at = Environment.TickCount64;

    /// <summary>Milliseconds until work may be done; 0 for now.</summary>
    public long DueIn(long now)
    {
        _left = Math.Min(Capacity, _left + ((now - _at) * RequestsPerSecond / 1000));
        _at = now;
        return _left > 0 ? 0 : (long)Math.Ceiling((1 - _left) * 1000 / RequestsPerSecond);
    }

    public void Charge(int requests) => _left -= requests;
}
