using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>One figure: how to measure it from guest to guest.</summary>
/// <param name="Name">As printed.</param>
/// <param name="Unit">Its unit.</param>
/// <param name="Script">Runs in the client; SERVER stands for the server's address.</param>
/// <param name="Parse">Takes the figure from what the script printed.</param>
internal sealed record Measurement(string Name, string Unit, string Script, Func<string, double> Parse)
{
    public async Task<double> RunAsync(XenGuest client, XenGuest server)
    {
        CommandResult result = await client.RunAsync(Script.Replace("SERVER", server.Ipv4, StringComparison.Ordinal), TimeSpan.FromMinutes(15));
        return Parse(result.Check().Output);
    }
}

/// <summary>The set: ping, iperf3 and sockperf, unmodified, as Debian ships them.</summary>
internal static partial class Measurements
{
    /// <summary>Runs in the server guest, once.</summary>
    public const string StartServers = """
        iperf3 -s -D
        sockperf server --tcp -i 0.0.0.0 -p 11111 >/dev/null 2>&1 &
        sockperf server -i 0.0.0.0 -p 11112 >/dev/null 2>&1 &
        sleep 1
        """;

    public static readonly Measurement[] All =
    [
        new("ping -A, average RTT", "us", "ping -q -A -c 500 SERVER", Ping),
        new("iperf3 TCP", "Gb/s", "iperf3 -J -t 2 -c SERVER", o => Received(o) / 1e9),
        new("iperf3 UDP 1400 B at 150 Mb/s, loss", "%", "iperf3 -J -t 1 -u -l 1400 -b 150M -c SERVER", Lost),
        new("iperf3 UDP 1400 B at 300 Mb/s, loss", "%", "iperf3 -J -t 1 -u -l 1400 -b 300M -c SERVER", Lost),
        new("iperf3 UDP 1400 B unpaced, received", "Mb/s", "iperf3 -J -t 1 -u -l 1400 -b 0 -c SERVER", o => ReceivedUdp(o) / 1e6),
        new("sockperf TCP ping-pong, one-way p50", "us", "sockperf ping-pong --tcp -i SERVER -p 11111 -t 1", Sockperf),
        new("sockperf UDP ping-pong, one-way p50", "us", "sockperf ping-pong -i SERVER -p 11112 -t 1", Sockperf),
    ];

    private static double Ping(string output) => 1000 * Number(PingSummary().Match(output), output);

    private static double Sockperf(string output) => Number(SockperfMedian().Match(output), output);

    private static double Received(string output) => End(output).GetProperty("sum_received").GetProperty("bits_per_second").GetDouble();

    private static double Lost(string output) => End(output).GetProperty("sum").GetProperty("lost_percent").GetDouble();

    private static double ReceivedUdp(string output)
    {
        JsonElement sum = End(output).GetProperty("sum");
        return sum.GetProperty("bits_per_second").GetDouble() * (1 - (sum.GetProperty("lost_percent").GetDouble() / 100));
    }

    private static JsonElement End(string output) => JsonDocument.Parse(output).RootElement.GetProperty("end");

    private static double Number(Match match, string output) => match.Success
        ? double.Parse(match.Groups[1].ValueSpan, CultureInfo.InvariantCulture)
        : throw new FormatException($"No figure in:\n{output}");

    [GeneratedRegex(@"= [0-9.]+/([0-9.]+)/")]
    private static partial Regex PingSummary();

    [GeneratedRegex(@"percentile 50\.000 = +([0-9.]+)")]
    private static partial Regex SockperfMedian();
}
