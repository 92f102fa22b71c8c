using XenLoop.Settings;
using static XenLoop.Tests.Fuzz.Target;

namespace XenLoop.Tests.Fuzz;

/// <summary>A configuration file: it ends in a configuration within its limits, whose policy is one, or in the documented exception, whose message names a place in the file.</summary>
internal static class PolicyTarget
{
    private const string Path = "file";

    public static string[] Tokens { get; } =
    [
        "[guest]\n", "[policy]\n", "[policy.groups]\n", "[[policy]]\n", "enabled = ", "packets-per-second = ", "idle-seconds = ", "max-channels = ", "max-memory-mib = ",
        "default = ", "\"allow\"", "\"deny\"", "allow = ", "deny = ", "groups = ", "ignore-restrictions = ", "ignore-restrictions-on = ", "policy.groups.a = ",
        "[\"a\"]", "[[\"a\", \"b\"]]", "[\"*\"]", "{", "}", "[", "]", "[[", "]]", "\"", "'", "\"\"\"", "'''", "=", ".", ",", "#", "\n", "\r\n", " ", "\\", "\\u0000", "true", "false",
        "1", "0", "100", "9223372036854775807", "0x7f", "1e9", "inf", "1979-05-27T07:32:00Z", "a", "b", "web-*", "?", "\u00ef\u00bb\u00bf", "\u00c3\u00a9", "\u00ff", "\0",
    ];

    private static readonly GuestIdentity[] _guests = [new("a", "u-1"), new("web-1", "U-2"), new("b", "1979-05-27")];

    public static void Run(ReadOnlySpan<byte> input)
    {
        Configuration configuration;
        try
        {
            configuration = ConfigurationReader.Parse(Path, ConfigurationReader.Decode(Path, input));
        }
        catch (ConfigurationException e)
        {
            Require(e.Message.StartsWith($"{Path}:", StringComparison.Ordinal) && !e.Message.Any(char.IsControl), e.Message);
            return;
        }

        GuestSettings guest = configuration.Guest;
        Require(
            guest.PacketsPerSecond is >= 1 and <= 1_000_000 && guest.IdleSeconds is >= 1 and <= 604_800
            && guest.MaxChannels is >= 1 and <= GuestSettings.MostChannels && guest.MaxMemoryMiB is null or (>= 1 and <= 4096),
            guest.ToString());
        foreach (GuestIdentity one in _guests)
        {
            _ = configuration.Policy.IgnoresRestrictions(one, "vif1.0", "0/xenbr0");
            foreach (GuestIdentity other in _guests)
            {
                bool may = configuration.Policy.MayMeet(one, other);
                Require(may == configuration.Policy.MayMeet(other, one), "one may meet the other, and not the other the one");
                Require(may == configuration.Policy.WhyNot(one, other) is null, "another answer with the reason");
            }
        }
    }
}
