using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Tmds.Linux;

namespace XenLoop.Lab;

/// <summary>
/// The demonstration: a lab host with two guests, traffic first over the bridge, then through shared memory, then a
/// daemon killed in the middle of a connection. Says what it does and prints what it measured.
/// </summary>
internal sealed partial class Demo
{
    private const int Seconds = 9;
    private const int KillAt = 3;
    private const int RestartAt = 6;

    private readonly TextWriter _out;
    private readonly string _daemonBinary;
    private readonly LabHost _host;
    private readonly LabGuest _alice;
    private readonly LabGuest _bob;

    private Demo(TextWriter output, string daemonBinary, LabHost host, LabGuest alice, LabGuest bob) =>
        (_out, _daemonBinary, _host, _alice, _bob) = (output, daemonBinary, host, alice, bob);

    /// <returns>Exit code: 0 when everything that is told was seen to happen.</returns>
    /// <exception cref="InvalidOperationException">The machine lacks something; says what.</exception>
    public static async Task<int> RunAsync(string daemonBinary, TextWriter output)
    {
        if (!File.Exists("/dev/net/tun"))
        {
            throw new InvalidOperationException("There is no /dev/net/tun: the channel's TAP needs it. Load the driver (modprobe tun), or run where the kernel has it.");
        }

        await using LabHost host = await LabHost.StartAsync();
        LabGuest alice = await host.AddGuestAsync("alice");
        LabGuest bob = await host.AddGuestAsync("bob");
        return await new Demo(output, daemonBinary, host, alice, bob).RunAsync();
    }

    private async Task<int> RunAsync()
    {
        Say($"""
            A host with two guests, alice ({_alice.IPv4}, domain {_alice.Domid}) and bob ({_bob.IPv4}, domain {_bob.Domid}), joined by the bridge {LabHost.DefaultBridge}.
            Each guest is a network namespace with its own eth0; XenStore, grants and event channels are the lab's.
            """);

        Say("1. No daemon runs: everything goes over the bridge.");
        await MustAsync(_bob, "iperf3 -s -D");
        Row("", "RTT", "TCP", "on the bridge", "through memory");
        Figures bridge = await MeasureAsync();
        Print("bridge", bridge);

        Say("2. Start xenloopd in Dom0 and in both guests. Dom0 introduces the two, the first packet builds a channel.");
        _host.Dom0.StartDaemon(_daemonBinary, onLine: line => Quote("dom0", line));
        StartDaemon(_alice);
        LabProcess daemon = StartDaemon(_bob);
        await ChannelUpAsync();
        Figures channel = await MeasureAsync();
        Row("", "RTT", "TCP", "on the bridge", "through memory");
        Print("bridge, before", bridge);
        Print("channel, now", channel);
        Say("""
               Nothing changed for ping and iperf3: same addresses, same routes, same interface. (Times in the lab say little:
               its bridge is a short cut inside one kernel, with no netback to be saved. ./demo --xen measures on real Xen.)
            """);

        Say($"3. One TCP connection for {Seconds} s. After {KillAt} s bob's daemon is killed with SIGKILL, after {RestartAt} s it is started again.");
        Row("second", "", "", "on the bridge", "through memory");
        bool survived = await KillInTheMiddleAsync(daemon);
        Say(survived
            ? "   The connection went on: over the bridge while the daemon was gone, through memory again when it was back."
            : "   The connection did not survive. That must not happen.");

        bool shown = survived && bridge.Channel == 0 && bridge.Bridge > 0 && channel.Channel > 20 * channel.Bridge;
        Say(shown ? "Done. Everything the demonstration made is removed." : "What was to be shown was not seen: see the packet counts above.");
        return shown ? 0 : 1;
    }

    private LabProcess StartDaemon(LabGuest guest) => guest.StartDaemon(_daemonBinary, onLine: line => Quote(guest.Name, line));

    /// <summary>Pings until both ends divert.</summary>
    private async Task ChannelUpAsync()
    {
        for (int i = 0; i < 100; i++)
        {
            if (ChannelState(_alice) == "running" && ChannelState(_bob) == "running")
            {
                return;
            }

            await _alice.RunAsync($"ping -q -c 1 -W 0.05 {_bob.IPv4}");
        }

        throw new InvalidOperationException("No channel after 5 s; see the daemons' messages above.");
    }

