namespace XenLoop.Loop;

/// <summary>
/// When something is due, on the monotonic clock of a <see cref="TimeProvider"/>; "now" is the time since that clock's origin.
/// One value says never; the default is due already.
/// </summary>
internal readonly record struct Deadline
{
    private readonly TimeSpan _at;

    private Deadline(TimeSpan at) => _at = at;

    public static Deadline Never => new(TimeSpan.MaxValue);

    /// <summary>Due already.</summary>
    public static Deadline Now => default;

    public bool IsNever => _at == TimeSpan.MaxValue;

    public static Deadline At(TimeSpan time) => new(time);

    /// <summary>The earlier of both.</summary>
    public Deadline Or(Deadline other) => _at <= other._at ? this : other;

    /// <summary>So much later; never stays never.</summary>
    public Deadline Plus(TimeSpan time) => IsNever ? this : new(_at + time);

    public bool IsDue(TimeSpan now) => now >= _at;

    /// <summary>How long it is until then: zero when it is due.</summary>
    public TimeSpan In(TimeSpan now) => IsDue(now) ? TimeSpan.Zero : _at - now;

    /// <summary>As epoll_wait takes it: whole milliseconds, rounded up, for who wakes too early only looks at the clock; -1 for never.</summary>
    public int Timeout(TimeSpan now) => IsNever ? -1 : (int)Math.Min(Math.Ceiling(In(now).TotalMilliseconds), int.MaxValue);

    public override string ToString() => IsNever ? "never" : $"at {_at}";
}

/// <summary>The monotonic clock.</summary>
internal static class Clock
{
    /// <summary>Time since the clock's origin.</summary>
    public static TimeSpan Now(this TimeProvider clock) => clock.GetElapsedTime(0);
}
