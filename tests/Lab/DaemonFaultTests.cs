using System.Diagnostics;
using System.Globalization;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>
/// A daemon that dies at any of the steps that others can see, before and after it, in either role: traffic goes on,
/// the others let go of what they held for it, and its successor has a fresh channel. What there is is counted before and after.
/// </summary>
[Collection(DaemonTests.Name)]
public class DaemonFaultTests(ITestOutputHelper output)
{
    [Fact]
    public async Task Killed_at_each_step_of_the_bootstrap()
    {
        await using FaultLab faults = await FaultLab.StartAsync(output);
        await faults.AddVictimsAsync(connected: false, async example =>
        {
            Ping ping = Ping.Start(example.Guest, faults.Hub, interval: 0.1);
            await faults.Lab.UntilAsync("a channel", () => faults.IsConnected(example) && ping.Replies > 0);
            await ping.StopAsync();
        });
        await faults.KillEachAsync(faults.StartPing, faults.IsConnected);
        await faults.TrafficWentOnAsync();
        await faults.AreDeadAsync();
        await faults.HubLetsGoAsync();
        await faults.RestartAsync();
        await faults.EndAsync();
    }

    [Fact]
    public async Task Killed_at_each_step_of_its_own_end()
    {
        await using FaultLab faults = await FaultLab.StartAsync(output);
        await faults.AddVictimsAsync(connected: true, example => faults.Lab.StopAsync(example.Guest));
        foreach (Victim victim in faults.Victims)
        {
            faults.StartPing(victim);
        }

        await faults.KillEachAsync(v => faults.Lab[v.Guest].Signal(LibC.SIGTERM), v => faults.Lab[v.Guest].HasExited);
        await faults.TrafficWentOnAsync();
        await faults.AreDeadAsync();
        await faults.HubLetsGoAsync();
        await faults.RestartAsync();
        await faults.EndAsync();
    }

    [Fact]
    public async Task Killed_at_each_step_of_the_end_of_its_peer()
    {
        await using FaultLab faults = await FaultLab.StartAsync(output);
        DaemonLab lab = faults.Lab;
        await faults.AddVictimsAsync(connected: true, async example =>
        {
            Assert.Equal(0, await lab.StopAsync(faults.Hub));
            await lab.UntilAsync("the channel is closed and forgotten", () => lab.Said(example.Guest, faults.Hub) is null && lab.XenStore.Count(example.Guest.Domid).Watches == 2);
        });
        foreach (Victim victim in faults.Victims)
        {
            faults.StartPing(victim);
            faults.Requests.Kill(victim.Guest, lab[victim.Guest], victim.Moment);
        }

        Stopwatch watch = Stopwatch.StartNew();
        Assert.Equal(0, await lab.StopAsync(faults.Hub));
        Assert.InRange(watch.ElapsedMilliseconds, 0, 4000);
        await lab.NothingLeftAsync(faults.Hub, faults.HubBefore);
        await lab.UntilAsync("who lives has closed", () => faults.Victims.All(v => lab.Held(v.Guest) == default));
        await faults.BuryAsync();
        await faults.TrafficWentOnAsync();
        await faults.AreDeadAsync();
        await faults.StartHubAsync();
        await faults.RestartAsync();
        await faults.EndAsync();
    }

