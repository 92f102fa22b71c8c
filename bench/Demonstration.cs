using System.Globalization;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>
/// The demonstration on real Xen: what the lab's shows, with figures that mean something. The clock is the emulated
/// machine's: one instruction is one nanosecond.
/// </summary>
internal static class Demonstration
{
    private const int Seconds = 9;
    private const int KillAt = 3;
    private const int RestartAt = 6;

    private static readonly string[] _shown = ["ping", "tcp_rr", "udp_rr", "tcp_65536_1"];

    /// <returns>Exit code: 0 when everything that is told was seen to happen.</returns>
    public static async Task<int> RunAsync()
    {
        BenchHost host = await XenHost.PrepareAsync() ? BenchHost.Four : BenchHost.One;
        Console.WriteLine($"\nBooting Xen 4.20 with a Dom0 and two PVH guests in QEMU (software emulation; {host.Description})...");
        await using Pair pair = await Pair.StartAsync(GuestKind.Pvh, host.GuestVcpus, host.Options);
        Measurement[] set = [.. Measurements.All.Where(m => _shown.Contains(m.Key))];

        Console.WriteLine("\n1. No daemon runs: everything goes by netfront, netback and Dom0's bridge.");
        (long netfront, long channel) start = await PacketsAsync(pair);
        double[] netfront = await MeasureAsync(pair, set);
        (long netfront, long channel) before = await PacketsAsync(pair);

        Console.WriteLine("2. xenloopd starts in Dom0 and in both guests. Dom0 introduces the two, they build a channel.");
        await pair.StartDaemonsAsync();
        Console.WriteLine(await pair.ClientDaemon.LogAsync());
        (long netfront, long channel) up = await PacketsAsync(pair);
        double[] xenloop = await MeasureAsync(pair, set);
        (long netfront, long channel) after = await PacketsAsync(pair);

        Console.WriteLine($"{"",-44}{"netfront",12}{"XenLoop",12}{"better",9}");
        for (int i = 0; i < set.Length; i++)
        {
            double better = set[i].IsTime ? netfront[i] / xenloop[i] : xenloop[i] / netfront[i];
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"   {set[i].Name + ", " + set[i].Unit,-41}{netfront[i],12:0.00}{xenloop[i],12:0.00}{better,8:0.00}x"));
        }

        Console.WriteLine($"{"   packets the client sent by netfront",-44}{before.netfront - start.netfront,12}{after.netfront - up.netfront,12}");
        Console.WriteLine($"{"   packets the client sent in shared memory",-44}{before.channel - start.channel,12}{after.channel - up.channel,12}");

        Console.WriteLine($"\n3. One TCP connection for {Seconds} s. After {KillAt} s the server's daemon is killed with SIGKILL, after {RestartAt} s it is started again.");
        Task strike = pair.ServerDaemon.StrikeAsync("KILL", KillAt, RestartAt - KillAt);
        CommandResult connection = await pair.Client.RunAsync($$"""
            iperf3 -t {{Seconds}} -b 50M -c {{pair.Server.Ipv4}} >/tmp/iperf 2>&1 &
            connection=$!
            echo '   second   by netfront   in shared memory'
            last=$(cat /sys/class/net/eth0/statistics/tx_packets)
            lastd=$({{Diverted}})
            for second in $(seq {{Seconds}}); do
              sleep 1
              now=$(cat /sys/class/net/eth0/statistics/tx_packets)
              nowd=$({{Diverted}})
              # Counted anew when the peer was introduced anew.
              [ $nowd -ge $lastd ] || lastd=0
              printf '   %6d %13d %18d\n' $second $((now - last)) $((nowd - lastd))
              last=$now lastd=$nowd
            done
            wait $connection
            """, TimeSpan.FromMinutes(5));
        await strike;
        Console.Write(connection.Output);
        bool survived = connection.ExitCode == 0;
        bool moved = before.channel == start.channel && after.channel - up.channel > 20 * (after.netfront - up.netfront);
        Console.WriteLine(survived
            ? "   The connection went on: by netfront while the daemon was gone, in shared memory again when it was back."
            : $"   The connection did not survive. That must not happen.\n{connection}");
        Console.WriteLine(moved ? "\nDone." : "\nThe packets did not take the paths they should have: see the counts above.");
        return survived && moved ? 0 : 1;
    }

    // What the client's program at eth0's egress has diverted so far; 0 while no daemon answers.
    private const string Diverted = "xenloop status --json 2>/dev/null | sed -n 's/.*\"packets_diverted\": \\([0-9]*\\).*/\\1/p' | head -n 1 | grep . || echo 0";

    private static async Task<double[]> MeasureAsync(Pair pair, Measurement[] set)
    {
        double[] figures = new double[set.Length];
        for (int i = 0; i < set.Length; i++)
        {
            figures[i] = (await set[i].RunAsync(pair.Client, pair.Server)).Figure;
        }

        return figures;
    }

    private static async Task<(long Netfront, long Channel)> PacketsAsync(Pair pair)
    {
        string[] numbers = (await pair.Client.RunAsync($"cat /sys/class/net/eth0/statistics/tx_packets; {Diverted}")).Check()
            .Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        return (long.Parse(numbers[0], CultureInfo.InvariantCulture), long.Parse(numbers[1], CultureInfo.InvariantCulture));
    }
}
