using System.Text;
using System.Text.Json;

namespace XenLoop.Command;

/// <summary>Two vifs that are not introduced to each other, and why.</summary>
internal readonly record struct Apart(string One, string Other, string Why);

/// <summary>The tables of Dom0: its guests, who meets whom, and why others do not.</summary>
internal static class Dom0View
{
    /// <summary>Pairs that are listed unless all are asked for.</summary>
    private const int FewPairs = 30;

    // Names in one cell.
    private const int FewNames = 4;

    /// <summary>Text for people.</summary>
    /// <param name="status">The daemon's.</param>
    /// <param name="book">Who is behind an address.</param>
    /// <param name="all">All pairs that do not meet, however many.</param>
    /// <param name="coloured">For a terminal.</param>
    public static string Draw(JsonElement status, AddressBook book, bool all, bool coloured)
    {
        JsonElement[] guests = [.. status.Items("guests")];
        Dictionary<int, string> names = guests.ToDictionary(g => g.Whole("domid"), g => g.Text("name") ?? "");
        Table table = new("GUEST", "DOMID", "VIF", "MAC", "IP", "SEGMENT", "DAEMON", "MEETS", "REMARK");
        foreach (JsonElement guest in guests)
        {
            JsonElement?[] vifs = [.. guest.Items("vifs").Cast<JsonElement?>()];
            foreach (JsonElement? each in vifs.Length > 0 ? vifs : [null])
            {
                JsonElement vif = each ?? default;
                string mac = each is null ? "" : vif.Text("mac") ?? "";
                string daemon = guest.Text("daemon") ?? (guest.Flag("willing") ? "willing" : "none");
                string[] meets = each is null ? [] : [.. vif.Items("introduced").Select(p => PeerName(p.GetString() ?? "", names))];
                table.Add(
                    guest.Text("name") ?? "",
                    $"{guest.Whole("domid")}",
                    each is null ? "" : $"{vif.Whole("vif")}",
                    mac,
                    book.Address(mac)?.ToString() ?? "",
                    each is null ? "" : vif.Text("segment") ?? "none",
                    new Cell(daemon, daemon == "willing" ? Tone.Good : Tone.Bad),
                    new Cell(Names(meets), Tone.Good),
                    new Cell(Remark(guest, each), Tone.Bad));
            }
        }

        List<Apart> apart = WhoDoesNotMeet(guests);
        int pairs = guests.Sum(g => g.Items("vifs").Sum(v => v.Items("introduced").Count())) / 2;
        StringBuilder text = new($"xenloopd {status.Text("version")?.Split('+')[0]} in Dom0: {guests.Length} guests, {pairs} pairs of vifs introduced to each other, {apart.Count} pairs of guests not\n\n");
        text.Append(table.Count > 0 ? table.Draw("", coloured) : "No guest runs.\n");
        if (apart.Count == 0)
        {
            return text.ToString();
        }

        Table list = new("WHO DOES NOT MEET", "", "WHY");
        int shown = all ? apart.Count : Math.Min(apart.Count, FewPairs);
        foreach (Apart pair in apart.Take(shown))
        {
            list.Add(pair.One, pair.Other, new Cell(pair.Why, Tone.Bad));
        }

        text.Append('\n').Append(list.Draw("", coloured));
        return shown == apart.Count ? text.ToString() : text.Append($"and {apart.Count - shown} more pairs; \"xenloop status --all\" lists them\n").ToString();
    }

    /// <summary>Each pair of guests of which no vifs are introduced to each other, with the first reason there is.</summary>
    public static List<Apart> WhoDoesNotMeet(JsonElement[] guests)
    {
        List<Apart> apart = [];
        HashSet<(int, int)> met = [];
        foreach (JsonElement guest in guests)
        {
            met.UnionWith(guest.Items("vifs").SelectMany(v => v.Items("introduced")).Select(p => (guest.Whole("domid"), Domid(p.GetString() ?? ""))));
        }

        for (int i = 0; i < guests.Length; i++)
        {
            for (int j = i + 1; j < guests.Length; j++)
            {
                JsonElement one = guests[i], other = guests[j];
                if (!met.Contains((one.Whole("domid"), other.Whole("domid"))))
                {
                    apart.Add(new(Name(one), Name(other), Why(one, other)));
                }
            }
        }

        return apart;
    }

    private static string Why(JsonElement one, JsonElement other)
    {
        if (one.Text("apart") is { } mine)
        {
            return $"{Name(one)}: {mine}";
        }

        if (other.Text("apart") is { } others)
        {
            return $"{Name(other)}: {others}";
        }

        foreach (JsonProperty rule in one.Members("denied"))
        {
            if (rule.Value.EnumerateArray().Any(d => d.GetInt32() == other.Whole("domid")))
            {
                return $"the policy: {rule.Name}";
            }
        }

        string[] segments = Segments(one), others2 = Segments(other);
        if (segments.Length == 0 || others2.Length == 0)
        {
            return $"{Name(segments.Length == 0 ? one : other)}: no vif on a bridge";
        }

        string[] shared = [.. segments.Intersect(others2)];
        if (shared.Length == 0)
        {
            return $"other segment: {string.Join(", ", segments)} and {string.Join(", ", others2)}";
        }

        foreach (JsonElement guest in (JsonElement[])[one, other])
        {
            foreach (JsonElement vif in guest.Items("vifs"))
            {
                if (shared.Contains(vif.Text("segment")) && vif.Text("restricted") is { } restricted && !vif.Flag("restriction_ignored"))
                {
                    return $"{Name(guest)} vif {vif.Whole("vif")}: {restricted}";
                }
            }
        }

        return "they are about to be introduced";
    }

    private static string Remark(JsonElement guest, JsonElement? vif) =>
        guest.Text("apart") is { } apart ? apart
        : vif is not { } known ? "no vif"
        : known.Text("segment") is null ? "on no bridge"
        : known.Text("restricted") is { } restricted ? (known.Flag("restriction_ignored") ? $"ignored by the policy: {restricted}" : restricted)
        : "";

    private static string[] Segments(JsonElement guest) => [.. guest.Items("vifs").Select(v => v.Text("segment")).OfType<string>().Distinct()];

    private static string Name(JsonElement guest) => guest.Text("name") is { Length: > 0 } name ? name : $"domain {guest.Whole("domid")}";

    private static string PeerName(string peer, Dictionary<int, string> names)
    {
        string name = names.GetValueOrDefault(Domid(peer)) is { Length: > 0 } known ? known : $"{Domid(peer)}";
        // Only of a second vif is the number worth a word.
        return peer.EndsWith("-0", StringComparison.Ordinal) ? name : $"{name}-{peer.Split('-')[^1]}";
    }

    private static int Domid(string peer) => int.TryParse(peer.Split('-')[0], out int domid) ? domid : -1;

    private static string Names(string[] names) =>
        names.Length <= FewNames ? string.Join(", ", names) : $"{string.Join(", ", names.Take(FewNames - 1))}, {names.Length - FewNames + 1} more";
}
