using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>A guest is saved and restored while its connections go on, and gets its channel back by itself: by plain xl, nobody quiesces it.</summary>
[Collection(ChannelHost.Name)]
public sealed class SuspendTests(ChannelFixture xen)
{
    /// <summary>The pair, which of them is suspended, and how.</summary>
    public static readonly TheoryData<string, string, int, string> Suspends = new()
    {
        { "pvh1", "pvh2", 1, "restore" },
        { "pv1", "pv2", 0, "restore" },
        { "pv1", "pv2", 1, "cancel" },
    };

    [Theory, MemberData(nameof(Suspends))]
    public async Task Connections_outlive_the_save_of_a_guest(string a, string b, int suspended, string how)
    {
        (Node from, Node to) = (xen[a], xen[b]);
        Node victim = suspended == 0 ? from : to;
        await ChannelFixture.ChannelUpAsync(from, to);
        int before = victim.Domid;

        // 60 pieces, one every half a second.
        (await to.RunAsync("socat -u TCP-LISTEN:5006,reuseaddr CREATE:/tmp/stream & echo $! >/tmp/receiver; sleep 0.3")).Check();
        (await from.RunAsync("""
            head -c 3000000 /dev/urandom >/tmp/source
            { for i in $(seq 0 59); do dd if=/tmp/source bs=50000 skip=$i count=1 2>/dev/null; sleep 0.5; done; } | socat -u - TCP:ADDRESS:5006 >/tmp/sender 2>&1 &
            echo $! >/tmp/sending
            """.Replace("ADDRESS", to.Guest.Ipv4, StringComparison.Ordinal))).Check();

        (await xen.Host.RunAsync($"""
            xl save {(how == "cancel" ? "-c" : "")} {victim.Name} /tmp/image || exit 1
            {(how == "cancel" ? "true" : "xl restore /tmp/image")} || exit 1
            rm -f /tmp/image
            """, TimeSpan.FromMinutes(5))).Check();
        await victim.Guest.RefreshDomidAsync();
        Assert.Equal(how == "cancel", victim.Domid == before);
        await ChannelFixture.ChannelUpAsync(from, to);
        (long sent, long received) packets = await from.PacketsAsync(to);

        string digest = (await from.RunAsync("while kill -0 $(cat /tmp/sending) 2>/dev/null; do sleep 0.1; done; cat /tmp/sender; sha256sum </tmp/source")).Check().Output;
        Assert.Equal(digest, (await to.RunAsync("while kill -0 $(cat /tmp/receiver) 2>/dev/null; do sleep 0.1; done; sha256sum </tmp/stream")).Check().Output);
        (long sent, long received) after = await from.PacketsAsync(to);
        Assert.True(after.sent > packets.sent, $"{packets} to {after}: the stream was over before the channel was back");
        Assert.DoesNotMatch("BUG|Oops|Call Trace", await victim.Guest.ConsoleLogAsync());
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
        Assert.DoesNotMatch("BUG|Oops|Call Trace", await to.Guest.ConsoleLogAsync());
    }

    [Fact]
    public async Task A_guest_without_a_daemon_is_saved_without_delay()
    {
        Node guest = xen["pvh1"];
        await guest.Daemon.StopAsync();
        double plain = await SaveAsync("LIBXL_SAVE_HELPER=$(echo /usr/lib/xen-*/bin/libxl-save-helper.real)");
        double prepared = await SaveAsync("");
        await guest.Daemon.StartAsync();
        Assert.True(prepared < plain + 0.5, $"{prepared} s, and {plain} s with libxl's own helper");

        async Task<double> SaveAsync(string variable)
        {
            string[] times = (await xen.Host.RunAsync($"""
                cat /proc/uptime
                {variable} xl save -c {guest.Name} /tmp/image >/dev/null 2>&1 || exit 1
                cat /proc/uptime
                rm -f /tmp/image
                """, TimeSpan.FromMinutes(5))).Check().Output.Split(['\n', ' ']);
            return double.Parse(times[2], CultureInfo.InvariantCulture) - double.Parse(times[0], CultureInfo.InvariantCulture);
        }
    }
}
