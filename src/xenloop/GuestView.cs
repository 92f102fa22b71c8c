using System.Text;
using System.Text.Json;

namespace XenLoop.Command;

/// <summary>The table of a guest's peers: by which way packets go, and why.</summary>
internal static class GuestView
{
    private const string Running = "running";

    /// <summary>Text for people.</summary>
    /// <param name="status">The daemon's.</param>
    /// <param name="before">An earlier one, for rates; null without.</param>
    /// <param name="seconds">Between the two.</param>
    /// <param name="book">Who is behind an address.</param>
    /// <param name="coloured">For a terminal.</param>
    public static string Draw(JsonElement status, JsonElement? before, double seconds, AddressBook book, bool coloured)
    {
        JsonElement[] peers = [.. Peers(status)];
        StringBuilder text = new();
        text.Append($"xenloopd {status.Text("version")?.Split('+')[0]} in domain {status.Whole("domid")}: {peers.Count(IsShared)} of {peers.Length} peers by shared memory\n");
        foreach (string remark in Remarks(status, peers.Length))
        {
            text.Append(Table.Paint(remark, Tone.Bad, coloured)).Append('\n');
        }

        foreach (JsonElement vif in status.Items("vifs"))
        {
            text.Append($"\nvif {vif.Whole("vif")} is {Table.Plain(vif.Text("interface") ?? "")}, {vif.Text("mac")}, divert by {vif.Text("divert")}{(vif.Flag("filtered") ? $", behind filters at the egress of {Table.Plain(vif.Text("interface") ?? "")}" : "")}\n");
            if (vif.Text("obstacle") is { } obstacle)
            {
                text.Append(Table.Paint($"  netfront only: {Table.Plain(obstacle)}", Tone.Bad, coloured)).Append('\n');
            }

            Table table = new("PEER", "DOMID", "MAC", "IP", "PATH", "RATE", "SHARED", "SINCE", "WHY");
            foreach (JsonElement peer in vif.Items("peers").OrderBy(p => p.Whole("domid")).ThenBy(p => p.Whole("vif")))
            {
                bool shared = IsShared(peer);
                table.Add(
                    book.Name(peer.Text("mac")),
                    PeerName(peer),
                    peer.Text("mac") ?? "",
                    book.Address(peer.Text("mac"))?.ToString() ?? "",
                    new Cell(shared ? "shared memory" : "netfront", shared ? Tone.Good : Tone.Plain),
                    Rate(peer, before is { } earlier ? Find(earlier, vif.Whole("vif"), peer) : null, seconds),
                    Quantity.Share(peer.Number("packets_diverted"), peer.Number("packets_seen")),
                    peer.Has("seconds") ? Quantity.Time(peer.Number("seconds")) : "",
                    new Cell(Why(status, vif, peer), shared ? Tone.Faint : Tone.Bad));
            }

            text.Append(table.Count > 0 ? table.Draw("  ", coloured) : "  Dom0 has introduced no peer to this vif.\n");
        }

        return text.ToString();
    }

    /// <summary>Packets to it go by its channel.</summary>
    public static bool IsShared(JsonElement peer) => peer.Text("state") == Running;

