using System.Diagnostics;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>Before a guest is suspended it holds nothing of others, and others hold nothing of it; traffic goes on.</summary>
[Collection(DaemonTests.Name)]
public class DaemonQuiesceTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_quiesced_guest_has_no_channel_until_it_is_resumed_and_no_packet_is_lost(bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest guest = listener ? a : b;
        Ping ping = Ping.Start(a, b, interval: 0.005);
        await lab.UntilAsync("replies", () => ping.Replies > 20);
        Stopwatch watch = Stopwatch.StartNew();
        Assert.Equal((0, "quiesced\n"), await AskAsync(lab, $"quiesce {guest.Domid}"));
        Assert.InRange(watch.ElapsedMilliseconds, 0, 2000);
        AssertNothingHeld(lab, guest);
        Assert.Empty(Namespaces.Traces(guest));

        // By name, and as often as one likes.
        Assert.Equal((0, "quiesced\n"), await AskAsync(lab, $"quiesce {guest.Name}"));
        int replies = ping.Replies;
        await lab.UntilAsync("replies by the bridge", () => ping.Replies > replies + 100);
        AssertNothingHeld(lab, guest);
        Assert.Equal((0, ""), await AskAsync(lab, $"resume {guest.Name}"));
        await lab.ChannelUpAsync(a, b);
        Assert.Null(lab.XenStore.Read($"{guest.Home}/data/xenloop/quiesced"));
        Assert.Null(lab.XenStore.Read($"{guest.Home}/xenloop/quiesce"));
        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, $"{summary}\n{lab.Messages()}");
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Channels_come_back_when_the_holder_ends_even_if_Dom0s_daemon_was_killed_meanwhile(bool kill)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        // As the save helper does it: the process that asks becomes the one that saves.
        LabProcess holder = lab.Dom0.Start($"{DaemonLab.Command} quiesce {DaemonLab.Socket} --holder $$ {b.Name} && exec sleep 1000");
        await lab.UntilAsync("the guest is quiesced", () => holder.Output.Contains("quiesced", StringComparison.Ordinal));
        Ping ping = Ping.Start(a, b, interval: 0.02);
        if (kill)
        {
            await lab.KillAsync(lab.Dom0);
            lab.Start(lab.Dom0);
            await lab.UntilAsync("Dom0's daemon is back", () => DaemonLab.Status(lab.Dom0) is not null);
        }

        int replies = ping.Replies;
        await lab.UntilAsync("replies by the bridge", () => ping.Replies > replies + 60);
        AssertNothingHeld(lab, b);
        holder.Signal(LibC.SIGKILL);
        await lab.UntilAsync("the channel is back", () => lab.IsUp(a, b));
        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, $"{summary}\n{lab.Messages()}");
    }

    [Fact]
    public async Task Who_has_no_daemon_is_not_waited_for_and_who_does_not_answer_not_for_long()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest plain = await lab.Host.AddGuestAsync("plain");
        await lab.UntilAsync("Dom0 knows of it", () => DaemonLab.Ask(lab.Dom0)!.Contains("plain", StringComparison.Ordinal));
        Stopwatch watch = Stopwatch.StartNew();
        Assert.Equal((0, "absent\n"), await AskAsync(lab, $"quiesce {plain.Name}"));
        Assert.InRange(watch.ElapsedMilliseconds, 0, 1000);
        (int exit, string output) = await AskAsync(lab, "quiesce nobody");
        Assert.Equal(1, exit);
        Assert.Contains("no domain \"nobody\"", output, StringComparison.Ordinal);

        lab[b].Signal(LibC.SIGSTOP);
        watch.Restart();
        (exit, output) = await AskAsync(lab, $"quiesce --timeout 0.5 {b.Name}");
        Assert.Equal(3, exit);
        Assert.Contains("has not closed its channels within 0.5 s", output, StringComparison.Ordinal);
        Assert.InRange(watch.ElapsedMilliseconds, 500, 3000);
        // What its divert takes in the first moment is lost with a daemon that hangs; the rest goes by the bridge.
        Assert.Equal(0, (await a.RunAsync($"ping -q -c 5 -i 0.2 {b.IPv4}")).ExitCode);

        // It wakes up, and finds out.
        lab[b].Signal(LibC.SIGCONT);
        Assert.Equal((0, "quiesced\n"), await AskAsync(lab, $"quiesce {b.Name}"));
        await lab.StopAsync(b);
        Assert.Equal((0, "absent\n"), await AskAsync(lab, $"quiesce {b.Name}"));
    }

    [Fact]
    public async Task A_daemon_that_starts_while_its_guest_is_suspended_waits_until_that_is_over()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a");
        LabGuest b = await lab.Host.AddGuestAsync("b");
        await lab.UntilAsync("Dom0 knows of it", () => DaemonLab.Ask(lab.Dom0)!.Contains("\"b\"", StringComparison.Ordinal));
        LabProcess holder = lab.Dom0.Start($"{DaemonLab.Command} quiesce {DaemonLab.Socket} --holder $$ {b.Name} && exec sleep 1000");
        await lab.UntilAsync("the answer", () => holder.Output.Contains("absent", StringComparison.Ordinal));
        lab.Start(b);
        await StaysWithoutChannelAsync(lab, a, b);
        holder.Signal(LibC.SIGKILL);
        await lab.ChannelUpAsync(a, b);
    }

    [Fact]
    public async Task Who_suspends_a_guest_right_after_another_is_its_holder()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        string quiesce = $"{DaemonLab.Command} quiesce {DaemonLab.Socket} --holder $$ {b.Name}";
        // Dom0's daemon looks for the first every 250 ms.
        LabProcess holder = lab.Dom0.Start($"sh -c '{quiesce}; true'; {quiesce} && echo held && exec sleep 1000");
        await lab.UntilAsync("the second holds it", () => holder.Output.Contains("held", StringComparison.Ordinal));
        await StaysWithoutChannelAsync(lab, a, b);
        holder.Signal(LibC.SIGKILL);
        await lab.ChannelUpAsync(a, b);
    }

    [Fact]
    public async Task A_holder_that_has_ended_and_is_a_zombie_holds_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        // The parent becomes a program that waits for no child.
        LabProcess parent = lab.Dom0.Start($"sh -c '{DaemonLab.Command} quiesce {DaemonLab.Socket} --holder $$ {b.Name}; echo ended' & exec sleep 1000");
        await lab.UntilAsync("the holder has ended", () => parent.Output.Contains("ended", StringComparison.Ordinal));
        await lab.ChannelUpAsync(a, b);
    }

    /// <summary>Though there is traffic, for long enough that Dom0's daemon has looked some times.</summary>
    private static async Task StaysWithoutChannelAsync(DaemonLab lab, LabGuest a, LabGuest b)
    {
        Ping ping = Ping.Start(a, b, interval: 0.02);
        await lab.UntilAsync("replies", () => ping.Replies > 60);
        AssertNothingHeld(lab, b);
        await ping.StopAsync();
        AssertNothingHeld(lab, b);
    }

    private static void AssertNothingHeld(DaemonLab lab, LabGuest guest) => Assert.Equal(default, lab.Host.Broker.Count(guest.Domid));

    private static Task<(int ExitCode, string Output)> AskAsync(DaemonLab lab, string command) => lab.Dom0.RunAsync($"{DaemonLab.Command} {command} {DaemonLab.Socket}");
}
