using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>What one run of a measurement brought.</summary>
/// <param name="Figure">In the measurement's unit.</param>
/// <param name="Work">How many of the measurement's units of work were done; 0 when that says nothing.</param>
internal readonly record struct Outcome(double Figure, double Work);

/// <summary>One figure: how to measure it from guest to guest.</summary>
/// <param name="Key">Its name on the command line and in the CSV.</param>
/// <param name="Name">As printed.</param>
/// <param name="Unit">Of the figure.</param>
/// <param name="WorkUnit">Of what processor time is counted for each.</param>
/// <param name="Script">Runs in the client; SERVER stands for the server's address.</param>
/// <param name="Parse">Takes the outcome from what the script printed.</param>
internal sealed record Measurement(string Key, string Name, string Unit, string WorkUnit, string Script, Func<string, Outcome> Parse)
{
    /// <summary>How often it is run at most, for the median; once is enough for what runs many times by itself.</summary>
    public int Runs { get; init; } = 3;

    /// <summary>Whether it runs bench/Datagrams.</summary>
    public bool UsesDatagrams { get; init; }

    /// <summary>Whether a smaller figure is the better one.</summary>
    public bool IsTime => Unit is "us" or "ms";

    public async Task<Outcome> RunAsync(XenGuest client, XenGuest server)
    {
        CommandResult result = await client.RunAsync(Script.Replace("SERVER", server.Ipv4, StringComparison.Ordinal), TimeSpan.FromMinutes(30));
        return Parse(result.Check().Output);
    }
}

/// <summary>The set: programs that people measure with and programs that people run, unmodified, as Debian ships them.</summary>
internal static partial class Measurements
{
    public const int DatagramsPort = 11113;

    private const string RoundTrip = "round trip";
    private const string Bulk = "64 KiB";
    private const string Request = "request";

    /// <summary>Runs in the server guest, once.</summary>
    public const string StartServers = """
        set -e
        iperf3 -s -D
        sockperf server --tcp -i 0.0.0.0 -p 11111 >/dev/null 2>&1 &
        sockperf server -i 0.0.0.0 -p 11112 >/dev/null 2>&1 &
        redis-server --daemonize yes --save '' --protected-mode no >/dev/null
        mkdir -p /tmp/www /var/log/nginx
        head -c 100 /dev/zero >/tmp/www/small
        head -c 1000000 /dev/zero >/tmp/www/1MB
        cat >/tmp/nginx.conf <<END
        user root;
        worker_processes $(grep -c ^processor /proc/cpuinfo);
        error_log /dev/null;
        pid /tmp/nginx.pid;
        events { }
        http { access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; server { listen 80; root /tmp/www; } }
        END
        nginx -c /tmp/nginx.conf
        sleep 1
        """;

    // As short as the programs allow: emulation takes half a minute for a second of several processors.
    public static readonly Measurement[] All =
    [
        Ping(300),
        Sockperf("tcp_rr", "sockperf TCP, one way p50", "--tcp -p 11111"),
        Sockperf("udp_rr", "sockperf UDP, one way p50", "-p 11112"),
        Tcp(64, 1, 3), Tcp(1024, 1, 30), Tcp(8192, 1, 160), Tcp(65536, 1, 256),
        Tcp(1024, 4, 30), Tcp(65536, 4, 512),
        new("udp_lossless", "UDP 1400 B, highest rate with < 0.1 % lost", "Mb/s", "", HighestRate, o => new(double.Parse(o, CultureInfo.InvariantCulture), 0)) { Runs = 1 },
        Udp("udp_unpaced", "UDP 1400 B unpaced, received", "Mb/s", 1e6, 1400, 32),
        new("udp_gso", "UDP 1400 B with GSO, unpaced, received", "Gb/s", Bulk, $"datagrams send SERVER {DatagramsPort} 1400 128", Datagrams) { UsesDatagrams = true },
        new("redis_1", "redis GET, 1 client", "requests/s", Request, "redis-benchmark -h SERVER -c 1 -n 1000 -t get --csv", o => Redis(o, 1000)),
        new("redis_50", "redis GET, 50 clients", "requests/s", Request, "redis-benchmark -h SERVER -c 50 -n 4000 -t get --csv", o => Redis(o, 4000)),
        Nginx("nginx_small", "nginx, 100 B, 16 connections", "small"),
        Nginx("nginx_1MB", "nginx, 1 MB, 16 connections", "1MB"),
        Computing("computing_ping", "beside a ping", "ping -q -A SERVER"),
        Computing("computing_tcp", "beside TCP", "iperf3 -t 60 -c SERVER"),
        // Last: whoever loses halves of datagrams cannot put any together until those have expired.
        Udp("udp_60000", "UDP 60000 B unpaced, received", "Gb/s", 1e9, 60000, 48),
    ];

    /// <summary>For profiles: so long that starting and ending the programs is little of it.</summary>
    public static readonly Measurement[] Profiled = [Ping(5000), Tcp(65536, 1, 1024)];

    /// <summary>Halves the range of rates eight times, a sixteenth of a second of datagrams each.</summary>
    private const string HighestRate = """
        low=0 high=2048
        for step in 1 2 3 4 5 6 7 8; do
          rate=$(((low + high) / 2))
          lost=$(iperf3 -J -i 0.1 -u -l 1400 -b ${rate}M -n $((rate * 1000000 / 128)) -c SERVER | sed -n 's/.*"lost_percent":[^0-9]*\([0-9.e-]*\).*/\1/p' | tail -n 1)
          if awk "BEGIN { exit !($lost < 0.1) }"; then low=$rate; else high=$rate; fi
        done
        echo $low
        """;

