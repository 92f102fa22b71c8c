using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>The lab itself, with shell commands in place of a daemon. Needs root.</summary>
public class LabHostTests
{
    [Fact]
    public async Task Guests_reach_each_other_and_Dom0_by_IPv4_IPv6_and_link_local()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        foreach (string target in new[] { $"{b.IPv4}", $"{b.IPv6}", $"{b.LinkLocal}%eth0", $"{lab.Dom0.IPv4}", $"{lab.Dom0.IPv6}" })
        {
            (int exit, string output) = await a.RunAsync($"ping -c 1 -W 2 {target}");
            Assert.True(exit == 0, output);
        }

        (_, string link) = await b.RunAsync("cat /sys/class/net/eth0/address; ip neigh show dev eth0");
        Assert.StartsWith(b.MacText, link, StringComparison.Ordinal);
        Assert.Contains($"{a.IPv4} lladdr {a.MacText}", link, StringComparison.Ordinal);
    }

    [Fact]
    public async Task XenStore_in_a_domain_is_that_domains_and_holds_what_libxl_writes()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        Assert.Equal((0, "a\n"), await a.RunAsync("xenstore-read name"));
        Assert.Equal((0, $"{b.Domid}\n"), await b.RunAsync("xenstore-read domid"));
        Assert.Equal((0, "Domain-0\n"), await lab.Dom0.RunAsync("xenstore-read name"));
        Assert.Equal(0, (await a.RunAsync("xenstore-write data/x 1")).ExitCode);
        Assert.NotEqual(0, (await b.RunAsync($"xenstore-read {a.Home}/data/x")).ExitCode);

        (_, string vif) = await a.RunAsync("xenstore-ls -f $(xenstore-read device/vif/0/backend)");
        Assert.Contains($"{a.Backend}/mac = \"{a.MacText}\"", vif, StringComparison.Ordinal);
        Assert.Contains($"{a.Backend}/bridge = \"xenbr0\"", vif, StringComparison.Ordinal);
        Assert.NotEqual(0, (await a.RunAsync($"xenstore-write {a.Backend}/mac 00:16:3e:00:00:00")).ExitCode);
        Assert.Equal(0, (await a.RunAsync("xenstore-write device/vif/0/mac 00:16:3e:00:00:00")).ExitCode);
    }

    [Fact]
    public async Task A_guest_on_another_bridge_is_not_reached()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b", bridge: "xenbr1");
        Assert.Equal("xenbr1", lab.Store.Read($"{b.Backend}/bridge"));
        Assert.Equal(1, (await a.RunAsync($"ping -c 1 -W 1 {b.IPv4}")).ExitCode);
    }

    [Fact]
    public async Task Destroying_a_guest_leaves_nothing_of_it()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        LabProcess daemon = a.StartDaemon("sleep", ["1000"]);
        await a.RunAsync("xenstore-write data/x 1");
        await lab.DestroyGuestAsync(a);

        Assert.False(Directory.Exists($"/proc/{daemon.Pid}"));
        Assert.False(File.Exists($"/run/netns/{a.NetNs}"));
        Assert.Null(lab.Store.Read(a.Home));
        Assert.Null(lab.Store.Read($"/local/domain/0/backend/vif/{a.Domid}"));
        Assert.Equal((0, 0, 0), lab.Store.Count(a.Domid));
        Assert.NotEqual(0, (await lab.Dom0.RunAsync($"ip link show vif{a.Domid}.0")).ExitCode);

        // The name and the domid are free again.
        LabGuest again = await lab.AddGuestAsync("a", domid: a.Domid, mac: a.MacText);
        Assert.Equal((a.Domid, a.MacText), (again.Domid, again.MacText));
        Assert.Equal(0, (await b.RunAsync($"ping -c 1 -W 2 {again.IPv4}")).ExitCode);
    }

    [Fact]
    public async Task XenStore_holds_libxls_own_copy_which_no_guest_reads()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest driver = await lab.AddGuestAsync("driver");
        LabGuest a = await lab.AddGuestAsync("a", [new(), new("xenbr1", Vlan: 7, BackendDomain: driver)]);
        Dictionary<string, string> copy = await NodesAsync(lab.Dom0, a.Vifs[1].Libxl);
        Assert.Equal(
            new()
            {
                ["frontend"] = $"/local/domain/{a.Domid}/device/vif/1",
                ["backend"] = $"/local/domain/{driver.Domid}/backend/vif/{a.Domid}/1",
                ["frontend-id"] = $"{a.Domid}",
                ["online"] = "1",
                ["state"] = "1",
                ["script"] = "/etc/xen/scripts/vif-bridge",
                ["mac"] = a.Vifs[1].MacText,
                ["vlan"] = "7",
                ["bridge"] = "xenbr1",
                ["handle"] = "1",
                ["type"] = "vif",
                ["hotplug-status"] = "",
            },
            copy);

        // Of libxl's private area not even the names.
        (_, string permissions) = await lab.Dom0.RunAsync($"xenstore-ls -p {a.Libxl}");
        Assert.DoesNotContain("(r", permissions, StringComparison.Ordinal);
        Assert.DoesNotContain($"(n{a.Domid}", permissions, StringComparison.Ordinal);
        foreach (LabGuest guest in new[] { a, driver })
        {
            Assert.NotEqual(0, (await guest.RunAsync($"xenstore-read {a.Vifs[1].Libxl}/mac")).ExitCode);
            Assert.NotEqual(0, (await guest.RunAsync($"xenstore-write {a.Vifs[1].Libxl}/mac 00:16:3e:00:00:00")).ExitCode);
        }

        Dictionary<string, string> backend = await NodesAsync(a, a.Backend);
        Assert.Equal(("4", "connected"), (backend["state"], backend["hotplug-status"]));
        Assert.DoesNotContain("vlan", backend.Keys);
    }

    [Fact]
    public async Task A_guest_with_several_vifs_reaches_others_by_each()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a", [new(), new("xenbr1", "00:16:3e:00:00:77")]);
        LabGuest b = await lab.AddGuestAsync("b", [new("xenbr1"), new("xenbr1")]);
        Assert.Equal([0, 1], a.Vifs.Select(v => v.Index));
        Assert.Equal("00:16:3e:00:00:77", (await a.RunAsync("cat /sys/class/net/eth1/address")).Output.Trim());
        Assert.NotEqual(a.Vifs[0].IPv4, a.Vifs[1].IPv4);
        LabVif to = b.Vifs[1];
        foreach (string target in new[] { $"{to.IPv4}", $"{to.IPv6}", $"{to.LinkLocal}%eth1" })
        {
            await PingAsync(a, target);
        }

        Assert.False(await CanPingAsync(a, b.IPv4));
    }

    [Fact]
    public async Task Vifs_are_plugged_in_and_unplugged()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.PlugAsync(b, 2, new("xenbr2"));
        string before = await EverythingAsync(lab, a);
        LabVif vif = await lab.PlugAsync(a, 2, new("xenbr2"));
        Assert.Equal([a[0], vif], a.Vifs);
        await PingAsync(b, vif.IPv4);
        await PingAsync(b, vif.IPv6);
        Assert.Equal("4", lab.Store.Read($"{vif.Backend}/state"));
        Assert.Equal("4", lab.Store.Read($"{vif.Frontend}/state"));
        Assert.Equal(vif.Backend, lab.Store.Read($"{vif.Libxl}/backend"));
        await Assert.ThrowsAsync<ArgumentException>(() => lab.PlugAsync(a, 2, new()));

        await lab.UnplugAsync(a, 2);
        Assert.Equal(before, await EverythingAsync(lab, a));
        Assert.Single(a.Vifs);

        // The last one, too: nodes above that libxl leaves empty go, and come back.
        await lab.UnplugAsync(a, 0);
        Assert.Null(lab.Store.Read($"/local/domain/0/backend/vif/{a.Domid}"));
        Assert.Null(lab.Store.Read($"{a.Home}/device/vif"));
        Assert.Throws<InvalidOperationException>(() => a.Mac);
        await lab.PlugAsync(a, 0, new());
        await PingAsync(a, b.IPv4);
    }

    [Fact]
    public async Task A_new_MAC_is_a_new_vif_on_the_same_bridge()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a");
        LabProcess watch = lab.Dom0.Start($"xenstore-watch {a.Backend}");
        await WaitForAsync(() => watch.Output.Contains(a.Backend, StringComparison.Ordinal));
        await lab.SetMacAsync(a, 0, "00:16:3e:00:00:99");
        Assert.Equal("00:16:3e:00:00:99", a.MacText);
        Assert.Equal("00:16:3e:00:00:99", lab.Store.Read($"{a.Backend}/mac"));
        Assert.Equal("xenbr0", lab.Store.Read($"{a.Backend}/bridge"));
        Assert.Equal("00:16:3e:00:00:99\n", (await a.RunAsync("cat /sys/class/net/eth0/address")).Output);
        await PingAsync(a, lab.Dom0.IPv4);

        // A watcher is told in the order in which libxl, backend and script write.
        string[] order = ["online", "state", "state", "", "", "", "frontend", "frontend-id", "online", "state", "script", "mac", "bridge",
            "handle", "type", "hotplug-status", "state", "hotplug-status", "state"];
        string expected = string.Concat(order.Prepend("").Select(n => n.Length > 0 ? $"{a.Backend}/{n}\n" : $"{a.Backend}\n"));
        await WaitForAsync(() => watch.Output.Length >= expected.Length);
        Assert.Equal(expected, watch.Output);
    }

    [Fact]
    public async Task A_vif_moved_by_hand_is_on_the_other_bridge_and_XenStore_does_not_know()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await PingAsync(a, b.IPv4);
        await lab.MoveAsync(b, 0, "xenbr1");
        Assert.False(await CanPingAsync(a, b.IPv4));
        Assert.Equal("xenbr1", b.Bridge);
        Assert.Equal("xenbr0", lab.Store.Read($"{b.Backend}/bridge"));
        await lab.MoveAsync(a, 0, "xenbr1");
        await PingAsync(a, b.IPv4);
    }

    [Fact]
    public async Task A_guest_is_renamed_and_its_name_is_free_again()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a");
        await lab.RenameAsync(a, "other");
        Assert.Equal("other", a.Name);
        Assert.Equal((0, "other\n"), await a.RunAsync("xenstore-read name"));
        Assert.Equal("other", lab.Store.Read($"/vm/{a.Uuid}/name"));
        LabGuest b = await lab.AddGuestAsync("a");
        await PingAsync(a, b.IPv4);
        await Assert.ThrowsAsync<ArgumentException>(() => lab.RenameAsync(b, "other"));
    }

    [Fact]
    public async Task A_driver_domain_has_the_bridge_and_owns_the_backend_area()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest driver = await lab.AddGuestAsync("driver");
        LabGuest a = await lab.AddGuestAsync("a", [new(BackendDomain: driver)]), b = await lab.AddGuestAsync("b", [new(BackendDomain: driver)]);
        LabGuest other = await lab.AddGuestAsync("other");
        await PingAsync(a, b.IPv4);
        await PingAsync(a, b.IPv6);

        // The bridge of the same name in Dom0 is another.
        Assert.False(await CanPingAsync(a, other.IPv4));
        Assert.Contains("master xenbr0", (await driver.RunAsync($"ip link show vif{a.Domid}.0")).Output, StringComparison.Ordinal);
        Assert.NotEqual(0, (await lab.Dom0.RunAsync($"ip link show vif{a.Domid}.0")).ExitCode);

        Assert.Equal($"/local/domain/{driver.Domid}/backend/vif/{a.Domid}/0", a.Backend);
        Assert.Equal((0, $"{driver.Domid}\n"), await a.RunAsync("xenstore-read device/vif/0/backend-id"));
        Assert.Equal(0, (await driver.RunAsync($"xenstore-write backend/vif/{a.Domid}/0/feature-x 1")).ExitCode);
        Assert.Equal((0, "1\n"), await a.RunAsync($"xenstore-read {a.Backend}/feature-x"));
        Assert.NotEqual(0, (await a.RunAsync($"xenstore-write {a.Backend}/mac 00:16:3e:00:00:00")).ExitCode);
        Assert.NotEqual(0, (await other.RunAsync($"xenstore-read {a.Backend}/mac")).ExitCode);
        Assert.Equal(0, (await driver.RunAsync($"xenstore-read {a.Home}/device/vif/0/mac")).ExitCode);
        Assert.NotEqual(0, (await driver.RunAsync($"xenstore-write {a.Home}/device/vif/0/mac 00:16:3e:00:00:00")).ExitCode);

        await lab.MoveAsync(b, 0, "xenbr9");
        Assert.False(await CanPingAsync(a, b.IPv4));
        await lab.UnplugAsync(b, 0);
        Assert.Null(lab.Store.Read($"/local/domain/{driver.Domid}/backend/vif/{b.Domid}"));
    }

    [Fact]
    public async Task Guests_of_different_VLANs_on_one_bridge_do_not_reach_each_other()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest red = await lab.AddGuestAsync("red", [new(Vlan: 10)]), red2 = await lab.AddGuestAsync("red2", [new(Vlan: 10)]);
        LabGuest blue = await lab.AddGuestAsync("blue", [new(Vlan: 20)]);
        LabGuest none = await lab.AddGuestAsync("none"), none2 = await lab.AddGuestAsync("none2");
        await PingAsync(red, red2.IPv4);
        await PingAsync(red, red2.IPv6);
        await PingAsync(none, none2.IPv4);
        if (lab.HasVlans)
        {
            Assert.False(await CanPingAsync(red, blue.IPv4));
            Assert.False(await CanPingAsync(red, none.IPv4));
        }

        Assert.Equal("10", lab.Store.Read($"{red.Backend}/vlan"));
        Assert.Null(lab.Store.Read($"{none.Backend}/vlan"));

        // Keeps it with another MAC. Who knows the old one learns of the new one when it is asked.
        await lab.SetMacAsync(red2, 0, "00:16:3e:00:00:10");
        await PingAsync(red2, red.IPv4);
        Assert.Equal(10, red2[0].Vlan);
    }

    [Fact]
    public async Task Nothing_is_left_whoever_is_destroyed_first()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest b = await lab.AddGuestAsync("b");
        string before = await EverythingAsync(lab, lab.Dom0);
        LabGuest driver = await lab.AddGuestAsync("driver");
        LabGuest a = await lab.AddGuestAsync("a", [new(BackendDomain: driver), new("xenbr0"), new("xenbr0", BackendDomain: driver)]);
        await lab.PlugAsync(a, 5, new());
        await lab.PlugAsync(a, 6, new(BackendDomain: driver));
        await lab.UnplugAsync(a, 1);
        await lab.DestroyGuestAsync(driver);

        // As with xl: the frontends stay, and can be unplugged; there is no backend to be asked.
        Assert.Null(lab.Store.Read(driver.Home));
        Assert.NotNull(lab.Store.Read(a[0].Libxl));
        Assert.NotEqual(0, (await a.RunAsync("ip link show eth0")).ExitCode);
        await lab.UnplugAsync(a, 0);
        Assert.Null(lab.Store.Read($"{a.Libxl}/device/vif/0"));
        Assert.Null(lab.Store.Read(driver.Home));
        await lab.PlugAsync(a, 0, new());
        await PingAsync(a, b.IPv4);
        await Assert.ThrowsAsync<ArgumentException>(() => lab.PlugAsync(a, 7, new(BackendDomain: driver)));

        // Another that has its number and name has nothing to do with what was served before it.
        LabGuest again = await lab.AddGuestAsync("driver", domid: driver.Domid);
        await lab.PlugAsync(b, 6, new(BackendDomain: again));
        await lab.UnplugAsync(a, 6);
        await lab.DestroyGuestAsync(a);
        await lab.DestroyGuestAsync(again);
        await lab.UnplugAsync(b, 6);
        Assert.Equal(before, await EverythingAsync(lab, lab.Dom0));
        Assert.Equal((0, 0, 0), lab.Store.Count(a.Domid));
        Assert.Equal((0, 0, 0), lab.Store.Count(driver.Domid));
    }

    [Fact]
    public async Task Guests_are_made_quickly()
    {
        const int Guests = 20;
        await using LabHost lab = await LabHost.StartAsync();
        Stopwatch watch = Stopwatch.StartNew();
        for (int i = 0; i < Guests; i++)
        {
            await lab.AddGuestAsync($"g{i}");
        }

        // Of tests with hundreds of guests. It is 30 ms; the margin is for a machine that does other things, too.
        Assert.True(watch.ElapsedMilliseconds < 150 * Guests, $"{watch.ElapsedMilliseconds} ms");
        await PingAsync(lab.Guests[0], lab.Guests[^1].IPv4);
    }

    [Fact]
    public async Task Processes_stop_go_on_and_end_by_signal()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a");
        ConcurrentQueue<string> lines = [];
        LabProcess process = a.StartDaemon("sh", ["-c", "echo up $RUNTIME_DIRECTORY; while sleep 0.01; do :; done"], lines.Enqueue);
        await WaitForAsync(() => !lines.IsEmpty);
        Assert.Equal([$"up {a.RuntimeDirectory}"], lines);
        Assert.Equal($"up {a.RuntimeDirectory}\n", process.Output);

        process.Signal(LibC.SIGSTOP);
        await WaitForAsync(() => StateOf(process.Pid) == 'T');
        process.Signal(LibC.SIGCONT);
        await WaitForAsync(() => StateOf(process.Pid) != 'T');
        process.Signal(LibC.SIGTERM);
        await process.WaitForExitAsync();
        Assert.Equal(128 + LibC.SIGTERM, process.ExitCode);
    }

    [Fact]
    public async Task The_end_of_the_lab_removes_all_namespaces_and_files()
    {
        LabGuest a;
        LabProcess background;
        await using (LabHost lab = await LabHost.StartAsync())
        {
            a = await lab.AddGuestAsync("a");
            background = a.Start("sleep 1000");
            Assert.True(File.Exists($"/run/netns/{a.NetNs}"));
        }

        Assert.False(Directory.Exists($"/proc/{background.Pid}"));
        Assert.Empty(Directory.GetFiles("/run/netns", $"{a.NetNs.Split('-')[0]}-{a.NetNs.Split('-')[1]}-*"));
        Assert.False(Directory.Exists(Path.GetDirectoryName(a.RuntimeDirectory)));
    }

    [Fact]
    public async Task What_a_killed_lab_left_is_removed_by_the_next()
    {
        // Above the largest pid there can be.
        const string Leftover = "xl4194305-1-a";
        string directory = Path.Combine(Path.GetTempPath(), "xenloop-lab-xl4194305-1");
        Directory.CreateDirectory(directory);
        using (Process ip = Process.Start("ip", ["netns", "add", Leftover]))
        {
            await ip.WaitForExitAsync();
            Assert.Equal(0, ip.ExitCode);
        }

        using Process orphan = Process.Start("ip", ["netns", "exec", Leftover, "sleep", "1000"]);
        await WaitForAsync(() => File.ReadAllText($"/proc/{orphan.Id}/cmdline").StartsWith("sleep", StringComparison.Ordinal));
        await using LabHost lab = await LabHost.StartAsync();
        Assert.False(File.Exists($"/run/netns/{Leftover}"));
        Assert.False(Directory.Exists(directory));
        await WaitForAsync(() => orphan.HasExited);
    }

    private static async Task PingAsync(LabGuest from, object to)
    {
        (int exit, string output) = await from.RunAsync($"ping -c 1 -W 2 {to}");
        Assert.True(exit == 0, output);
    }

    private static async Task<bool> CanPingAsync(LabGuest from, object to) => (await from.RunAsync($"ping -c 1 -W 1 {to}")).ExitCode == 0;

    /// <summary>The nodes right below a path, as the domain sees them.</summary>
    private static async Task<Dictionary<string, string>> NodesAsync(LabDomain domain, string path) =>
        (await domain.RunAsync($"xenstore-ls -f {path}")).Output.Split('\n', StringSplitOptions.RemoveEmptyEntries)
            .Select(l => l.Split(" = ")).ToDictionary(l => l[0][(path.Length + 1)..], l => l[1].Trim('"'));

    /// <summary>All of XenStore, the namespaces of the lab, and the interfaces of a domain and Dom0 but bridges.</summary>
    private static async Task<string> EverythingAsync(LabHost lab, LabDomain domain)
    {
        const string Links = "ip -o link show | grep -v ' xenbr' | sed 's/^[0-9]*: //; s/@.*//' | sort";
        string id = lab.Dom0.NetNs.Replace("-dom0", "-", StringComparison.Ordinal);
        string namespaces = string.Join(' ', Directory.GetFiles("/run/netns", $"{id}*").Order());
        return (await lab.Dom0.RunAsync("xenstore-ls -fp")).Output + (await lab.Dom0.RunAsync(Links)).Output + (await domain.RunAsync(Links)).Output + namespaces;
    }

    private static char StateOf(int pid)
    {
        string stat = File.ReadAllText(string.Create(CultureInfo.InvariantCulture, $"/proc/{pid}/stat"));
        return stat[stat.LastIndexOf(')') + 2];
    }

    private static async Task WaitForAsync(Func<bool> condition)
    {
        Stopwatch watch = Stopwatch.StartNew();
        while (!condition())
        {
            Assert.True(watch.ElapsedMilliseconds < 5000, "it did not happen");
            await Task.Delay(5);
        }
    }
}