    [Fact]
    public async Task Killed_at_each_step_of_a_quiesce()
    {
        await using FaultLab faults = await FaultLab.StartAsync(output);
        DaemonLab lab = faults.Lab;
        await faults.AddVictimsAsync(connected: true, async example =>
            Assert.Equal((0, "quiesced\n"), await lab.Dom0.RunAsync(Quiesce(example.Guest))));
        foreach (Victim victim in faults.Victims)
        {
            faults.StartPing(victim);
        }

        await faults.KillEachAsync(v => DaemonLab.Ask(lab.Dom0, $"quiesce {v.Guest.Domid} 0"), Answered);
        await faults.TrafficWentOnAsync();
        await faults.AreDeadAsync();
        await faults.HubLetsGoAsync();

        // Who has answered has; of the others one half gets a new daemon, and nobody looks after the other half but its package.
        foreach (Victim victim in faults.Victims)
        {
            string expected = "quiesced\n";
            if (!Answered(victim) && victim.Moment.Done)
            {
                Assert.Equal((0, ""), await victim.Guest.RunAsync($"{DaemonLab.Daemon} --forget"));
                expected = "absent\n";
            }
            else if (!Answered(victim))
            {
                faults.StartDaemon(victim);
                await lab.UntilAsync($"{victim} offers itself", () => DaemonLab.Status(victim.Guest) is not null);
            }

            Assert.Equal((0, expected), await lab.Dom0.RunAsync(Quiesce(victim.Guest)));
        }

        foreach (Victim victim in faults.Victims)
        {
            if (lab[victim.Guest].HasExited)
            {
                faults.StartDaemon(victim);
            }

            await lab.UntilAsync($"{victim} is quiesced", () => Answered(victim));
            await Ping.MustAsync(victim.Guest, faults.Hub, count: 2);
            Assert.Equal(default, lab.Host.Broker.Count(victim.Guest.Domid));
            Assert.NotNull(DaemonLab.Ask(lab.Dom0, $"resume {victim.Guest.Domid}"));
        }

        await faults.UpAsync(faults.Victims);
        await faults.EndAsync();

        bool Answered(Victim victim) =>
            lab.XenStore.Read($"{victim.Guest.Home}/data/xenloop/quiesced") is { } answer && answer == lab.XenStore.Read($"{victim.Guest.Home}/xenloop/quiesce");

        static string Quiesce(LabGuest guest) => $"exec {DaemonLab.Command} quiesce {DaemonLab.Socket} {guest.Domid}";
    }

    [Fact]
    public async Task Dom0s_daemon_killed_at_each_step_of_a_quiesce()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        Requests requests = new(lab.Host);
        Ping ping = Ping.Start(a, b, interval: 0.02);
        await lab.UntilAsync("replies", () => ping.Replies > 0);
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        int nodes = lab.XenStore.Count(0).Nodes;

        requests.Record(lab.Dom0);
        Assert.Equal((0, "quiesced\n"), await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} {b.Domid}"));
        string[] steps = requests.Stop(lab.Dom0);
        Print("Dom0", steps);
        Assert.NotNull(DaemonLab.Ask(lab.Dom0, $"resume {b.Domid}"));
        await lab.UntilAsync("the channel is back", () => lab.IsUp(a, b));