    /// <summary>What is left for a program of the client's that wants all of its processor; how long it takes.</summary>
    private static Measurement Computing(string key, string name, string traffic) => new(key, $"a computing program {name}", "ms", "",
        $$"""
        {{traffic}} >/dev/null 2>&1 &
        sleep 0.2
        now() { sed -n 's/^now at \([0-9]*\)[0-9]\{3\} nsecs/\1/p' /proc/timer_list; }
        begin=$(now) i=0
        while [ $i -lt 30000 ]; do i=$((i + 1)); done
        echo $(($(now) - begin))
        kill -INT $!
        wait $! || true
        """,
        o => new(double.Parse(o, CultureInfo.InvariantCulture) / 1000, 0));

    private static Measurement Ping(int count) => new("ping", "ping, round trip", "us", RoundTrip,
        $"ping -q -A -c {count} SERVER", o => new(1000 * Number(PingSummary(), o), count));

    private static Measurement Sockperf(string key, string name, string arguments) => new(key, name, "us", RoundTrip,
        $"sockperf ping-pong -i SERVER {arguments} -t 1", o => new(Number(SockperfMedian(), o), Number(SockperfMessages(), o)));

    /// <param name="size">Bytes of each write.</param>
    /// <param name="streams">Connections at once.</param>
    /// <param name="megabytes">How much is sent in all.</param>
    private static Measurement Tcp(int size, int streams, int megabytes) => new($"tcp_{size}_{streams}",
        $"TCP, writes of {size} B, {(streams == 1 ? "1 stream" : $"{streams} streams")}", "Gb/s", Bulk,
        // The count is for each stream.
        $"iperf3 -J -i 0.1 -l {size} -P {streams} -n {megabytes * 1024 / streams}K -c SERVER",
        o => new(Rate(o) / 1e9, End(o).GetProperty("sum_received").GetProperty("bytes").GetDouble() / 65536));

    private static Measurement Udp(string key, string name, string unit, double scale, int size, int megabytes) => new(key, name, unit, Bulk,
        $"iperf3 -J -i 0.1 -u -b 0 -l {size} -n {megabytes}M -c SERVER",
        o =>
        {
            JsonElement sum = End(o).GetProperty("sum");
            double arrived = 1 - (sum.GetProperty("lost_percent").GetDouble() / 100);
            return new(Rate(o) * arrived / scale, sum.GetProperty("bytes").GetDouble() * arrived / 65536);
        });

    /// <summary>Bytes that arrived, and the microseconds that they took.</summary>
    private static Outcome Datagrams(string output)
    {
        double[] numbers = [.. output.Split(' ').Select(number => double.Parse(number, CultureInfo.InvariantCulture))];
        return new(8 * numbers[0] / numbers[1] / 1000, numbers[0] / 65536);
    }

    private static Measurement Nginx(string key, string name, string file) => new(key, name, "requests/s", Request,
        $"timeout --preserve-status -s INT 0.3 wrk -t 1 -c 16 -d 9s http://SERVER:80/{file}", o => new(Number(WrkRate(), o), Number(WrkRequests(), o)));

    /// <summary>A line of names, then "GET","requests per second",...</summary>
    private static Outcome Redis(string output, int requests) => new(Number(RedisRate(), output), requests);

    /// <summary>
    /// Bits per second that iperf3 has sent in its whole intervals. Its own result counts to the end of the last, which newer versions
    /// sit out to the end, whatever there was to send.
    /// </summary>
    private static double Rate(string output)
    {
        JsonElement[] intervals = [.. JsonDocument.Parse(output).RootElement.GetProperty("intervals").EnumerateArray().Select(interval => interval.GetProperty("sum"))];
        JsonElement[] whole = intervals.Length > 1 ? intervals[..^1] : intervals;
        return 8 * whole.Sum(sum => sum.GetProperty("bytes").GetDouble()) / whole.Sum(sum => sum.GetProperty("seconds").GetDouble());
    }

    private static JsonElement End(string output) => JsonDocument.Parse(output).RootElement.GetProperty("end");

    private static double Number(Regex pattern, string output) => pattern.Match(output) is { Success: true } match
        ? double.Parse(match.Groups[1].ValueSpan, CultureInfo.InvariantCulture)
        : throw new FormatException($"No figure in:\n{output}");

    [GeneratedRegex(@"= [0-9.]+/([0-9.]+)/")]
    private static partial Regex PingSummary();

    [GeneratedRegex(@"percentile 50\.000 = +([0-9.]+)")]
    private static partial Regex SockperfMedian();

    [GeneratedRegex(@"\[Valid Duration\].*ReceivedMessages=([0-9]+)")]
    private static partial Regex SockperfMessages();

    [GeneratedRegex("\"GET\",\"([0-9.]+)\"")]
    private static partial Regex RedisRate();

    [GeneratedRegex(@"Requests/sec: +([0-9.]+)")]
    private static partial Regex WrkRate();

    [GeneratedRegex(@"([0-9]+) requests in ")]
    private static partial Regex WrkRequests();
}
