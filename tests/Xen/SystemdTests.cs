using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>The deb in a guest whose first process is systemd: what an administrator does, and what systemd does.</summary>
[Collection(SuspendHost.Name)]
public class SystemdTests(ChannelFixture xen)
{
    [Fact]
    public async Task What_an_unprepared_suspend_leaves_outlives_the_service_and_the_package()
    {
        XenGuest guest = await xen.Host.CreateGuestAsync(new GuestOptions { Name = "systemd", Systemd = true, MemoryMiB = 384 });
        (Node node, Node peer) = (new Node(guest, await XenLoopDaemon.InstallPackageAsync(guest)), xen["pvh1"]);
        (await node.RunAsync("sed -i 's/^#idle-seconds = .*/idle-seconds = 604800/' /etc/xenloop/xenloopd.toml; systemctl reload xenloopd")).Check();
        await ChannelFixture.ChannelUpAsync(node, peer);
        await peer.StartPingAsync(guest.Ipv4);
        TcpTransfer transfer = await TcpTransfer.StartAsync(peer, node);

        await xen.SuspendAsync(node, "restore", ChannelFixture.Unprepared);
        await ChannelFixture.ChannelUpAsync(node, peer);
        string holder = await HolderAsync(node);
        Assert.NotEqual("", holder);

        (await node.RunAsync("systemctl restart xenloopd")).Check();
        await ChannelFixture.ChannelUpAsync(node, peer);
        (await node.RunAsync("systemctl kill --kill-who=main --signal=KILL xenloopd; until systemctl --quiet is-active xenloopd; do sleep 0.1; done")).Check();
        await ChannelFixture.ChannelUpAsync(node, peer);
        Assert.Equal(holder, await HolderAsync(node));

        (await node.RunAsync("dpkg --remove xenloop 2>&1 && ! systemctl --quiet is-active xenloopd")).Check();
        Assert.Equal("", (await node.RunAsync("""
            xenstore-ls data/xenloop 2>/dev/null
            ip -o link | grep ': xl'
            ls /usr/sbin/xenloopd /usr/lib/xenloop 2>/dev/null
            true
            """)).Output);
        Assert.Equal(holder, await HolderAsync(node));
        await transfer.FinishAsync();
        await peer.PingsGoOnAsync();

        // systemd ends every process but this one, and the kernel has nothing to complain of.
        await node.RunAsync("systemctl --no-block poweroff");
        (await xen.Host.RunAsync("while xl domid systemd >/dev/null 2>&1; do sleep 0.2; done")).Check();
        await node.KernelIsWellAsync();
    }

    private static async Task<string> HolderAsync(Node node) => (await node.RunAsync("grep -l xenloop-holder /proc/[0-9]*/comm")).Output;
}
