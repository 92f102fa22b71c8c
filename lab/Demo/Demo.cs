using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using Tmds.Linux;

namespace XenLoop.Lab;

/// <summary>
/// The demonstration: a lab host with two guests, their packets first over the bridge, then through shared memory, then a
/// daemon killed in the middle of a connection. Says what it does and prints what it counted. No speeds: the lab's bridge is
/// a short cut inside one kernel, with no netback to be saved.
/// </summary>
internal sealed partial class Demo
{
    private const int Seconds = 9;
    private const int KillAt = 3;
    private const int RestartAt = 6;
    private const int PingsPerSecond = 50;

    private readonly TextWriter _out;
    private readonly string _daemonBinary;
    private readonly LabGuest _alice;
    private readonly LabGuest _bob;
    private readonly LabHost _host;
    private readonly List<string> _unseen = [];

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

        Say("1. No daemon runs: what alice sends to bob leaves by her eth0, for the bridge.");
        await MustAsync(_bob, "iperf3 -s -D");
        Packets bridged = await SendAsync();
        Must(bridged.Eth0 > 0 && bridged.Channel == 0, "packets by eth0, and none by a channel, while no daemon ran");

        Say("2. Start xenloopd in Dom0 and in both guests. Dom0 introduces the two, the first packet builds a channel.");
        _host.Dom0.StartDaemon(_daemonBinary, onLine: line => Quote("dom0", line));
        StartDaemon(_alice);
        LabProcess daemon = StartDaemon(_bob);
        await ChannelUpAsync();
        Say("   The same again. Nothing changed for ping and iperf3: same addresses, same routes, same interface.");
        Packets channeled = await SendAsync();
        Must(channeled.Channel > 20 * channeled.Eth0, "nearly all packets in the channel, when it was there");

        Say($"""
            3. One TCP connection and {PingsPerSecond} pings a second, for {Seconds} s. After {KillAt} s bob's daemon is killed with SIGKILL, after {RestartAt} s it is
               started again.
            """);
        await KillInTheMiddleAsync(daemon);

        Say(_unseen.Count == 0
            ? "Done. Everything the demonstration made is removed."
            : $"This was to be seen, and was not: {string.Join("; ", _unseen)}. See the counts above.");
        _out.WriteLine("How fast it is, netfront beside XenLoop on real Xen, the lab cannot show: ./demo --xen in the sources does.");
        return _unseen.Count == 0 ? 0 : 1;
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

    /// <summary>A hundred pings, and some megabytes of TCP; prints which way alice's packets went.</summary>
    private async Task<Packets> SendAsync()
    {
        Row("alice sent", "by eth0", "by the channel");
        Packets start = await PacketsAsync();
        await MustAsync(_alice, $"ping -q -c 100 -i 0.01 {_bob.IPv4}");
        Packets pinged = await PacketsAsync();
        Row("100 pings", pinged - start);
        await MustAsync(_alice, $"iperf3 -n 20M -c {_bob.IPv4}");
        Packets end = await PacketsAsync();
        Row("20 MiB of TCP", end - pinged);
        return end - start;
    }