    /// <summary>Why packets to a peer go the way they do.</summary>
    public static string Why(JsonElement status, JsonElement vif, JsonElement peer)
    {
        const string Kept = "no packet to it has come past the filters at the vif's egress yet";
        bool isKept = vif.Flag("filtered") && peer.Number("packets_seen") <= 0;
        string error = peer.Text("last_error") is { } last ? $": {last}" : "";
        return peer.Text("state") switch
        {
            _ when peer.Flag("disabled") => $"switched off here; \"xenloop enable {peer.Whole("domid")}\" ends that",
            _ when vif.Text("obstacle") is not null => "see the vif",
            _ when peer.Text("obstacle") is { } obstacle => obstacle,
            Running when isKept => $"both sides are up, but {Kept}",
            Running => "both sides are up",
            "stalled" => "the peer does not take what is in its ring",
            "idle" when status.Text("standing") is "quiescing" or "quiesced" => "this guest is about to be suspended",
            "idle" when isKept => Kept,
            "idle" when peer.Number("packets_seen") <= 0 => "no packets yet",
            "idle" when status.Number("channels") >= Limit(status) => "as many channels as max-channels allows",
            "idle" when status.Number("ring_memory_bytes") >= status.Number("ring_memory_limit_bytes") => "as much memory as max-memory-mib allows",
            "idle" => "no packets lately, or too few a second",
            // A guest tells no other what is on its interface.
            "waiting" when error.EndsWith(": the peer declines: obstructed", StringComparison.Ordinal) => "the peer declines: something is in the way at its interface; \"xenloop status\" there says what",
            "waiting" => $"{(error.Length > 0 ? $"it failed{error}" : "between two attempts")}{(peer.Has("retry_seconds") ? $"; next attempt in {Quantity.Time(peer.Number("retry_seconds"))}" : "")}",
            "calling" or "listening" or "connected" => $"a channel is being built{error}",
            "draining" or "closing" => $"the channel is being closed{error}",
            string other => $"{other}{error}",
            null => "",
        };
    }

    /// <summary>All of them, of every vif.</summary>
    public static IEnumerable<JsonElement> Peers(JsonElement status) => status.Items("vifs").SelectMany(v => v.Items("peers"));

    private static double Limit(JsonElement status) =>
        status.TryGetProperty("settings", out JsonElement settings) && settings.Has("max_channels") ? settings.Number("max_channels") : double.MaxValue;

    /// <summary>What is to be said of the guest as a whole.</summary>
    private static IEnumerable<string> Remarks(JsonElement status, int peers)
    {
        if (status.TryGetProperty("unprepared_suspends", out JsonElement suspends))
        {
            yield return $"Suspended {suspends.Whole("count")} times without a warning from Dom0. {suspends.Text("remedy")}.";
        }

        if (!status.Flag("enabled"))
        {
            yield return $"Switched off: \"enabled = false\" in {status.Text("configuration") ?? Settings.Configuration.DefaultPath}. All packets go by netfront.";
        }
        else if (status.Text("standing") is "quiescing" or "quiesced")
        {
            yield return "Dom0 is about to suspend this guest: channels come back after that.";
        }
        else if (!status.Items("told_vifs").Any() && status.Has("told_vifs"))
        {
            yield return "Dom0 tells this guest nothing: no xenloopd runs in Dom0, or none of this guest's vifs is on a bridge.";
        }
        else if (peers == 0 && status.Items("vifs").Any())
        {
            yield return "Dom0 has introduced this guest to nobody: \"xenloop status\" in Dom0 says why.";
        }

        if (status.Text("last_error") is { } error)
        {
            yield return Table.Plain(error);
        }
    }

    private static string PeerName(JsonElement peer) => peer.Whole("vif") == 0 ? $"{peer.Whole("domid")}" : $"{peer.Whole("domid")}-{peer.Whole("vif")}";

    private static JsonElement? Find(JsonElement status, int vif, JsonElement peer) =>
        status.Items("vifs").Where(v => v.Whole("vif") == vif).SelectMany(v => v.Items("peers")).Cast<JsonElement?>()
            .FirstOrDefault(p => p!.Value.Whole("domid") == peer.Whole("domid") && p.Value.Whole("vif") == peer.Whole("vif"));

    /// <summary>Packets sent by either way, and bits in the channel in both directions.</summary>
    private static string Rate(JsonElement peer, JsonElement? before, double seconds)
    {
        if (before is not { } earlier || seconds <= 0)
        {
            return "";
        }

        double packets = Delta("packets_seen");
        // A channel that is new counts from zero.
        double bits = 8 * (Delta("sent_bytes") + Delta("received_bytes"));
        return bits <= 0 && packets <= 0 ? "-" : $"{Quantity.Short(packets)} pkt/s{(bits > 0 ? $", {Quantity.Short(bits)}b/s" : "")}";

        double Delta(string name) => Math.Max(0, peer.Number(name) - (peer.Number(name) >= earlier.Number(name) ? earlier.Number(name) : 0)) / seconds;
    }
}
