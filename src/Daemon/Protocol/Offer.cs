using System.Globalization;

namespace XenLoop.Protocol;

/// <summary>Features of a daemon, as its offer and its channel states tell them (docs/protocol.md).</summary>
[Flags]
internal enum Features : uint
{
    None = 0,
    /// <summary>The TAP takes UDP super-packets.</summary>
    Uso = 1,
}

/// <summary>What a willing guest says of itself: the protocol's version and its features.</summary>
internal readonly record struct Offer(uint Version, Features Features)
{
    public const uint CurrentVersion = 1;

    /// <summary>What stands in place of an offer while the guest's configuration keeps it apart. Of no version: a Dom0 that does not know of
    /// it takes it for malformed, and so for no offer, which comes to the same.</summary>
    public const string Off = "off";

    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Version} {(uint)Features:x}");

    /// <summary>Null for anything malformed: it is another domain's writing.</summary>
    public static Offer? Parse(string? value)
    {
        string[] fields = value?.Split(' ') ?? [];
        return fields.Length >= 2
            && uint.TryParse(fields[0], NumberStyles.None, CultureInfo.InvariantCulture, out uint version)
            && uint.TryParse(fields[1], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out uint features)
            ? new Offer(version, (Features)features)
            : null;
    }
}
