using XenLoop.Loop;

namespace XenLoop.Dom0;

/// <summary>
/// Bounds the work that one guest can cause by writing to its own nodes: a guest that offers itself and takes it back
/// makes Dom0 write to all its neighbours each time. Measured in XenStore requests, for they keep everybody's xenstored
/// busy; a token bucket that may be overdrawn once.
/// </summary>
internal sealed class WorkBudget(TimeSpan now)
{
    // Together no more than 200 a second in any four seconds.
    public const double Capacity = 200;
    public const double RequestsPerSecond = 150;

    // A watch that fires is no request, but is read, queued and taken: about a quarter of what a request costs.
    private const double RequestsPerEvent = 0.25;

    private double _left = Capacity;
    private TimeSpan _at = now;

    /// <summary>So much more than all is used up: not even hearing of changes is paid for any more.</summary>
    public bool IsOverdrawn => _left < -Capacity;

    /// <summary>When work may be done.</summary>
    public Deadline Due(TimeSpan now)
    {
        _left = Math.Min(Capacity, _left + ((now - _at).TotalSeconds * RequestsPerSecond));
        _at = now;
        return _left > 0 ? Deadline.Now : Deadline.At(now + TimeSpan.FromSeconds((1 - _left) / RequestsPerSecond));
    }

    public void Charge(long requests) => _left -= requests;

    /// <summary>A watch has fired.</summary>
    public void ChargeEvent() => _left -= RequestsPerEvent;
}