        // Its polls are as many as there is time for: two attempts that were done before their moment came are the end.
        int done = 0;
        foreach (Moment moment in Moment.All(steps.Length + 1).TakeWhile(_ => done < 2))
        {
            LabProcess holder = lab.Dom0.Start("exec sleep 1000");
            string quiesce = $"{DaemonLab.Command} quiesce {DaemonLab.Socket} --holder {holder.Pid} {b.Domid}";
            requests.Kill(lab.Dom0, lab[lab.Dom0], moment);
            LabProcess victim = lab[lab.Dom0];
            Task<(int, string)> quiescing = lab.Dom0.RunAsync(quiesce);
            await lab.UntilAsync("it is dead, or was done before", () => victim.HasExited || quiescing.IsCompleted);
            await lab.KillAsync(lab.Dom0);
            output.WriteLine($"killed {moment}, {requests.Struck(lab.Dom0) ?? "was done"}");
            done = requests.Struck(lab.Dom0) is null ? done + 1 : 0;
            requests.Stop(lab.Dom0);
            int replies = ping.Replies;
            lab.Start(lab.Dom0);

            // Who asked has the answer of the next one; or lost its own connection, for it is a client of Dom0's, too.
            if (await quiescing != (0, "quiesced\n"))
            {
                Assert.Equal((0, "quiesced\n"), await lab.Dom0.RunAsync(quiesce));
            }

            await lab.UntilAsync("Dom0's daemon is back", () => DaemonLab.Status(lab.Dom0) is not null);
            await lab.UntilAsync("replies by the bridge", () => ping.Replies > replies + 3);
            Assert.Equal(default, lab.Host.Broker.Count(b.Domid));
            await lab.UntilAsync("a has let go, too", () => HoldsPagesAtMost(lab.Host.Broker.Count(a.Domid)));

            holder.Signal(LibC.SIGKILL);
            await lab.UntilAsync("the channel is back", () => lab.IsUp(a, b));
            await lab.UsageIsAsync(a, usageA);
            await lab.UsageIsAsync(b, usageB);
            await lab.UntilAsync("nothing more is in XenStore", () => lab.XenStore.Count(0).Nodes == nodes);
        }

        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, $"{summary}\n{lab.Messages()}");
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_guest_that_is_destroyed_at_a_step_of_its_peer_comes_back_under_its_name(bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        Requests requests = new(lab.Host);
        ushort domid = listener ? (ushort)2 : (ushort)1;
        LabGuest peer = await lab.AddGuestAsync("peer", domid: listener ? (ushort)1 : (ushort)500);
        LabGuest guest = await lab.AddGuestAsync("guest", domid: domid);
        string mac = guest.MacText;
        await lab.IntroducedAsync(peer[0], guest[0]);
        GuestUsage alone = lab.Usage(peer);
        requests.Record(peer);
        await lab.ChannelUpAsync(peer, guest);
        string[] steps = requests.Stop(peer);
        Print("peer", steps);
        GuestUsage connected = lab.Usage(peer);
        int nodes = lab.XenStore.Count(0).Nodes;

        // Every second one, before or after it: after one is before the next.
        foreach (Moment moment in Enumerable.Range(1, steps.Length).Where(n => n % 2 == (listener ? 0 : 1)).Select(n => new Moment(n, n % 4 < 2)))
        {
            Assert.Equal(0, await lab.StopAsync(guest));
            await lab.UsageIsAsync(peer, alone);
            lab.Start(guest);
            await lab.IntroducedAsync(peer[0], guest[0]);
            LabGuest doomed = guest;
            requests.Strike(peer, moment, () =>
            {
                lab.Host.Broker.RemoveDomain(doomed.Domid);
                lab[doomed].Signal(LibC.SIGKILL);
                return true;
            });
            Ping ping = Ping.Start(peer, guest, interval: 0.05);
            await lab.UntilAsync("the guest is gone, or has its channel", () => requests.Struck(peer) is not null || lab.IsConnected(peer[0], doomed[0]));
            output.WriteLine($"destroyed {moment}: {requests.Struck(peer) ?? "its channel was up"}");
            requests.Stop(peer);
            await lab.Host.DestroyGuestAsync(guest);
            await lab.UsageIsAsync(peer, alone);

            guest = await lab.AddGuestAsync("guest", domid: ++domid, mac: mac);
            int replies = ping.Replies;
            await lab.UntilAsync("a fresh channel, by the traffic that goes on", () => lab.IsUp(peer, guest) && ping.Replies > replies + 3);
            await ping.StopAsync();
            await lab.UsageIsAsync(peer, connected);
            await lab.UntilAsync("Dom0 has as many nodes as before", () => lab.XenStore.Count(0).Nodes == nodes);
        }
    }

    [Fact]
    public async Task A_slow_xenstored_delays_channels_and_no_packet()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        lab.XenStore.Delay = TimeSpan.FromMilliseconds(30);
        LabGuest a = await lab.Host.AddGuestAsync("a"), b = await lab.Host.AddGuestAsync("b");
        GuestUsage beforeA = lab.Usage(a), beforeB = lab.Usage(b);
        int nodes = lab.XenStore.Count(0).Nodes;
        Ping ping = Ping.Start(a, b, interval: 0.01);
        lab.Start(a);
        lab.Start(b);
        Stopwatch watch = Stopwatch.StartNew();
        await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
        output.WriteLine($"channel up {watch.ElapsedMilliseconds} ms after the daemons' start");
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);

        foreach (LabGuest guest in new[] { a, b })
        {
            watch.Restart();
            Assert.Equal((0, "quiesced\n"), await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} {guest.Name}"));
            output.WriteLine($"quiesced within {watch.ElapsedMilliseconds} ms");
            Assert.InRange(watch.ElapsedMilliseconds, 0, 5000);
            Assert.Equal(default, lab.Host.Broker.Count(guest.Domid));
            Assert.Equal((0, ""), await lab.Dom0.RunAsync($"{DaemonLab.Command} resume {DaemonLab.Socket} {guest.Name}"));
            await lab.UntilAsync("the channel is back", () => lab.IsUp(a, b));
            await lab.UsageIsAsync(a, usageA);
            await lab.UsageIsAsync(b, usageB);
        }

        // So slow that it cannot answer in time: it says so.
        lab.XenStore.Delay = TimeSpan.FromMilliseconds(300);
        watch.Restart();
        (int exit, string said) = await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} --timeout 1 b");
        output.WriteLine($"exit code {exit} after {watch.ElapsedMilliseconds} ms");
        Assert.True(exit == 3, said);
        Assert.InRange(watch.ElapsedMilliseconds, 1000, 8000);
        lab.XenStore.Delay = TimeSpan.FromMilliseconds(30);
        Assert.Equal((0, "quiesced\n"), await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} b"));
        Assert.Equal((0, ""), await lab.Dom0.RunAsync($"{DaemonLab.Command} resume {DaemonLab.Socket} b"));
        await lab.UntilAsync("the channel is back", () => lab.IsUp(a, b));

        Task<int> first = lab.StopAsync(a), second = lab.StopAsync(b);
        Assert.Equal((0, 0), (await first, await second));
        int replies = ping.Replies;
        await lab.UntilAsync("replies by the bridge", () => ping.Replies > replies + 20);
        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, $"{summary}\n{lab.Messages()}");
        await lab.NothingLeftAsync(a, beforeA);
        await lab.NothingLeftAsync(b, beforeB);
        await lab.UntilAsync("Dom0 has as many nodes as before", () => lab.XenStore.Count(0).Nodes == nodes);
    }

    [Fact]
    public async Task Who_died_while_it_called_is_tried_less_and_less_often()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        Requests requests = new(lab.Host);
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.IntroducedAsync(a[0], b[0]);
        requests.Record(a);
        await lab.ChannelUpAsync(a, b);
        int listening = Array.FindIndex(requests.Stop(a), r => r.Contains(" listening ", StringComparison.Ordinal)) + 1;
        Assert.Equal(0, await lab.StopAsync(a));
        lab.Start(a);
        await lab.IntroducedAsync(a[0], b[0]);
        requests.Kill(a, lab[a], new Moment(listening, true));
        requests.Record(b);
        Ping ping = Ping.Start(b, a, interval: 0.1);
        await lab.UntilAsync("a is dead", () => lab[a].HasExited);
        await Task.Delay(8000);
        await ping.StopAsync();
        int attempts = requests.Stop(b).Count(r => r.StartsWith("BindInterdomain", StringComparison.Ordinal));
        output.WriteLine($"{attempts} attempts within 8 s");
        // One a second, without a memory of the last one.
        Assert.InRange(attempts, 1, 4);
    }

    private void Print(string who, string[] requests)
    {
        output.WriteLine($"{who}, {requests.Length} requests:");
        output.WriteLine(string.Join('\n', requests.Select((r, i) => string.Create(CultureInfo.InvariantCulture, $"{i + 1,4} {r}"))));
    }

    /// <summary>A peer that lost many channels without a word keeps its one set of pages.</summary>
    private static bool HoldsPagesAtMost(BrokerUsage usage) => usage.PagesGranted <= 513 && (usage with { PagesGranted = 0 }) == default;
}
