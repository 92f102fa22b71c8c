using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>A guest is saved and restored while its connections go on, and gets its channel back by itself: by plain xl, nobody quiesces it.</summary>
[Collection(SuspendHost.Name)]
public class SuspendTests(ChannelFixture xen)
{
    /// <summary>The pair, which of them is suspended, and how.</summary>
    public static readonly TheoryData<string, string, int, string> Suspends = new()
    {
        { "pvh1", "pvh2", 1, "restore" },
        { "pv1", "pv2", 0, "restore" },
        { "pv1", "pv2", 1, "cancel" },
        { "pvh1", "pvh2", 0, "migrate" },
    };

    [Theory, MemberData(nameof(Suspends))]
    public async Task Connections_outlive_the_save_of_a_guest(string a, string b, int suspended, string how)
    {
        (Node from, Node to) = (xen[a], xen[b]);
        await ChannelFixture.ChannelUpAsync(from, to);
        TcpTransfer transfer = await TcpTransfer.StartAsync(from, to);
        await xen.SuspendAsync(suspended == 0 ? from : to, how);
        await ChannelFixture.ChannelUpAsync(from, to);
        (long sent, long received) before = await from.PacketsAsync(to), after = before;
        // While the guest was away the sender's retransmission timer has backed off: the connection stands still for as long again at
        // most, by netfront as well (docs/measurements.md).
        for (int i = 0; i < 20 && !(after.sent > before.sent && after.received > before.received); i++)
        {
            await xen.SleepAsync(0.5);
            after = await from.PacketsAsync(to);
        }

        Assert.True(after.sent > before.sent && after.received > before.received, $"{before} to {after}: the connection does not use the channel");
        await transfer.FinishAsync();
        await from.KernelIsWellAsync();
        await to.KernelIsWellAsync();
    }

    [Fact]
    public async Task A_PV_guest_whose_daemon_is_stuck_is_not_saved_and_runs_on()
    {
        (Node from, Node to) = (xen["pv1"], xen["pv2"]);
        await ChannelFixture.ChannelUpAsync(from, to);
        await to.Daemon.SignalAsync("STOP");
        CommandResult refused = await xen.Host.RunAsync($"xl save {to.Name} /tmp/image");
        Assert.NotEqual(0, refused.ExitCode);
        Assert.Contains($"domain {to.Domid} ({to.Name}) has not closed its channels within 5 s", refused.Error, StringComparison.Ordinal);
        Assert.Contains("must not be saved", refused.Error, StringComparison.Ordinal);
        (await to.RunAsync($"ping -q -c 3 {from.Guest.Ipv4}")).Check();

        await to.Daemon.SignalAsync("CONT");
        (await xen.Host.RunAsync($"xl save -c {to.Name} /tmp/image; saved=$?; rm -f /tmp/image; exit $saved", TimeSpan.FromMinutes(5))).Check();
        await ChannelFixture.ChannelUpAsync(from, to);
        await to.KernelIsWellAsync();
    }

    [Fact]
    public async Task A_migration_that_fails_costs_no_connection_and_the_channel_comes_back()
    {
        (Node from, Node to) = (xen["pv1"], xen["pv2"]);
        await ChannelFixture.ChannelUpAsync(from, to);
        TcpTransfer transfer = await TcpTransfer.StartAsync(from, to);
        // Debian's hypervisor has no shadow page tables, without which no PV guest can be migrated: this fails after the guest was quiesced.
        CommandResult failed = await xen.Host.RunAsync($"xl migrate -s '' {to.Name} 'xl migrate-receive'", TimeSpan.FromMinutes(5));
        Assert.NotEqual(0, failed.ExitCode);
        Assert.Contains("quiesced", failed.Error, StringComparison.Ordinal);
        await ChannelFixture.ChannelUpAsync(from, to);
        await transfer.FinishAsync();
        await to.KernelIsWellAsync();
    }

    [Fact]
    public async Task A_guest_without_a_daemon_is_saved_without_delay()
    {
        Node guest = xen["pvh1"];
        await guest.Daemon.StopAsync();
        double plain = await SaveAsync(ChannelFixture.Unprepared);
        double prepared = await SaveAsync("true");
        await guest.Daemon.StartAsync();
        Assert.True(prepared < plain + 0.5, $"{prepared} s, and {plain} s with libxl's own helper");

        async Task<double> SaveAsync(string before)
        {
            string[] times = (await xen.Host.RunAsync($"""
                {before}
                cat /proc/uptime
                xl save -c {guest.Name} /tmp/image >/dev/null 2>&1 || exit 1
                cat /proc/uptime
                rm -f /tmp/image
                """, TimeSpan.FromMinutes(5))).Check().Output.Split(['\n', ' ']);
            return double.Parse(times[2], CultureInfo.InvariantCulture) - double.Parse(times[0], CultureInfo.InvariantCulture);
        }
    }
}
