using System.Diagnostics;
using System.Globalization;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>What a daemon costs when it works, and when it does not.</summary>
[Collection(DaemonTests.Name)]
public class DaemonResourceTests(ITestOutputHelper output)
{
    private const long Gigabyte = 1_000_000_000;

    [Fact]
    public async Task A_gigabyte_passes_without_a_garbage_collection()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        // What the channel's making has left is collected before, by asking until it is: one more question must not be what is measured.
        foreach (LabGuest guest in new[] { a, b })
        {
            int before = Collections(guest);
            await lab.UntilAsync("a collection", () => Collections(guest) > before);
        }

        (int A, int B) collections = (Collections(a), Collections(b));
        TcpStream stream = TcpStream.Open(a, b, hash: false);
        await lab.UntilAsync("a gigabyte", () => stream.Bytes > Gigabyte, seconds: 60);
        await stream.StopAsync();
        Assert.InRange(DaemonLab.Channel(a, b)!.Value.GetProperty("sent_bytes").GetInt64(), Gigabyte, long.MaxValue);
        Assert.InRange(DaemonLab.Channel(b, a)!.Value.GetProperty("received_bytes").GetInt64(), Gigabyte, long.MaxValue);
        Assert.Equal(collections, (Collections(a), Collections(b)));

        static int Collections(LabGuest guest) => DaemonLab.Status(guest)!.Value.GetProperty("garbage_collections").GetInt32();
    }

    [Fact]
    public async Task Idle_daemons_sleep_and_are_small()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabProcess[] daemons = [lab[lab.Dom0], lab[a], lab[b]];
        // The kernel asks after a neighbour five seconds after the last packet: that is traffic.
        foreach ((LabGuest here, LabGuest there) in new[] { (a, b), (b, a) })
        {
            await here.RunAsync($"ip neigh replace {there.IPv4} lladdr {there.MacText} dev eth0 nud permanent");
        }

        // What the channel's making has set off comes to an end first; Dom0 looks once more a second after its bridge has learned something.
        long[] before = [];
        Stopwatch settled = Stopwatch.StartNew();
        await lab.UntilAsync("the daemons come to rest", () =>
        {
            long[] now = [.. daemons.Select(DaemonLab.Sleeps)];
            if (!now.SequenceEqual(before))
            {
                settled.Restart();
            }

            before = now;
            return settled.ElapsedMilliseconds > 1500;
        });
        await Task.Delay(3000);
        Assert.Equal(before, daemons.Select(DaemonLab.Sleeps));
        // Pages of the program that the kernel has mapped along count, too; how busy the machine is does not.
        output.WriteLine($"idle, in KiB: Dom0 {DaemonLab.ResidentKiB(daemons[0])}, guests {DaemonLab.ResidentKiB(daemons[1])}, {DaemonLab.ResidentKiB(daemons[2])}");
        Assert.All(daemons, d => Assert.InRange(DaemonLab.ResidentKiB(d), 1, 7 * 1024));
        // Also with one who asks again and again, which leaves some garbage each time.
        for (int i = 0; i < 150; i++)
        {
            Assert.All([a, b], guest => Assert.NotNull(DaemonLab.Status(guest)));
            Assert.All([lab[a], lab[b]], d => Assert.InRange(DaemonLab.ResidentKiB(d), 0, 8 * 1024));
        }
    }

    [Fact]
    public async Task A_hundred_round_trips_a_second_cost_hardly_more_than_where_nothing_spins()
    {
        double byEvent = await CostAsync("event"), adaptive = await CostAsync("adaptive");
        // Of a processor, for both guests together: what the answers are waited for, and hardly anything for what does not come.
        Assert.InRange(adaptive, 0, byEvent + 0.012);

        static async Task<double> CostAsync(string mode)
        {
            await using DaemonLab lab = await DaemonLab.StartAsync();
            LabGuest a = await lab.Host.AddGuestAsync("a"), b = await lab.Host.AddGuestAsync("b");
            lab.Start(a, "--mode", mode);
            lab.Start(b, "--mode", mode);
            await lab.ChannelUpAsync(a, b);
            long before = Nanoseconds(lab[a]) + Nanoseconds(lab[b]);
            Stopwatch elapsed = Stopwatch.StartNew();
            await Ping.MustAsync(a, b, count: 400); // 10 ms apart
            return (Nanoseconds(lab[a]) + Nanoseconds(lab[b]) - before) / elapsed.Elapsed.TotalNanoseconds;
        }

        static long Nanoseconds(LabProcess daemon) => Directory.EnumerateDirectories($"/proc/{daemon.Pid}/task")
            .Sum(thread => long.Parse(File.ReadAllText($"{thread}/schedstat").Split(' ')[0], CultureInfo.InvariantCulture));
    }
}
