using System.Diagnostics;
using System.Globalization;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>A host of two hundred guests that all run the daemon and are introduced to each other.</summary>
public sealed class CrowdedHost : IAsyncLifetime
{
    internal const int Count = 200;

    // More shells than processors wait for each other, fewer for the kernel.
    private const int AtATime = 6;

    internal DaemonLab Lab { get; private set; } = null!;

    internal LabGuest[] Guests { get; private set; } = [];

    /// <summary>Seconds until all guests were there, and until all were introduced.</summary>
    internal (double Guests, double Introductions) Times { get; private set; }

    public async Task InitializeAsync()
    {
        Lab = await DaemonLab.StartAsync();
        Stopwatch watch = Stopwatch.StartNew();
        LabGuest[] guests = new LabGuest[Count];
        await Parallel.ForEachAsync(Enumerable.Range(0, Count), new ParallelOptions { MaxDegreeOfParallelism = AtATime }, async (i, _) =>
            guests[i] = await Lab.Host.AddGuestAsync($"g{i}"));
        Guests = guests;
        double made = watch.Elapsed.TotalSeconds;

        // Daemons begin in batches, or the last would come long after the first has given up waiting for a processor.
        foreach (LabGuest[] batch in Guests.Chunk(25))
        {
            Array.ForEach(batch, g => Lab.Start(g));
            await Lab.UntilAsync("a batch offers itself", () => batch.All(g => Lab.XenStore.Read($"{g.Home}/xenloop/0") is not null), seconds: 60);
        }

        await Lab.UntilAsync("all are introduced to all", () => Guests.All(g => Guests.All(p => p == g || Lab.IsIntroduced(g[0], p[0]))), seconds: 60);
        Times = (made, watch.Elapsed.TotalSeconds - made);
    }

    public async Task DisposeAsync() => await Lab.DisposeAsync();
}

/// <summary>What it costs to be one of many. The figures are in the output of each test.</summary>
[Collection(DaemonTests.Name)]
public class DaemonScaleTests(CrowdedHost host, ITestOutputHelper output) : IClassFixture<CrowdedHost>
{
    private const int Idle = 5000;

    private DaemonLab Lab => host.Lab;

    [Fact]
    public async Task Two_hundred_idle_guests_cost_nearly_nothing()
    {
        Say($"{CrowdedHost.Count} guests made in {host.Times.Guests:f1} s, introduced in {host.Times.Introductions:f1} s more");
        LabProcess[] daemons = [.. host.Guests.Select(g => Lab[g]), Lab[Lab.Dom0]];
        await RestAsync(daemons);
        TimeSpan cpu = DaemonLab.ProcessorTime(Lab[Lab.Dom0]);
        TimeSpan guestsCpu = Sum(daemons[..^1]);
        long[] before = [.. daemons.Select(DaemonLab.Sleeps)];
        await Task.Delay(Idle);
        long[] wakes = [.. daemons.Select(DaemonLab.Sleeps).Zip(before, (now, then) => now - then)];
        double percent = (DaemonLab.ProcessorTime(Lab[Lab.Dom0]) - cpu).TotalMilliseconds / Idle * 100;
        double guestsPercent = (Sum(daemons[..^1]) - guestsCpu).TotalMilliseconds / Idle * 100;
        long[] resident = [.. daemons.Select(DaemonLab.ResidentKiB).Order()];
        long dom0 = DaemonLab.ResidentKiB(Lab[Lab.Dom0]);
        Say($"Dom0's daemon: {percent:f1} % of a processor, {wakes[^1]} wake-ups in {Idle / 1000} s, {dom0 / 1024.0:f1} MiB resident");
        Say($"guests' daemons: {guestsPercent:f1} % of a processor together, {wakes[..^1].Sum()} wake-ups, {resident[100] / 1024.0:f1} MiB resident each");
        Assert.InRange(percent, 0, 1);
        Assert.InRange(wakes[^1], 0, 2);
        Assert.InRange(wakes[..^1].Sum(), 0, 10);
        Assert.InRange(dom0, 0, 20 * 1024);

        static TimeSpan Sum(LabProcess[] all) => all.Aggregate(TimeSpan.Zero, (sum, d) => sum + DaemonLab.ProcessorTime(d));
    }

    [Fact]
    public void Idle_guests_are_far_inside_their_quotas()
    {
        (int Nodes, int Watches, int Connections)[] counts = [.. host.Guests.Select(g => Lab.XenStore.Count(g.Domid))];
        Say($"each guest: up to {counts.Max(c => c.Nodes)} nodes, {counts.Max(c => c.Watches)} watches, {counts.Max(c => c.Connections)} connections");
        Assert.All(counts, c => Assert.InRange(c.Nodes, 1, 49));
        // Those with channels, of another test, have one more for each.
        Assert.All(counts.Where(c => c.Watches > 0), c => Assert.InRange(c.Watches, 1, 9));
    }

