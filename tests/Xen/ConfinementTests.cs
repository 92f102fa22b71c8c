using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What the package's unit keeps from the daemon, and that the daemon has what it needs.</summary>
[Collection(SuspendHost.Name)]
public class ConfinementTests(ChannelFixture xen)
{
    // Each works for root, and must not for the service.
    private const string Forbidden = """
        etc touch /etc/xenloop/new
        usr touch /usr/sbin/new
        run touch /run/new
        memory sh -c '[ -c /dev/mem ]'
        hypercalls sh -c ': </dev/xen/privcmd'
        log sh -c ': </dev/kmsg'
        tunables sh -c 'cat /proc/sys/kernel/printk >/proc/sys/kernel/printk'
        internet bash -c 'exec 3<>/dev/udp/127.0.0.1/9'
        packets socat -u /dev/null INTERFACE:lo
        modules modprobe dummy
        mounts mount -t tmpfs none /mnt
        namespace unshare -m true
        owner chown 1 /run/confined
        nice sh -c '[ "$(nice -n -6 nice)" = -6 ]'
        """;

    private const string Needed = """
        netlink ip -o link
        filters nft list ruleset
        tun sh -c ': <>/dev/net/tun'
        grants sh -c ': <>/dev/xen/gntalloc'
        mappings sh -c ': <>/dev/xen/gntdev'
        events sh -c ': <>/dev/xen/evtchn'
        xenstore xenstore-read domid
        load cat /proc/loadavg
        limit sh -c 'cat /sys/module/xen_gntalloc/parameters/limit >/sys/module/xen_gntalloc/parameters/limit'
        conf sh -c 'cat /proc/sys/net/ipv6/conf/lo/disable_ipv6 >/proc/sys/net/ipv6/conf/lo/disable_ipv6'
        weight sh -c '[ "$(nice -n -5 nice)" = -5 ]'
        """;

    [Fact]
    public async Task The_service_can_do_what_the_daemon_needs_and_no_more()
    {
        XenGuest guest = await xen.Host.CreateGuestAsync(new GuestOptions { Name = "confined", Systemd = true, MemoryMiB = 384 });
        (Node node, Node peer) = (new Node(guest, await XenLoopDaemon.InstallPackageAsync(guest)), xen["pvh1"]);
        await ChannelFixture.ChannelUpAsync(node, peer);

        // The same unit with a shell in the daemon's place, and for comparison a shell that systemd does not confine.
        Dictionary<string, string> service = Outcomes((await node.RunAsync($$"""
            mkdir -p /mnt /run/systemd/system/confined.service.d
            cat >/run/confined.sh <<'END'
            try() { if said=$( ("${@:2}") 2>&1 >/dev/null); then echo "$1: works"; else echo "$1: fails, ${said%%$'\n'*}"; fi; }
            {{string.Join("\n", (Forbidden + "\n" + Needed).Split('\n').Select(line => "try " + line))}}
            END
            cp /lib/systemd/system/xenloopd.service /run/systemd/system/confined.service
            cat >/run/systemd/system/confined.service.d/test.conf <<'END'
            [Service]
            Type=oneshot
            Restart=no
            ExecStart=
            ExecStart=bash /run/confined.sh
            ExecStopPost=
            RuntimeDirectory=
            RuntimeDirectory=confined
            StandardOutput=file:/run/confined.out
            StandardError=file:/run/confined.err
            WatchdogSec=0
            END
            systemctl daemon-reload
            systemctl start confined || { systemctl status confined; cat /run/confined.err; exit 1; }
            cat /run/confined.out
            """)).Check().Output);
        Dictionary<string, string> root = Outcomes((await node.RunAsync("mkdir -p /run/confined; bash /run/confined.sh; rm -f /etc/xenloop/new /usr/sbin/new /run/new; umount /mnt; rmmod dummy")).Output);
        string all = string.Join('\n', service.Select(o => $"{o.Key}: {o.Value}; of root: {root[o.Key]}"));
        foreach (string name in Names(Forbidden))
        {
            Assert.True(service[name] != "works" && root[name] == "works", $"{name}\n{all}");
        }

        foreach (string name in Names(Needed))
        {
            Assert.True(service[name] == "works", $"{name}\n{all}");
        }
    }

    [Fact]
    public async Task The_confined_daemon_is_watched_reloads_and_follows_a_suspend()
    {
        XenGuest guest = await xen.Host.CreateGuestAsync(new GuestOptions { Name = "watched", Systemd = true, MemoryMiB = 384 });
        (Node node, Node peer) = (new Node(guest, await XenLoopDaemon.InstallPackageAsync(guest)), xen["pvh1"]);
        (await node.RunAsync("""
            mkdir -p /run/systemd/system/xenloopd.service.d
            printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/xenloopd.service.d/test.conf
            systemctl daemon-reload && systemctl restart xenloopd
            sed -i 's/^#idle-seconds = .*/idle-seconds = 604800/' /etc/xenloop/xenloopd.toml && systemctl reload xenloopd
            """)).Check();
        await ChannelFixture.ChannelUpAsync(node, peer);
        await peer.StartPingAsync(guest.Ipv4);
        await xen.SuspendAsync(node, "restore");
        await ChannelFixture.ChannelUpAsync(node, peer);
        await peer.PingsGoOnAsync();
        await peer.StartPingAsync(guest.Ipv4);
        // Signs of life come, all the time until here; and when they do not, the daemon is replaced.
        Assert.Equal("NRestarts=0\n", (await node.RunAsync("systemctl show -p NRestarts xenloopd")).Output);
        Assert.Equal("", (await node.RunAsync("grep -l xenloop-holder /proc/[0-9]*/comm")).Output);
        (await node.RunAsync("""
            systemctl kill --kill-who=main --signal=STOP xenloopd
            for i in $(seq 100); do systemctl show -p NRestarts xenloopd | grep -q =0 || exit 0; sleep 0.2; done
            systemctl status xenloopd; exit 1
            """)).Check();
        await ChannelFixture.ChannelUpAsync(node, peer);
        await peer.PingsGoOnAsync();
        await node.KernelIsWellAsync();
    }

    private static IEnumerable<string> Names(string list) => list.Split('\n').Select(line => line.Split(' ')[0]);

    private static Dictionary<string, string> Outcomes(string text) => text.Split('\n', StringSplitOptions.RemoveEmptyEntries)
        .Where(line => line.Contains(": ", StringComparison.Ordinal)).ToDictionary(line => line[..line.IndexOf(": ", StringComparison.Ordinal)], line => line[(line.IndexOf(": ", StringComparison.Ordinal) + 2)..]);
}