    private static string? ChannelState(LabGuest guest) =>
        LabStatus.Ask(guest) is { } status && LabStatus.Peers(status).FirstOrDefault() is { ValueKind: JsonValueKind.Object } peer
            ? peer.GetProperty("state").GetString()
            : null;

    private async Task<Figures> MeasureAsync()
    {
        (long bridge, long channel) before = await PacketsAsync();
        string ping = await MustAsync(_alice, $"ping -q -c 500 -i 0.002 {_bob.IPv4}");
        string iperf = await MustAsync(_alice, $"iperf3 -J -t 3 -c {_bob.IPv4}");
        (long bridge, long channel) after = await PacketsAsync();
        double bits = JsonDocument.Parse(iperf).RootElement.GetProperty("end").GetProperty("sum_received").GetProperty("bits_per_second").GetDouble();
        double rtt = double.Parse(PingSummary().Match(ping).Groups[1].ValueSpan, CultureInfo.InvariantCulture);
        return new Figures(rtt * 1000, bits / 1e9, after.bridge - before.bridge, after.channel - before.channel);
    }

    private async Task<bool> KillInTheMiddleAsync(LabProcess daemon)
    {
        Task<(int ExitCode, string Output)> connection = _alice.RunAsync($"iperf3 -J -t {Seconds} -b 100M -c {_bob.IPv4}");
        bool bridged = false;
        for (int second = 1; second <= Seconds; second++)
        {
            (long bridge, long channel) before = await PacketsAsync();
            await Task.Delay(1000);
            (long bridge, long channel) after = await PacketsAsync();
            long viaBridge = after.bridge - before.bridge;
            long viaChannel = Math.Max(0, after.channel - before.channel);
            bridged |= second is > KillAt and <= RestartAt && viaBridge > viaChannel;
            string what = second switch { KillAt => "  <- killed", RestartAt => "  <- started again", _ => "" };
            Row($"{second}", "", "", $"{viaBridge}", $"{viaChannel}", what);
            if (second == KillAt)
            {
                daemon.Signal(LibC.SIGKILL);
            }
            else if (second == RestartAt)
            {
                StartDaemon(_bob);
            }
        }

        (int exitCode, string output) = await connection;
        return exitCode == 0 && !output.Contains("\"error\"", StringComparison.Ordinal) && bridged && ChannelState(_alice) == "running";
    }

    /// <summary>Packets that alice has sent so far, over the bridge and through channels.</summary>
    private async Task<(long Bridge, long Channel)> PacketsAsync()
    {
        JsonElement? peer = LabStatus.Ask(_alice) is { } status ? LabStatus.Peers(status).Cast<JsonElement?>().FirstOrDefault() : null;
        long diverted = peer?.GetProperty("packets_diverted").GetInt64() ?? 0;
        string sent = (await _alice.RunAsync("cat /sys/class/net/eth0/statistics/tx_packets")).Output;
        return (long.Parse(sent, CultureInfo.InvariantCulture), diverted);
    }

    private static async Task<string> MustAsync(LabGuest guest, string command)
    {
        (int exitCode, string output) = await guest.RunAsync(command);
        return exitCode == 0 ? output : throw new InvalidOperationException($"\"{command}\" failed in {guest.Name} ({exitCode}): {output}");
    }

    private void Say(string text) => _out.WriteLine($"\n{text}\n");

    private void Quote(string who, string line) => _out.WriteLine($"     {who,-5}| {line}");

    private void Print(string name, Figures figures) => Row(name,
        string.Create(CultureInfo.InvariantCulture, $"{figures.RttMicroseconds:0} us"),
        string.Create(CultureInfo.InvariantCulture, $"{figures.Gigabits:0.0} Gb/s"),
        $"{figures.Bridge}", $"{figures.Channel}");

    private void Row(string name, string rtt, string tcp, string bridge, string channel, string remark = "") =>
        _out.WriteLine($"   {name,-16}{rtt,10}{tcp,12}{bridge,16}{channel,16}{remark}");

    [GeneratedRegex("= [0-9.]+/([0-9.]+)/")]
    private static partial Regex PingSummary();

    /// <summary>Round-trip time, throughput, and the packets alice sent on each path meanwhile.</summary>
    private sealed record Figures(double RttMicroseconds, double Gigabits, long Bridge, long Channel);
}