    [Fact]
    public async Task A_new_guest_is_introduced_to_all_within_a_second()
    {
        List<double> times = [];
        for (int i = 0; i < 5; i++)
        {
            LabGuest guest = await Lab.Host.AddGuestAsync($"new-{i}");
            Lab.Start(guest);
            while (Lab.XenStore.Read($"{guest.Home}/data/xenloop/offer") is null)
            {
                await Task.Yield();
            }

            Stopwatch watch = Stopwatch.StartNew();
            TimeSpan elapsed = default;
            await Lab.UntilAsync("the new guest is introduced to all", () =>
            {
                elapsed = watch.Elapsed;
                return host.Guests.All(p => Lab.IsIntroduced(guest[0], p[0]));
            });
            times.Add(elapsed.TotalMilliseconds);
            await Lab.UntilAsync("it has read them", () => VifLab.State(guest[0], host.Guests[^1][0]) == "idle");

            watch.Restart();
            await Lab.Host.DestroyGuestAsync(guest);
            TimeSpan destroyed = watch.Elapsed;
            await Lab.UntilAsync("it is withdrawn from all", () => host.Guests.All(p => Lab.IsStranger(guest[0], p[0])));
            Say($"{2 * CrowdedHost.Count} introductions in {times[^1]:f0} ms; all withdrawn {(watch.Elapsed - destroyed).TotalMilliseconds:f0} ms after its end");
        }

        // The median: other programs on the machine may have one of them wait.
        Assert.InRange(times.Order().ElementAt(times.Count / 2), 0, 1000);
    }

    [Fact]
    public async Task A_channel_among_hundreds_takes_under_50_ms()
    {
        List<double> times = [];
        for (int i = 0; i < 10; i++)
        {
            (LabVif from, LabVif to) = (host.Guests[10 + i][0], host.Guests[CrowdedHost.Count - 10 - i][0]);
            using Echo echo = Echo.Open(from, to);
            Stopwatch watch = Stopwatch.StartNew();
            echo.Send();
            TimeSpan elapsed = default;
            await Lab.UntilAsync("a channel", () =>
            {
                elapsed = watch.Elapsed;
                return Lab.IsConnected(from, to);
            });
            times.Add(elapsed.TotalMilliseconds);
            await Lab.MustDivertAsync(from, to);
        }

        times.Sort();
        Say($"ping to channel among {CrowdedHost.Count}: {times[0]:f1} ms at least, {times[5]:f1} median, {times[^1]:f1} at most");
        Assert.InRange(times[5], 0, 50);
    }

    [Fact]
    public async Task An_idle_peer_costs_under_a_kilobyte()
    {
        const int Few = 10;
        const int Many = 2010;
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        LabGuest a = await lab.AddGuestAsync("a");
        await lab.UntilAsync("a answers", () => DaemonLab.Status(a) is not null);
        (ushort, XenStoreAccess)[] readable = [(0, XenStoreAccess.None), (a.Domid, XenStoreAccess.Read)];
        lab.XenStore.Write($"{a.Home}/xenloop", "", readable);
        lab.XenStore.Write($"{a.Home}/xenloop/0", a.MacText, readable);
        await IntroduceAsync(0, Few);
        long few = DaemonLab.ResidentKiB(lab[a]);
        await IntroduceAsync(Few, Many);
        long many = DaemonLab.ResidentKiB(lab[a]);
        double bytes = (many - few) * 1024.0 / (Many - Few);
        Say($"{few} KiB resident with {Few} peers, {many} with {Many}: {bytes:f0} bytes each");
        Assert.InRange(bytes, 0, 1024);

        async Task IntroduceAsync(int from, int to)
        {
            for (int i = from; i < to; i++)
            {
                lab.XenStore.Write($"{a.Home}/xenloop/0/{1000 + i}-0", $"00:16:3e:99:{i >> 8:x2}:{i & 0xff:x2} 1 0");
            }

            await RestAsync([lab[a]]);
        }
    }

    /// <summary>Waits until no daemon has been busy for longer than the second in which the kernel may hold back news of interfaces.</summary>
    private async Task RestAsync(LabProcess[] daemons)
    {
        long before = -1;
        Stopwatch settled = Stopwatch.StartNew();
        await Lab.UntilAsync("the daemons come to rest", () =>
        {
            long now = daemons.Sum(DaemonLab.Sleeps);
            if (now != before)
            {
                settled.Restart();
            }

            before = now;
            return settled.ElapsedMilliseconds > 1500;
        });
    }

    private void Say(FormattableString text) => output.WriteLine(text.ToString(CultureInfo.InvariantCulture));
}