    private async Task KillInTheMiddleAsync(LabProcess daemon)
    {
        Task<(int ExitCode, string Output)> connection = _alice.RunAsync($"iperf3 -J -t {Seconds} -b 20M -c {_bob.IPv4}");
        Task<(int ExitCode, string Output)> pings = _alice.RunAsync(string.Create(
            CultureInfo.InvariantCulture, $"ping -n -q -i {1.0 / PingsPerSecond} -c {Seconds * PingsPerSecond} {_bob.IPv4}"));
        Row("second", "by eth0", "by the channel");
        Packets[] seconds = new Packets[Seconds + 1];
        for (int second = 1; second <= Seconds; second++)
        {
            Packets before = await PacketsAsync();
            await Task.Delay(1000);
            Packets sent = await PacketsAsync() - before;
            // Counted anew when the peer was introduced anew.
            seconds[second] = sent with { Channel = Math.Max(0, sent.Channel) };
            Row($"{second}", seconds[second], second switch { KillAt => "  <- bob's daemon is killed", RestartAt => "  <- and started again", _ => "" });
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
        bool survived = exitCode == 0 && !output.Contains("\"error\"", StringComparison.Ordinal);
        Must(survived, "the TCP connection alive to its end");
        (_, string summary) = await pings;
        Match counts = PingSummary().Match(summary);
        Must(counts.Success, $"what ping counted ({summary.Trim()})");
        if (!survived || !counts.Success)
        {
            return;
        }

        JsonElement end = JsonDocument.Parse(output).RootElement.GetProperty("end");
        long bytes = end.GetProperty("sum_received").GetProperty("bytes").GetInt64();
        long again = end.GetProperty("sum_sent").GetProperty("retransmits").GetInt64();
        int pinged = int.Parse(counts.Groups[1].ValueSpan, CultureInfo.InvariantCulture);
        int lost = pinged - int.Parse(counts.Groups[2].ValueSpan, CultureInfo.InvariantCulture);
        Must(lost < PingsPerSecond, "less than a second without replies");
        // The second after the kill and the one after the start may be of both kinds; on a slow machine all is sent before the last.
        bool left = seconds[(KillAt + 2)..(RestartAt + 1)].All(s => s.Eth0 > 0 && s.Channel == 0);
        Must(left, "all packets by eth0 while bob had no daemon");
        bool back = seconds[(RestartAt + 1)..].Any(s => s.Channel > s.Eth0) && ChannelState(_alice) == "running";
        Must(back, "the packets in a channel again, when bob had a daemon again");
        Say(string.Create(CultureInfo.InvariantCulture, $"""
               What it cost: {lost} of {pinged} pings. The TCP connection went on, {again} of its segments were sent again; {bytes / 1e6:0.0} MB arrived.
            {(left && back ? "   alice's packets left by eth0 while bob had no daemon. The new one was introduced, and they went into the new channel." : "")}
            """));
    }

    /// <summary>What alice has sent so far, by eth0 and by channels. What is diverted, eth0 does not count.</summary>
    private async Task<Packets> PacketsAsync()
    {
        JsonElement? peer = LabStatus.Ask(_alice) is { } status ? LabStatus.Peers(status).Cast<JsonElement?>().FirstOrDefault() : null;
        long diverted = peer?.GetProperty("packets_diverted").GetInt64() ?? 0;
        string sent = (await _alice.RunAsync("cat /sys/class/net/eth0/statistics/tx_packets")).Output;
        return new(long.Parse(sent, CultureInfo.InvariantCulture), diverted);
    }

    private static async Task<string> MustAsync(LabGuest guest, string command)
    {
        (int exitCode, string output) = await guest.RunAsync(command);
        return exitCode == 0 ? output : throw new InvalidOperationException($"\"{command}\" failed in {guest.Name} ({exitCode}): {output}");
    }

    private void Must(bool seen, string what)
    {
        if (!seen)
        {
            _unseen.Add(what);
        }
    }

    private void Say(string text) => _out.WriteLine($"\n{text}\n");

    private void Quote(string who, string line) => _out.WriteLine($"     {who,-5}| {line}");

    private void Row(string name, Packets packets, string remark = "") => Row(name, $"{packets.Eth0}", $"{packets.Channel}", remark);

    private void Row(string name, string eth0, string channel, string remark = "") => _out.WriteLine($"   {name,-16}{eth0,12}{channel,18}{remark}");

    [GeneratedRegex("([0-9]+) packets transmitted, ([0-9]+) received")]
    private static partial Regex PingSummary();

    private readonly record struct Packets(long Eth0, long Channel)
    {
        public static Packets operator -(Packets a, Packets b) => new(a.Eth0 - b.Eth0, a.Channel - b.Channel);
    }
}
