using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>
/// A guest with a channel is saved and restored though nobody asked its daemon: it stays alive, and so does its traffic, and the
/// stale ports are not closed, whatever becomes of the daemon. (A PV guest that maps another's pages does not survive that: its
/// image is broken, which is why the save helper refuses to make it.)
/// </summary>
[Collection(SuspendHost.Name)]
public class UnpreparedSuspendTests(ChannelFixture xen)
{
    [Theory]
    [InlineData("pvh1", "pvh2", "listener")]
    [InlineData("pvh1", "pvh2", "connector")]
    [InlineData("pv1", "pv2", "listener")]
    public async Task The_guest_and_its_traffic_live_on_and_nothing_stale_is_closed(string a, string b, string role)
    {
        // The listener has the lower domid, which an earlier restore may have changed.
        (Node victim, Node peer) = (xen[a].Domid < xen[b].Domid) == (role == "listener") ? (xen[a], xen[b]) : (xen[b], xen[a]);
        await ChannelFixture.ChannelUpAsync(victim, peer);
        int suspends = await UnpreparedAsync(victim);
        await peer.StartPingAsync(victim.Guest.Ipv4);
        TcpTransfer transfer = await TcpTransfer.StartAsync(peer, victim);

        await xen.SuspendAsync(victim, "restore", ChannelFixture.Unprepared);
        await ChannelFixture.ChannelUpAsync(victim, peer);
        Assert.Equal(suspends + 1, await UnpreparedAsync(victim));
        Assert.Contains("this guest was suspended while it had channels", await victim.Daemon.LogAsync(), StringComparison.Ordinal);

        // Killed, it would take the kernel with it if it still had them.
        await victim.Daemon.KillAsync();
        await victim.Daemon.StartAsync();
        await ChannelFixture.ChannelUpAsync(victim, peer);
        await victim.Daemon.StopAsync();
        await victim.Daemon.StartAsync();
        await ChannelFixture.ChannelUpAsync(victim, peer);
        await transfer.FinishAsync();
        await peer.PingsGoOnAsync();
        await victim.KernelIsWellAsync();
        await peer.KernelIsWellAsync();
    }

    /// <summary>How often, says its daemon, or a predecessor of it.</summary>
    private static async Task<int> UnpreparedAsync(Node guest) =>
        (await guest.Daemon.StatusAsync()).TryGetProperty("unprepared_suspends", out var suspends) ? suspends.GetProperty("count").GetInt32() : 0;
}
