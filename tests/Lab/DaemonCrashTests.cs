using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>Daemons that are killed or stopped: traffic goes by the bridge within a second, and then by a channel again.</summary>
[Collection(DaemonTests.Name)]
public class DaemonCrashTests
{
    private const int Times = 10;
    private const double LongestGapSeconds = 1;

    [Fact]
    public async Task SIGKILL_ten_times_costs_under_a_second_each_and_leaks_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        string[] tracesA = Namespaces.Traces(a), tracesB = Namespaces.Traces(b);
        Ping ping = Ping.Start(a, b, interval: 0.02);
        for (int i = 0; i < Times; i++)
        {
            LabGuest victim = i % 2 == 0 ? a : b;
            await lab.KillAsync(victim);
            await RepliesByTheBridgeAsync(lab, ping, a);
            lab.Start(victim);
            await lab.ChannelUpAsync(a, b);
            await RepliesByTheChannelAsync(lab, ping, a, b);
        }

        (_, double gap, string summary) = await ping.StopAsync();
        Assert.True(gap < LongestGapSeconds, $"{gap} s without a reply; {summary}\n{lab.Messages()}");
        await lab.UsageIsAsync(a, usageA);
        await lab.UsageIsAsync(b, usageB);
        Assert.Equal(tracesA, Namespaces.Traces(a));
        Assert.Equal(tracesB, Namespaces.Traces(b));
    }

    [Fact]
    public async Task SIGSTOP_ten_times_costs_under_a_second_each_and_leaks_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        ulong? session = lab.Session(a, b);
        Ping ping = Ping.Start(a, b, interval: 0.02);
        for (int i = 0; i < Times; i++)
        {
            LabGuest victim = i % 2 == 0 ? a : b;
            lab[victim].Signal(LibC.SIGSTOP);
            await RepliesByTheBridgeAsync(lab, ping, a);
            lab[victim].Signal(LibC.SIGCONT);
            await lab.ChannelUpAsync(a, b);
            await RepliesByTheChannelAsync(lab, ping, a, b);
        }

        (_, double gap, string summary) = await ping.StopAsync();
        Assert.True(gap < LongestGapSeconds, $"{gap} s without a reply; {summary}\n{lab.Messages()}");

        // A pause is no reason to give the channel up.
        Assert.Equal(session, lab.Session(a, b));
        await lab.UsageIsAsync(a, usageA);
        await lab.UsageIsAsync(b, usageB);
    }

    [Fact]
    public async Task A_pause_of_the_daemon_costs_no_event_of_another_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest c = await lab.AddGuestAsync("c");
        await lab.ChannelUpAsync(a, c);
        await Ping.MustAsync(a, c);

        // In one look a's daemon will find that b's is dead, and then that there is a packet for c.
        lab[a].Signal(LibC.SIGSTOP);
        await lab.KillAsync(b);
        await lab.UntilAsync("the kernel has told that it is dead", () => lab.Host.Broker.Count(b.Domid).Ports == 0);
        (int exit, _) = await a.RunAsync($"ping -c 1 -W 0.05 {c.IPv4}");
        Assert.NotEqual(0, exit);
        long sent = Sent(DaemonLab.Channel(c, a)?.GetProperty("received_packets").GetInt64());
        lab[a].Signal(LibC.SIGCONT);
        await lab.UntilAsync("the packet for c arrives", () => Sent(DaemonLab.Channel(c, a)?.GetProperty("received_packets").GetInt64()) > sent, seconds: 5);

        static long Sent(long? packets) => packets ?? throw new InvalidOperationException("There is no channel to c.");
    }

    private static async Task RepliesByTheBridgeAsync(DaemonLab lab, Ping ping, LabGuest from)
    {
        int replies = ping.Replies;
        long sent = Namespaces.SentByVif(lab.Host, from);
        await lab.UntilAsync("replies by the bridge", () => ping.Replies > replies + 3 && Namespaces.SentByVif(lab.Host, from) > sent + 3, seconds: 5);
    }

    private static async Task RepliesByTheChannelAsync(DaemonLab lab, Ping ping, LabGuest from, LabGuest to)
    {
        int replies = ping.Replies;
        long diverted = DaemonLab.Diverted(from, to);
        await lab.UntilAsync("replies by the channel", () => ping.Replies > replies + 3 && DaemonLab.Diverted(from, to) > diverted + 3, seconds: 5);
    }
}
