using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using XenLoop.Protocol;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>Channels come with traffic, go without it, and are as many as the configuration allows.</summary>
[Collection(DaemonTests.Name)]
public class DaemonDemandTests(ITestOutputHelper output)
{
    private const double MostMilliseconds = 50;

    [Fact]
    public async Task Without_traffic_guests_hold_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 4);
        GuestUsage[] before = [.. guests.Select(lab.Usage)];
        await Task.Delay(2000);
        Assert.Equal(before, guests.Select(lab.Usage));
        foreach (LabGuest guest in guests)
        {
            GuestUsage usage = lab.Usage(guest);
            Assert.Equal(default, usage.Hypervisor);
            Assert.InRange(usage.XenStore.Watches, 1, 9);
            Assert.InRange(usage.XenStore.Nodes, 1, 49);
            Assert.All(guests.Where(g => g != guest), peer => Assert.Equal("idle", DaemonLab.State(guest, peer)));
            Assert.DoesNotContain(Namespaces.Traces(guest), t => t.StartsWith("xl", StringComparison.Ordinal));
        }
    }

    [Fact]
    public async Task One_ping_builds_a_channel_within_50_ms()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 5);
        List<double> times = [];
        for (int i = 0; i < guests.Length; i++)
        {
            for (int j = i + 1; j < guests.Length; j++)
            {
                // Both ways: the one who pings is the listener, and the connector.
                (LabGuest from, LabGuest to) = times.Count % 2 == 0 ? (guests[i], guests[j]) : (guests[j], guests[i]);
                using Echo echo = Echo.Open(from[0], to[0]);
                times.Add(await TimeToChannelAsync(lab, from[0], to[0], echo.Send));
                await lab.UntilAsync("both divert", () => lab.IsUp(from, to), seconds: 1);
                await lab.UntilAsync("the ping is answered", () => echo.Missing == 0, seconds: 1);
            }
        }

        times.Sort();
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"ping to channel: {times[0]:f1} ms at least, {times[times.Count / 2]:f1} median, {times[^1]:f1} at most, of {times.Count}"));
        Assert.InRange(times[times.Count / 2], 0, MostMilliseconds);
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task One_way_traffic_builds_a_channel_with_Dom0s_help(bool listenerSends)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 3);
        LabGuest from = guests[listenerSends ? 0 : 2];
        double milliseconds = await BuildAsync(guests[1]);
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"one-way datagram to channel: {milliseconds:f1} ms"));
        Assert.InRange(milliseconds, 0, 5 * MostMilliseconds);

        // The one that gets packets has none to send, and hears of it from Dom0 alone.
        await lab.KillAsync(lab.Dom0);
        LabGuest other = guests[listenerSends ? 2 : 0];
        Task<double> late = BuildAsync(other);
        await Task.Delay(1000);
        Assert.False(late.IsCompleted);
        Assert.True(lab.Said(from[0], other[0]) is { IsCall: true }, lab.Messages());
        Assert.Null(lab.Said(other[0], from[0]));
        lab.Start(lab.Dom0);
        await late;

        async Task<double> BuildAsync(LabGuest to)
        {
            // Somebody listens: else the kernel would answer that nobody does.
            using Socket receiver = Namespaces.Run(to, NewSocket);
            receiver.Bind(new IPEndPoint(to.IPv4, 0));
            using Socket sender = Namespaces.Run(from, NewSocket);
            double time = await TimeToChannelAsync(lab, from[0], to[0], () => sender.SendTo("datagram"u8, receiver.LocalEndPoint!));
            receiver.ReceiveTimeout = 1000;
            Assert.Equal(8, receiver.Receive(new byte[100]));
            return time;
        }

        static Socket NewSocket() => new(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp);
    }

    [Fact]
    public async Task A_call_that_was_there_before_the_daemon_is_answered()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        LabGuest a = await lab.Host.AddGuestAsync("a"), b = await lab.Host.AddGuestAsync("b");
        ChannelMessage call = new(ChannelPhase.Calling, Session: 7);
        lab.XenStore.Write(DaemonLab.ChannelNode(b, a), call.ToString(), (b.Domid, XenStoreAccess.None), (a.Domid, XenStoreAccess.Read));
        (ushort, XenStoreAccess)[] readable = [(0, XenStoreAccess.None), (a.Domid, XenStoreAccess.Read)];
        lab.XenStore.Write($"{a.Home}/xenloop", "", readable);
        lab.XenStore.Write($"{a.Home}/xenloop/0", a.MacText);
        lab.XenStore.Write(VifLab.IntroductionNode(a[0], b[0]), $"{b.MacText} 1 0 {call.Session:x16}");
        lab.Start(a);
        await lab.UntilAsync("a listens", () => lab.Said(a[0], b[0]) is { Phase: ChannelPhase.Listening }, seconds: 2);
    }

    [Fact]
    public async Task Address_resolution_builds_no_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 2);
        (LabGuest a, LabGuest b) = (guests[0], guests[1]);
        for (int i = 0; i < 20; i++)
        {
            // The kernel asks an address whether it is still there, and is answered; no packet follows.
            foreach (IPAddress address in new[] { b.IPv4, b.IPv6 })
            {
                (int exit, string said) = await a.RunAsync($"ip neigh replace {address} lladdr {b.MacText} nud probe dev eth0");
                Assert.True(exit == 0, said);
            }

            await Task.Delay(50);
        }

        // They were seen, and were not taken for demand: at either side.
        Assert.All([(a, b), (b, a)], p => Assert.InRange(DaemonLab.Channel(p.Item1, p.Item2)!.Value.GetProperty("packets_seen").GetInt64(), 20, 1000));
        Assert.All([(a, b), (b, a)], p => Assert.Equal("idle", DaemonLab.State(p.Item1, p.Item2)));
        Assert.Equal(0, lab.CountMessages(a, "channel up"));
        await lab.ChannelUpAsync(a[0], b[0]);
    }

    [Fact]
    public async Task A_channel_comes_at_the_configured_rate_and_does_not_flap_around_it()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 2, "[guest]\npackets-per-second = 20\n");
        (LabGuest a, LabGuest b) = (guests[0], guests[1]);
        using Echo echo = Echo.Open(a[0], b[0]);
        await echo.SendAsync(perSecond: 5, seconds: 3);
        Assert.Equal("idle", DaemonLab.State(a, b));
        Assert.Equal(0, lab.CountMessages(a, "channel"));

        await echo.SendAsync(perSecond: 40, seconds: 2);
        Assert.True(lab.IsUp(a, b), lab.Messages());

        // Once it is there, less is enough; more makes no second one.
        Random random = new(Seed: 3);
        for (int i = 0; i < 30; i++)
        {
            await echo.SendAsync(random.Next(10, 30), seconds: 0.15);
        }

        Assert.Equal(1, lab.CountMessages(a, "channel up"));
        Assert.Equal(0, lab.CountMessages(a, "channel closed"));
        await lab.UntilAsync(() => $"{echo.Missing} replies", () => echo.Missing == 0, seconds: 1);
    }

    [Fact]
    public async Task An_idle_channel_goes_and_comes_back_without_a_loss()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 2, "[guest]\nidle-seconds = 2\n");
        (LabGuest a, LabGuest b) = (guests[0], guests[1]);
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        string[] tracesA = Namespaces.Traces(a), tracesB = Namespaces.Traces(b);
        foreach ((LabGuest from, LabGuest to) in new[] { (a, b), (b, a) })
        {
            // A kernel that asks whether its neighbour is still there sends by the channel, too.
            (int exit, string said) = await from.RunAsync($"ip neigh replace {to.LinkLocal} lladdr {to.MacText} nud permanent dev eth0");
            Assert.True(exit == 0, said);
        }

        using Echo echo = Echo.Open(a[0], b[0]);
        for (int i = 1; i <= 3; i++)
        {
            // From the first packet, which has no channel yet, through its making.
            await echo.SendAsync(perSecond: 200, seconds: 0.5);
            Assert.True(lab.IsUp(a, b), lab.Messages());
            Stopwatch silence = Stopwatch.StartNew();
            await lab.UntilAsync("all replies", () => echo.Missing == 0, seconds: 1);
            await lab.UntilAsync("the channel goes", () => !lab.IsConnected(a[0], b[0]));
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"dropped after {silence.Elapsed.TotalSeconds:f2} s"));
            Assert.InRange(silence.Elapsed.TotalSeconds, 1.9, 4);

            // Whoever hears of the end from the other, and does not see the silence itself, remembers the channel for a while.
            await lab.UsageIsAsync(a, usageA);
            await lab.UsageIsAsync(b, usageB);
            Assert.Equal(tracesA, Namespaces.Traces(a));
            Assert.Equal(tracesB, Namespaces.Traces(b));
            Assert.Equal(i, lab.CountMessages(a, "channel up"));
        }

        // A packet each second is enough to keep it.
        await lab.ChannelUpAsync(a[0], b[0]);
        ulong? session = lab.Session(a, b);
        await echo.SendAsync(perSecond: 1, seconds: 5);
        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b), lab.Messages());
        Assert.Equal(0, echo.Missing);
    }

    /// <summary>A guest that may have two channels has three peers. It is the listener, or the connector.</summary>
    [Theory]
    [InlineData("max-channels = 2", true)]
    [InlineData("max-memory-mib = 4", false)]
    public async Task The_least_used_channel_makes_room_when_it_is_silent(string limit, bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = [await lab.Host.AddGuestAsync("g0"), await lab.Host.AddGuestAsync("g1"), await lab.Host.AddGuestAsync("g2"), await lab.Host.AddGuestAsync("g3")];
        LabGuest hub = guests[listener ? 0 : 3];
        LabGuest[] peers = [.. guests.Where(g => g != hub)];
        lab.StartWith(hub, $"[guest]\n{limit}\n");
        Array.ForEach(peers, p => lab.Start(p));
        await AllIntroducedAsync(lab, guests);
        Echo[] echoes = [.. peers.Select(p => Echo.Open(hub[0], p[0]))];
        using CancellationTokenSource end = new(), silence = new();
        Task keep = echoes[0].SendAsync(50, end.Token), stop = echoes[1].SendAsync(50, silence.Token);
        await lab.UntilAsync("two channels", () => lab.IsUp(hub, peers[0]) && lab.IsUp(hub, peers[1]));

        // While both are busy, whoever comes keeps to netfront: also when they have lived long enough.
        Task come = echoes[2].SendAsync(20, end.Token);
        Stopwatch watch = Stopwatch.StartNew();
        await lab.UntilAsync("they have lived for 11 s", () =>
        {
            Assert.False(lab.IsConnected(hub[0], peers[2][0]));
            return watch.Elapsed.TotalSeconds > 11;
        });
        Assert.True(lab.IsUp(hub, peers[0]) && lab.IsUp(hub, peers[1]), lab.Messages());

        await silence.CancelAsync();
        watch.Restart();
        await lab.UntilAsync("the third gets its channel", () => lab.IsUp(hub, peers[2]));
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{limit}: room was made after {watch.Elapsed.TotalSeconds:f1} s"));
        Assert.InRange(watch.Elapsed.TotalSeconds, 0, 10);
        Assert.True(lab.IsUp(hub, peers[0]), lab.Messages());
        Assert.False(lab.IsConnected(hub[0], peers[1][0]));
        await end.CancelAsync();
        await Task.WhenAll(keep, stop, come);
        Assert.Equal(1, lab.CountMessages(hub, "as many as max-channels"));
        await lab.UntilAsync(() => $"all are answered; missing {string.Join(", ", echoes.Select(e => e.Missing))}", () => echoes.All(e => e.Missing == 0), seconds: 1);
        Array.ForEach(echoes, e => e.Dispose());
    }

    /// <summary>Each of two guests has one channel, to somebody else; then those fall silent.</summary>
    [Fact]
    public async Task Two_guests_that_are_both_full_make_room_for_each_other()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest[] guests = await GuestsAsync(lab, 4, "[guest]\nmax-channels = 1\n");
        (LabGuest a, LabGuest b, LabGuest c, LabGuest d) = (guests[0], guests[1], guests[2], guests[3]);
        using Echo ac = Echo.Open(a[0], c[0]), bd = Echo.Open(b[0], d[0]), ab = Echo.Open(a[0], b[0]);
        using CancellationTokenSource end = new(), silence = new();
        Task[] busy = [ac.SendAsync(50, silence.Token), bd.SendAsync(50, silence.Token)];
        await lab.UntilAsync("two channels", () => lab.IsUp(a, c) && lab.IsUp(b, d));
        Task come = ab.SendAsync(20, end.Token);
        await Task.Delay(11_000);
        Assert.True(lab.IsUp(a, c) && lab.IsUp(b, d), lab.Messages());
        await silence.CancelAsync();
        Stopwatch watch = Stopwatch.StartNew();
        await lab.UntilAsync(() => $"a channel between the two; states {DaemonLab.State(a, b)}, {DaemonLab.State(b, a)}", () => lab.IsUp(a, b));
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"both full: room was made after {watch.Elapsed.TotalSeconds:f1} s"));
        await end.CancelAsync();
        await Task.WhenAll([.. busy, come]);
        await lab.UntilAsync("all are answered", () => ac.Missing + bd.Missing + ab.Missing == 0, seconds: 1);
        Assert.Equal([1, 1], new[] { a, b }.Select(g => lab.CountMessages(g, "as many as max-channels")));
    }

    /// <summary>Guests that are introduced to each other, all of them.</summary>
    private static async Task<LabGuest[]> GuestsAsync(DaemonLab lab, int count, string configuration = "")
    {
        LabGuest[] guests = await Task.WhenAll(Enumerable.Range(0, count).Select(i => lab.Host.AddGuestAsync($"g{i}")));
        Array.ForEach(guests, g => lab.StartWith(g, configuration));
        await AllIntroducedAsync(lab, guests);
        return guests;
    }

    private static async Task AllIntroducedAsync(DaemonLab lab, LabGuest[] guests)
    {
        foreach (LabGuest guest in guests)
        {
            foreach (LabGuest peer in guests.Where(p => p.Domid > guest.Domid))
            {
                await lab.IntroducedAsync(guest[0], peer[0]);
            }
        }
    }

    /// <returns>Milliseconds from the packet to the word of both sides.</returns>
    private static async Task<double> TimeToChannelAsync(DaemonLab lab, LabVif from, LabVif to, Action send)
    {
        Assert.False(lab.IsConnected(from, to));
        Stopwatch watch = Stopwatch.StartNew();
        send();
        TimeSpan elapsed = default;
        await lab.UntilAsync($"a channel from {VifLab.Name(from)} to {VifLab.Name(to)}", () =>
        {
            // A daemon says so first and diverts a moment later.
            elapsed = watch.Elapsed;
            return lab.IsConnected(from, to);
        });
        return elapsed.TotalMilliseconds;
    }
}
