using Tmds.Linux;
using XenLoop.Lab;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>The two-phase close: nothing is lost, nothing is left.</summary>
[Collection(DaemonTests.Name)]
public class DaemonCloseTests
{
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task SIGTERM_loses_no_packet_and_leaves_nothing(bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest low = await lab.Host.AddGuestAsync("low"), high = await lab.Host.AddGuestAsync("high");
        (LabGuest leaves, LabGuest stays) = listener ? (low, high) : (high, low);
        GuestUsage before = lab.Usage(leaves);
        lab.Start(stays);
        await lab.UntilAsync("the daemon of the guest that stays offers itself", () => lab.XenStore.Read($"{stays.Home}/xenloop/0") is not null);
        GuestUsage alone = lab.Usage(stays);
        lab.Start(leaves);
        await lab.ChannelUpAsync(low, high);

        Ping there = Ping.Start(leaves, stays, interval: 0.002), back = Ping.Start(stays, leaves, interval: 0.002);
        await lab.UntilAsync("replies", () => there.Replies > 50 && back.Replies > 50);
        Assert.Equal(0, await lab.StopAsync(leaves));
        int replies = there.Replies;
        await lab.UntilAsync("replies by the bridge", () => there.Replies > replies + 50);
        (int lostThere, _, string summaryThere) = await there.StopAsync();
        (int lostBack, _, string summaryBack) = await back.StopAsync();
        Assert.True((lostThere, lostBack) == (0, 0), $"{summaryThere}; {summaryBack}\n{lab.Messages()}");

        await lab.NothingLeftAsync(leaves, before);
        await lab.UsageIsAsync(stays, alone);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task SIGTERM_in_a_TCP_stream_costs_no_byte(bool sender)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        TcpStream stream = TcpStream.Open(a, b);
        await lab.UntilAsync("bytes in the channel", () => stream.Bytes > 20_000_000);
        Assert.Equal(0, await lab.StopAsync(sender ? a : b));
        long bytes = stream.Bytes;
        await lab.UntilAsync("bytes on the bridge", () => stream.Bytes > bytes + 20_000_000);

        // And into a channel again.
        lab.Start(sender ? a : b);
        await lab.ChannelUpAsync(a, b);
        bytes = stream.Bytes;
        await lab.UntilAsync("bytes in the new channel", () => stream.Bytes > bytes + 20_000_000);
        await stream.StopAsync();
    }

    [Fact]
    public async Task Both_daemons_can_end_at_once()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        Task<int> first = lab.StopAsync(a), second = lab.StopAsync(b);
        Assert.Equal((0, 0), (await first, await second));
        Assert.Empty(Namespaces.Traces(a));
        Assert.Empty(Namespaces.Traces(b));
        Assert.Equal((default, default), (lab.Host.Broker.Count(a.Domid), lab.Host.Broker.Count(b.Domid)));
    }

    [Fact]
    public async Task An_impatient_operator_changes_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        for (int round = 0; round < 40; round++)
        {
            LabProcess daemon = lab[a];
            await lab.UntilAsync("the daemon ends, which is told so again and again", () =>
            {
                for (int i = 0; i < 100 && !daemon.HasExited; i++)
                {
                    daemon.Signal(LibC.SIGTERM);
                    Thread.SpinWait(2000);
                }

                return daemon.HasExited;
            });
            Assert.True(daemon.ExitCode == 0, $"exit status {daemon.ExitCode} in round {round}");
            Assert.Equal(default, lab.Host.Broker.Count(a.Domid));
            lab.Start(a);
            await lab.UntilAsync("the daemon offers its guest again", () => lab.Introduced(b) is [_]);
        }
    }

    [Fact]
    public async Task Introductions_that_change_during_the_close_do_not_revive_it()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest hand = await lab.Host.AddGuestAsync("hand"), a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.ChannelUpAsync(a, b);
        using HandPeer peer = await HandPeer.StartAsync(lab, hand, a);
        await peer.ListenAsync();

        // The peer takes its time over the close, and meanwhile another guest leaves.
        Task<int> end = lab.StopAsync(a);
        await lab.UntilAsync("a closes", () => peer.OtherSays?.Phase == ChannelPhase.Closing && lab.Said(a, b) is null or { Phase: ChannelPhase.Closed });
        string? said = lab.XenStore.Read(DaemonLab.ChannelNode(a, b));
        lab[lab.Dom0].Signal(LibC.SIGSTOP);
        lab.XenStore.Write($"{a.Home}/xenloop/0", a.MacText);
        await Task.Delay(700);
        string? says = lab.XenStore.Read(DaemonLab.ChannelNode(a, b));
        Assert.True(says is null || says == said, $"{said}, then {says}");
        peer.Say(ChannelPhase.Closing);
        Assert.Equal(0, await end);
        Assert.Null(lab.XenStore.Read($"{a.Home}/data/xenloop"));
    }

    [Fact]
    public async Task A_ring_full_of_small_packets_is_emptied_before_the_close()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), hand = await lab.Host.AddGuestAsync("hand");
        using HandPeer peer = await HandPeer.StartAsync(lab, hand, a);
        await peer.ConnectAsync();

        // Shown, but without an event: a's daemon sleeps until it is told that the peer closes, and then all is there at once.
        long before = Namespaces.StrayDatagrams(a);
        int sent = peer.Fill(peer.Datagram());
        Assert.True(sent > 10_000, $"{sent} packets in the ring");
        peer.Say(ChannelPhase.Closing);
        await lab.UntilAsync("a closes", () => peer.OtherSays?.Phase == ChannelPhase.Closing);
        peer.Say(ChannelPhase.Closed);
        await lab.UntilAsync("a has closed", () => peer.OtherClosed);
        Assert.Equal(sent, Namespaces.StrayDatagrams(a) - before);
    }
}
