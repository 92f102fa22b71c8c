using System.Globalization;
using System.Text;
using System.Text.Json;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>A stretch of the run.</summary>
/// <param name="Name">How the packets travel; null while that changes.</param>
/// <param name="Mark">What happens when it begins.</param>
/// <param name="Begin">In seconds from the begin of the run, on the client's clock.</param>
/// <param name="End">Likewise.</param>
internal sealed record Phase(string? Name, string Mark, double Begin, double End);

/// <summary>
/// Transactions per second over time while a guest migrates to the host of the guest that talks to it, and away again: one
/// TCP connection, over the network, over netfront, in shared memory, and over the network once more.
/// </summary>
internal static class Migration
{
    /// <summary>Seconds of each phase between the migrations, on the client's clock.</summary>
    private const int Length = 12;

    /// <summary>Seconds for which transactions are counted together.</summary>
    private const double Step = 0.5;

    /// <param name="save">Name of the files to write, without <c>.csv</c> and <c>.svg</c>; null for none.</param>
    /// <returns>Exit code: 0 when the connection lived to the end, and its packets took the paths they should have.</returns>
    public static async Task<int> RunAsync(string? save)
    {
        Console.WriteLine("Booting two hosts, each with a guest...");
        XenHost[] hosts = await XenHost.StartJoinedAsync();
        await using XenHost first = hosts[0], second = hosts[1];
        XenGuest[] guests = await Task.WhenAll(
            first.CreateGuestAsync(new GuestOptions { Name = "mobile", MemoryMiB = 256 }), // the less to copy, the sooner it is done
            second.CreateGuestAsync(new GuestOptions { Name = "client" }));
        (XenGuest mobile, XenGuest client) = (guests[0], guests[1]);
        XenLoopDaemon[] daemons = await Task.WhenAll(
            XenLoopDaemon.InstallAsync(first), XenLoopDaemon.InstallAsync(second), XenLoopDaemon.InstallAsync(mobile), XenLoopDaemon.InstallAsync(client));
        // Held back at first, so that the figure has netfront on one host, too.
        (await client.RunAsync(Configure(enabled: false))).Check();
        await Task.WhenAll(daemons.Select(daemon => daemon.StartAsync()));
        XenLoopDaemon clientDaemon = daemons[3];

        // -t times --mps is the room for the log. The pace is never reached.
        (await mobile.RunAsync("sockperf server --tcp -i 0.0.0.0 -p 11111 >/dev/null 2>&1 & sleep 1")).Check();
        (await client.RunAsync($"""
            setsid nohup sockperf ping-pong --tcp -i {mobile.Ipv4} -p 11111 -t 900 --mps 2000 --full-log /tmp/log >/tmp/sockperf 2>&1 </dev/null &
            echo $! >/tmp/pid
            sleep 5 # it measures the clock, and warms up
            """)).Check();

        List<Phase> phases = [];
        await StayAsync("network", "", "");
        await mobile.MigrateToAsync(second);
        await StayAsync("netfront", "migration in", "arrived");
        (await client.RunAsync($"{Configure(enabled: true)} && xenloop reload")).Check();
        await clientDaemon.WaitForAsync(mobile.Domid, "running");
        long before = await PacketsAsync();
        await StayAsync("shared memory", "channel wanted", "channel up");
        long moved = await PacketsAsync() - before;
        await mobile.MigrateToAsync(first);
        await StayAsync("network", "migration out", "arrived");
        string[] last = (await client.RunAsync("""
            bash -c 'echo $EPOCHREALTIME'
            kill -INT $(cat /tmp/pid)
            while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.2; done
            grep '^[0-9]*,' /tmp/log | cut -d , -f 3
            """, TimeSpan.FromMinutes(10))).Check().Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        double end = Number(last[0]);
        // sockperf's clock begins with the program, and what it answered in the last 50 ms it does not log.
        double[] answers = [.. last[1..].Select(Number)];
        double begin = phases[0].Begin;
        double offset = end - 0.05 - answers[^1] - begin;
        answers = [.. answers.Select(answer => answer + offset).Where(answer => answer >= 0)];
        phases = [.. phases.Select(phase => phase with { Begin = phase.Begin - begin, End = phase.End - begin })];

        Console.WriteLine("\n| phase | s | transactions/s | longest time without one, s |\n|---|---|---|---|");
        foreach (Phase phase in phases)
        {
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"| {phase.Name ?? phase.Mark} | {phase.End - phase.Begin:0.0} | {Rate(answers, phase.Begin, phase.End):0} | {LongestGap(answers, phase):0.00} |"));
        }

        Phase[] steady = [.. phases.Where(phase => phase.Name is not null)];
        double inMemory = Rate(answers, steady[2].Begin, steady[2].End);
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"\nShared memory to netfront: {inMemory / Rate(answers, steady[1].Begin, steady[1].End):0.00}x"));
        if (save is not null)
        {
            await File.WriteAllTextAsync(save + ".csv", Csv(answers, phases));
            await File.WriteAllTextAsync(save + ".svg", TimeChart.Svg([.. Bins(answers, phases[^1].End)], phases));
        }

        // Each transaction is a request that went into the channel.
        bool throughMemory = moved > 0.9 * inMemory * Length;
        bool survived = steady.All(phase => Rate(answers, phase.Begin, phase.End) > 0);
        Console.WriteLine($"The connection {(survived ? "lived to the end" : "did not survive")}; {moved} of its packets {(throughMemory ? "went" : "(too few) went")} in shared memory.");
        return survived && throughMemory ? 0 : 1;

        // The marks are taken within the one script, for to start another takes most of a second there.
        async Task StayAsync(string name, string change, string mark)
        {
            const string Now = "bash -c 'echo $EPOCHREALTIME'";
            double[] times = [.. (await client.RunAsync($"{Now}; sleep {Length}; {Now}", TimeSpan.FromMinutes(10))).Check()
                .Output.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(Number)];
            if (phases.Count > 0)
            {
                phases.Add(new Phase(null, change, phases[^1].End, times[0]));
            }

            phases.Add(new Phase(name, mark, times[0], times[1]));
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{times[0] - phases[0].Begin,6:0.0} s  {name}"));
        }

        async Task<long> PacketsAsync() => await clientDaemon.PeerAsync(mobile.Domid) is { } peer && peer.TryGetProperty("sent_packets", out JsonElement sent)
            ? sent.GetInt64()
            : 0;
    }

    private static string Configure(bool enabled) =>
        $"mkdir -p /etc/xenloop && printf '[guest]\\nenabled = {(enabled ? "true" : "false")}\\n' >/etc/xenloop/xenloopd.toml";

    private static double Number(string text) => double.Parse(text, CultureInfo.InvariantCulture);

    private static double Rate(double[] answers, double begin, double end) => answers.Count(answer => answer >= begin && answer < end) / (end - begin);

    private static double LongestGap(double[] answers, Phase phase)
    {
        double[] inside = [phase.Begin, .. answers.Where(answer => answer > phase.Begin && answer < phase.End), phase.End];
        return inside.Zip(inside.Skip(1), (one, next) => next - one).Max();
    }

    private static IEnumerable<(double Time, double Rate)> Bins(double[] answers, double end)
    {
        for (int i = 0; (i + 1) * Step <= end; i++)
        {
            yield return (i * Step, Rate(answers, i * Step, (i + 1) * Step));
        }
    }

    private static string Csv(double[] answers, List<Phase> phases)
    {
        StringBuilder csv = new("seconds,transactions_per_second,phase\n");
        foreach ((double time, double rate) in Bins(answers, phases[^1].End))
        {
            csv.AppendLine(CultureInfo.InvariantCulture, $"{time:0.0},{rate:0},{PhaseAt(time).Name ?? PhaseAt(time).Mark}");
        }

        Phase PhaseAt(double time) => phases.Last(phase => phase.Begin <= time);

        return csv.ToString();
    }
}
