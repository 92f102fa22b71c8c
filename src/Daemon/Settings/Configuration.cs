namespace XenLoop.Settings;

/// <summary>What the configuration file says (docs/man/xenloopd.toml.5.md); what it leaves out has the value here.</summary>
internal sealed record Configuration
{
    public const string DefaultPath = "/etc/xenloop/xenloopd.toml";

    /// <summary>The file that this was read from; null for the defaults.</summary>
    public string? Path { get; init; }

    public GuestSettings Guest { get; init; } = new();

    public Policy Policy { get; init; } = new();

    /// <exception cref="ConfigurationException">The file is missing or not readable, or something in it is wrong.</exception>
    public static Configuration Load(string path) =>
        ConfigurationReader.Parse(path, ConfigurationReader.ReadText(path) ?? throw new ConfigurationException(path, "there is no such file; make one or name another"));

    /// <summary>As <see cref="Load"/>; where there is no file, the defaults.</summary>
    /// <exception cref="ConfigurationException">The file is not readable, or something in it is wrong.</exception>
    public static Configuration LoadOrDefaults(string path) =>
        ConfigurationReader.ReadText(path) is { } text ? ConfigurationReader.Parse(path, text) : new Configuration();
}

/// <summary>How a guest takes part.</summary>
internal sealed record GuestSettings
{
    /// <summary>Channels at the same time, whatever a file says; everything that holds one for each has room for so many.
    /// XenStore allows a guest some 120 watches, and each channel has one.</summary>
    public const int MostChannels = 100;

    /// <summary>False: this guest offers itself to nobody, and its packets go by netfront.</summary>
    public bool Enabled { get; init; } = true;

    /// <summary>Packets within one second to a peer that get it a channel; from 1 to 1,000,000.</summary>
    public int PacketsPerSecond { get; init; } = 1;

    /// <summary>A channel that carried nothing for so many seconds is dropped; from 1 to 604,800, a week.</summary>
    public int IdleSeconds { get; init; } = 300;

    /// <summary>Channels at the same time, from 1 to <see cref="MostChannels"/>.</summary>
    public int MaxChannels { get; init; } = 64;

    /// <summary>MiB that the rings of all channels may take together, from 1 to 4096; null for an eighth of the guest's memory, 128 at most.</summary>
    public int? MaxMemoryMiB { get; init; }
}
