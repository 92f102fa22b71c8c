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
    public async Task Processes_stop_go_on_and_end_by_signal()
    {
        await using LabHost lab = await LabHost.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a");
        List<string> lines = [];
        LabProcess process = a.StartDaemon("sh", ["-c", "echo up $RUNTIME_DIRECTORY; while sleep 0.01; do :; done"], line =>
        {
            lock (lines)
            {
                lines.Add(line);
            }
        });
        await WaitForAsync(() => process.Output.Contains("up", StringComparison.Ordinal));
        Assert.Equal([$"up {a.RuntimeDirectory}"], lines);

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
