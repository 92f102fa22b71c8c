using System.Text.Json;
using XenLoop.Settings;

namespace XenLoop.Command;

/// <summary>"xenloop reload --dry-run": what another configuration would change, without putting it in force.</summary>
internal static class DryRun
{
    /// <summary>A line for each change; none when there is none.</summary>
    /// <param name="status">The daemon's.</param>
    /// <param name="configuration">That which a reload would put in force.</param>
    public static IEnumerable<string> Changes(JsonElement status, Configuration configuration) =>
        status.Text("role") == "guest" ? OfGuest(status, configuration.Guest)
            : [.. OfPairs(status, configuration.Policy), .. OfRestrictions(status, configuration.Policy)];

    private static IEnumerable<string> OfGuest(JsonElement status, GuestSettings settings)
    {
        status.TryGetProperty("settings", out JsonElement now);
        foreach ((string name, string before, string after) in new[]
        {
            ("enabled", status.Flag("enabled") ? "true" : "false", settings.Enabled ? "true" : "false"),
            ("packets-per-second", Number("packets_per_second"), $"{settings.PacketsPerSecond}"),
            ("idle-seconds", Number("idle_seconds"), $"{settings.IdleSeconds}"),
            ("max-channels", Number("max_channels"), $"{settings.MaxChannels}"),
            ("max-memory-mib", Number("max_memory_mib"), settings.MaxMemoryMiB is { } memory ? $"{memory}" : "default"),
        })
        {
            if (before != after)
            {
                yield return $"{name}: {before} becomes {after}";
            }
        }

        string Number(string name) => now.ValueKind == JsonValueKind.Object && now.Has(name) ? $"{now.Whole(name)}" : "default";
    }

    private static IEnumerable<string> OfPairs(JsonElement status, Policy policy)
    {
        JsonElement[] guests = [.. status.Items("guests")];
        for (int i = 0; i < guests.Length; i++)
        {
            for (int j = i + 1; j < guests.Length; j++)
            {
                JsonElement one = guests[i], other = guests[j];
                string? before = one.Members("denied").Where(r => r.Value.EnumerateArray().Any(d => d.GetInt32() == other.Whole("domid"))).Select(r => r.Name).FirstOrDefault();
                bool isJudged = one.Text("apart") is null && other.Text("apart") is null;
                string? after = isJudged ? policy.WhyNot(Identity(one), Identity(other)) : null;
                // Of those that something else keeps apart, the policy changes nothing now.
                if (before != after)
                {
                    yield return after is null ? $"{one.Text("name")} and {other.Text("name")} may meet (before: {before})"
                        : before is null ? $"{one.Text("name")} and {other.Text("name")} may not meet any more: {after}"
                        : $"{one.Text("name")} and {other.Text("name")} may not meet, by another rule: {after} (before: {before})";
                }
            }
        }
    }

    private static IEnumerable<string> OfRestrictions(JsonElement status, Policy policy)
    {
        foreach (JsonElement guest in status.Items("guests"))
        {
            foreach (JsonElement vif in guest.Items("vifs"))
            {
                // Where nothing restricts a vif, or what the policy cannot ignore, there is no such member.
                if (vif.Has("restriction_ignored") && vif.Text("segment") is { } segment)
                {
                    bool before = vif.Flag("restriction_ignored"), after = policy.IgnoresRestrictions(Identity(guest), vif.Text("interface") ?? "", segment);
                    if (before != after)
                    {
                        yield return $"{guest.Text("name")} vif {vif.Whole("vif")} is restricted ({vif.Text("restricted")}): "
                            + (after ? "it may meet others in spite of that" : "that is not ignored any more, it goes back to netfront");
                    }
                }
            }
        }
    }

    private static GuestIdentity Identity(JsonElement guest) => new(guest.Text("name") ?? "", guest.Text("uuid") ?? "");
}
