namespace XenLoop.Bench;

/// <summary>How packets travel: a column of the tables.</summary>
/// <param name="Name">As printed.</param>
/// <param name="DaemonArguments">Of the guests' daemons; null when none runs.</param>
internal sealed record Way(string Name, string? DaemonArguments)
{
    /// <summary>As users have it who set nothing.</summary>
    public static readonly Way Default = new("adaptive", "--mode adaptive");

    /// <summary>Netfront first: with it no daemon has run yet.</summary>
    public static readonly Way[] All =
    [
        new("netfront", null),
        Default,
        new("event", "--mode event"),
        new("poll", "--mode poll"),
    ];
}
