namespace XenLoop.Settings;

/// <summary>What the configuration file says; what it leaves out has the value here.</summary>
internal sealed record Configuration
{
    public GuestSettings Guest { get; init; } = new();

    public Policy Policy { get; init; } = new();
}

/// <summary>How a guest takes part.</summary>
internal sealed record GuestSettings
{
    /// <summary>False: this guest offers itself to nobody, and its packets go by netfront.</summary>
    public bool Enabled { get; init; } = true;

    /// <summary>Packets within one second to a peer that get it a channel; at least 1.</summary>
    public int PacketsPerSecond { get; init; } = 1;

    /// <summary>A channel that carried nothing for so many seconds is dropped; at least 1.</summary>
    public int IdleSeconds { get; init; } = 300;

    /// <summary>Channels at the same time, from 1 to 100.</summary>
    public int MaxChannels { get; init; } = 64;

    /// <summary>MiB that the rings of all channels may take together; null for an eighth of the guest's memory, 128 at most.</summary>
    public int? MaxMemoryMiB { get; init; }
}
