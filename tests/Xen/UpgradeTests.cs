using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>The deb of one version after another in guests whose first process is systemd. On one release: it takes minutes.</summary>
[Collection(SuspendHost.Name)]
public class UpgradeTests(ChannelFixture xen)
{
    // Than what the sources are.
    private const string Newer = "0.2.0.99";

    /// <summary>Two guests whose packages come, change and go one after the other: of different versions in either order, over connections that
    /// live through all of it. What is left in the end is what was there before.</summary>
    [Fact]
    public async Task Upgrades_in_any_order_cost_no_connection_and_a_purge_leaves_nothing()
    {
        string own = (await XenLoopDaemon.PackagesAsync())[0], newer = (await XenLoopDaemon.PackagesAsync(Newer))[0];
        Node a = await BootAsync("old-a"), b = await BootAsync("old-b");
        string[][] before = [await ThingsAsync(a), await ThingsAsync(b)];
        await XenLoopDaemon.InstallPackagesAsync(a.Guest, own);
        await XenLoopDaemon.InstallPackagesAsync(b.Guest, own);
        await ChannelFixture.ChannelUpAsync(a, b);
        string version = await VersionAsync(a);
        TcpTransfer there = await TcpTransfer.StartAsync(a, b), back = await TcpTransfer.StartAsync(b, a);

        await ChangeAsync(a, newer);
        Assert.StartsWith(Newer, await VersionAsync(a), StringComparison.Ordinal);
        Assert.Equal(version, await VersionAsync(b));
        await ChangeAsync(b, newer);
        await ChangeAsync(a, own);
        Assert.Equal(version, await VersionAsync(a));
        Assert.StartsWith(Newer, await VersionAsync(b), StringComparison.Ordinal);

        foreach (Node node in new[] { b, a })
        {
            (await node.RunAsync("dpkg --purge xenloop 2>&1")).Check();
        }

        await there.FinishAsync();
        await back.FinishAsync();
        foreach ((Node node, string[] things) in new[] { (a, before[0]), (b, before[1]) })
        {
            string[] now = await ThingsAsync(node);
            Assert.Empty(now.Except(things).Select(t => $"left: {t}").Concat(things.Except(now).Select(t => $"gone: {t}")));
            await node.KernelIsWellAsync();
            await node.Guest.DestroyAsync();
        }

        async Task<Node> BootAsync(string name)
        {
            XenGuest guest = await xen.Host.CreateGuestAsync(new GuestOptions { Name = name, Systemd = true, MemoryMiB = 384 });
            // What every system has, and this image lacks: systemd makes it when it enables something, or has a private /tmp.
            (await guest.RunAsync("until systemctl --quiet is-active multi-user.target; do sleep 0.2; done; mkdir -p /var/lib/systemd /var/tmp")).Check();
            return new Node(guest, XenLoopDaemon.OfPackage(guest));
        }

        async Task ChangeAsync(Node node, string package)
        {
            await XenLoopDaemon.InstallPackagesAsync(node.Guest, package);
            await ChannelFixture.ChannelUpAsync(a, b);
            await there.GoesOnAsync();
            await back.GoesOnAsync();
            // They are in the channel, too.
            foreach ((Node from, Node to) in new[] { (a, b), (b, a) })
            {
                long sent = (await from.PacketsAsync(to)).Sent;
                await xen.SleepAsync(2);
                Assert.InRange((await from.PacketsAsync(to)).Sent, sent + 1, long.MaxValue);
            }
        }

        static async Task<string> VersionAsync(Node node) => (await node.Daemon.StatusAsync()).GetProperty("version").GetString()!;
    }

    /// <summary>All that a package or a daemon could leave in a guest: files, users, links, filters, processes, units, and nodes in XenStore.</summary>
    private async Task<string[]> ThingsAsync(Node node)
    {
        // Of dpkg's own, only what names packages; its log and what systemd notes at any time are nobody's trace.
        string guest = (await node.RunAsync("""
            find / -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache/ldconfig \) -prune -o -print | sort
            find /sys/fs/bpf /dev/net /dev/shm /run/systemd/system /run/systemd/generator* | sort
            find /run /tmp -name '*xenloop*' -not -path '/tmp/packages*'
            ls /var/lib/dpkg/info 2>/dev/null | grep -v '^format$'
            grep '^Package' /var/lib/dpkg/status
            cat /etc/passwd /etc/group
            ip -o link | sed 's/ qlen.*//; s/.*: \(.*\): .* qdisc/\1 qdisc/'
            for interface in eth0 control; do
              tc qdisc show dev $interface
              for hook in ingress egress; do tc filter show dev $interface $hook 2>/dev/null; done
            done
            systemctl list-units --all --no-legend --plain '*xenloop*'
            grep -h . /proc/[0-9]*/comm | grep xenloop
            xenstore-ls data 2>/dev/null
            true
            """)).Check().Output;
        string dom0 = (await xen.Host.RunAsync($"xenstore-ls /local/domain/{node.Domid}/xenloop 2>/dev/null; true")).Check().Output;
        return $"{guest}\n{dom0}".Split('\n');
    }
}
