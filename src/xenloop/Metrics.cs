using System.CommandLine;
using System.Globalization;
using System.Text;
using System.Text.Json;

namespace XenLoop.Command;

/// <summary>"xenloop metrics": the status in Prometheus' text format, for a pipe or for node_exporter's folder of text files.</summary>
internal static class Metrics
{
    // Of a peer: the member, the metric, what it is.
    private static readonly (string Member, string Metric, string Help)[] _ofPeers =
    [
        ("packets_seen", "packets_seen_total", "Packets sent to the peer, by either way"),
        ("packets_diverted", "packets_diverted_total", "Of these, packets that went by the channel"),
        ("sent_packets", "sent_packets_total", "Packets sent by the present channel"),
        ("sent_bytes", "sent_bytes_total", "Bytes sent by the present channel"),
        ("received_packets", "received_packets_total", "Packets received from the present channel"),
        ("received_bytes", "received_bytes_total", "Bytes received from the present channel"),
        ("receive_errors", "receive_errors_total", "Frames that the channel's TAP did not take"),
        ("notifications", "notifications_total", "Events sent to the peer"),
        ("stalls", "stalls_total", "Times the peer was found not to empty its ring"),
    ];

    public static System.CommandLine.Command Create()
    {
        Option<string?> file = new("--textfile") { HelpName = "FILE", Description = "Write to this file, whole at each time, instead of standard output: for the textfile collector of node_exporter." };
        System.CommandLine.Command command = Request.Create("metrics", "Print the status in Prometheus' text format.", (result, daemon) =>
        {
            string text = Write(daemon.Ask("status"));
            if (result.GetValue(file) is { } path)
            {
                // A reader sees the old one or the new one.
                string unfinished = $"{path}.{Environment.ProcessId}";
                File.WriteAllText(unfinished, text);
                File.Move(unfinished, path, overwrite: true);
            }
            else
            {
                Console.Write(text);
            }

            return ExitCode.Fine;
        });
        command.Options.Add(file);
        return command;
    }

    /// <summary>All metrics of a status.</summary>
    public static string Write(JsonElement status)
    {
        StringBuilder text = new();
        Gauge("info", "The daemon: always 1", 1, ("version", status.Text("version")), ("role", status.Text("role")), ("mode", status.Text("mode")));
        Gauge("resident_bytes", "Memory of the daemon", status.Number("resident_bytes"));
        if (status.Text("role") == "guest")
        {
            Gauge("enabled", "Whether this guest takes part", status.Flag("enabled") ? 1 : 0);
            Gauge("channels", "Channels there are", status.Number("channels"));
            Gauge("ring_memory_bytes", "Memory of all rings", status.Number("ring_memory_bytes"));
            WriteVifs();
        }
        else
        {
            WriteGuests();
        }

        return text.ToString();

        void WriteVifs()
        {
            Head("vif_obstacle", "gauge", "1 while something on the interface keeps packets from being diverted");
            foreach (JsonElement vif in status.Items("vifs"))
            {
                Sample("vif_obstacle", vif.Text("obstacle") is null ? 0 : 1, ("vif", $"{vif.Whole("vif")}"));
            }

            Head("peer_shared", "gauge", "1 while packets to the peer go by shared memory");
            EachPeer((vif, peer) => Sample("peer_shared", GuestView.IsShared(peer) ? 1 : 0, Labels(vif, peer)));
            foreach ((string member, string metric, string help) in _ofPeers)
            {
                Head($"peer_{metric}", "counter", help);
                EachPeer((vif, peer) =>
                {
                    if (peer.Has(member))
                    {
                        Sample($"peer_{metric}", peer.Number(member), Labels(vif, peer));
                    }
                });
            }
        }

        void WriteGuests()
        {
            Head("guest_willing", "gauge", "1 for a guest whose daemon offers it");
            foreach (JsonElement guest in status.Items("guests"))
            {
                Sample("guest_willing", guest.Flag("willing") ? 1 : 0, ("domid", $"{guest.Whole("domid")}"), ("name", guest.Text("name")));
            }

            Head("guest_introduced", "gauge", "Vifs of others to which the vif is introduced");
            Each(status.Items("guests"), (guest, vif) => Sample(
                "guest_introduced", vif.Items("introduced").Count(), ("domid", $"{guest.Whole("domid")}"), ("name", guest.Text("name")), ("vif", $"{vif.Whole("vif")}")));
        }

        void EachPeer(Action<JsonElement, JsonElement> write)
        {
            foreach (JsonElement vif in status.Items("vifs"))
            {
                foreach (JsonElement peer in vif.Items("peers"))
                {
                    write(vif, peer);
                }
            }
        }

        void Gauge(string name, string help, double value, params (string, string?)[] labels)
        {
            Head(name, "gauge", help);
            Sample(name, value, labels);
        }

        void Head(string name, string type, string help) => text.Append($"# HELP xenloop_{name} {help}.\n# TYPE xenloop_{name} {type}\n");

        void Sample(string name, double value, params (string Name, string? Value)[] labels)
        {
            string list = string.Join(',', labels.Select(l => $"{l.Name}=\"{Escape(l.Value ?? "")}\""));
            text.Append($"xenloop_{name}{(list.Length > 0 ? $"{{{list}}}" : "")} {value.ToString("R", CultureInfo.InvariantCulture)}\n");
        }
    }

    private static (string, string?)[] Labels(JsonElement vif, JsonElement peer) =>
        [("vif", $"{vif.Whole("vif")}"), ("peer", $"{peer.Whole("domid")}"), ("peer_vif", $"{peer.Whole("vif")}"), ("mac", peer.Text("mac"))];

    private static void Each(IEnumerable<JsonElement> guests, Action<JsonElement, JsonElement> write)
    {
        foreach (JsonElement guest in guests)
        {
            foreach (JsonElement vif in guest.Items("vifs"))
            {
                write(guest, vif);
            }
        }
    }

    /// <summary>A label's value, as the format wants it.</summary>
    private static string Escape(string value) =>
        value.Replace("\\", "\\\\", StringComparison.Ordinal).Replace("\"", "\\\"", StringComparison.Ordinal).Replace("\n", "\\n", StringComparison.Ordinal);
}
