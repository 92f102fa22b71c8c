using System.Globalization;
using System.Text.RegularExpressions;
using XenLoop.Rig;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Xen;

/// <summary>
/// Half an hour of the host's time in which everything happens that can, at random: connections that began before it end well
/// after it, and then nobody holds anything. XENLOOP_SOAK_SEED and XENLOOP_SOAK_MINUTES choose others.
/// </summary>
[Collection(LongHost.Name), Trait("Length", "long")]
public sealed partial class SoakTests(ChannelFixture xen, ITestOutputHelper output)
{
    private const int DefaultSeed = 41;
    private const int DefaultMinutes = 30;

    // A daemon that leaks shows in these: descriptors are some 30 with two channels, memory some 9 MB.
    private const int MostDescriptors = 80;
    private const int MostKiB = 16 * 1024;

    private const double MostSecondsBetween = 60;

    private readonly Random _random = new(Setting("SEED", DefaultSeed));
    private readonly Dictionary<string, int> _counts = [];

    [Fact]
    public async Task Half_an_hour_of_suspends_kills_and_reboots_loses_no_connection_and_leaks_nothing()
    {
        Node[] stayers = [xen["pvh1"], xen["pv1"], xen["pvh2"], xen["pv2"]];
        Node rebooter = await xen.AddGuestAsync(ChannelFixture.Small("rebooter", GuestKind.Pvh));
        TcpTransfer[] transfers = new TcpTransfer[stayers.Length];
        for (int i = 0; i < stayers.Length; i++)
        {
            transfers[i] = await TcpTransfer.StartAsync(stayers[i], stayers[(i + 1) % stayers.Length]);
            await stayers[i].StartPingAsync(stayers[(i + 2) % stayers.Length].Guest.Ipv4);
        }

        double end = await UptimeAsync() + (60 * Setting("MINUTES", DefaultMinutes));
        for (double now; (now = await UptimeAsync()) < end;)
        {
            Node guest = stayers[_random.Next(stayers.Length)], other = stayers[_random.Next(stayers.Length)];
            string what = _random.Next(100) switch
            {
                < 12 => await SuspendAsync(guest, "restore"),
                < 20 => await SuspendAsync(guest, "cancel"),
                < 32 => await SuspendAsync(guest, "migrate"),
                < 44 => await KilledDom0Async(guest),
                < 56 => await KilledAsync(guest),
                < 62 => await RestartedAsync(guest),
                < 68 => await BothKilledAsync(guest, other),
                < 76 => await RebootedAsync(rebooter),
                < 84 => await QuietAsync(),
                _ => await BurstAsync(rebooter, guest),
            };
            _counts[what] = _counts.GetValueOrDefault(what) + 1;
            output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{now:0.0} s: {what}, {guest.Name} {(what == "both killed" ? other.Name : "")}"));
            try
            {
                foreach (TcpTransfer transfer in transfers)
                {
                    await transfer.GoesOnAsync();
                }
            }
            catch (Exception)
            {
                await DumpAsync([.. stayers, rebooter]);
                throw;
            }

            // Most of the time nothing happens but traffic, which is quickly emulated.
            await xen.SleepAsync(Seconds(MostSecondsBetween));
        }

        output.WriteLine(string.Join(", ", _counts.OrderBy(c => c.Key).Select(c => $"{c.Key} {c.Value}")));
        for (int i = 0; i < stayers.Length; i++)
        {
            // Each pair that has traffic has its channel.
            await ChannelFixture.ChannelUpAsync(stayers[i], stayers[(i + 1) % stayers.Length]);
            await stayers[i].PingsGoOnAsync();
            await transfers[i].FinishAsync();
        }

        Node[] all = [.. stayers, rebooter];
        (string[] ports, string[] grants) = await SharedAsync(all.Length);
        Assert.NotEmpty(ports);
        Assert.NotEmpty(grants);
        foreach (Node guest in all)
        {
            await guest.KernelIsWellAsync();
            await AssertModestAsync(guest.Name, script => guest.RunAsync(script));
            await guest.Daemon.StopAsync();
        }

        await AssertModestAsync("Dom0", script => xen.Host.RunAsync(script));
        foreach (Node guest in all)
        {
            Assert.Equal("", (await guest.RunAsync("""
                ip -o link | grep ': xl'
                tc filter show dev eth0 egress
                tc qdisc show dev eth0 | grep clsact
                xenstore-ls data/xenloop 2>/dev/null
                grep evtchn:xenloopd /proc/interrupts
                grep -l xenloop /proc/[0-9]*/comm
                true
                """)).Output);
        }

        await xen.SleepAsync(2);
        Assert.Equal(([], []), await SharedAsync(all.Length));
        Assert.Equal("", (await xen.Host.RunAsync("xenstore-ls -f /local/domain | grep /xenloop; true")).Output);
        IReadOnlyList<XenDomain> domains = await xen.Host.DomainsAsync();
        Assert.Equal(all.Length + 1, domains.Count);
        Assert.DoesNotContain(domains, d => d.IsZombie);
        foreach (Node guest in all)
        {
            await guest.Daemon.StartAsync();
        }

        await rebooter.Guest.DestroyAsync();
    }

    /// <summary>What there is to say of a guest that is not well.</summary>
    private async Task DumpAsync(Node[] guests)
    {
        output.WriteLine((await xen.Host.RunAsync("xl list; xl vcpu-list; brctl show 2>/dev/null; bridge link; xenstore-ls -f /local/domain/0/backend/vif | grep state")).ToString());
        foreach (Node guest in guests)
        {
            output.WriteLine((await xen.Host.RunAsync($"echo {guest.Name}; ping -c 2 -W 2 {guest.Guest.Ipv4}; xenstore-ls /local/domain/$(xl domid {guest.Name})/device/vif | grep state")).ToString());
            string console = await guest.Guest.ConsoleLogAsync();
            output.WriteLine(console[Math.Max(0, console.Length - 5000)..]);
        }
    }

    /// <summary>The ports between guests and the grants that a guest has mapped, as the hypervisor has them. Netfront's are Dom0's.</summary>
    private async Task<(string[] Ports, string[] Grants)> SharedAsync(int guests)
    {
        // One after the other: they share the hypervisor's console.
        async Task<string[]> PressAsync(char key, string heading, int count)
        {
            string said = (await xen.Host.RunAsync($"xl dmesg -c >/dev/null; xl debug-keys {key}; sleep 1; xl dmesg")).Check().Output;
            string[] domains = said.Split(heading)[1..];
            Assert.Equal(count, domains.Length);
            return domains;
        }

        string[] ports = await PressAsync('e', "Event channel information for domain ", guests + 1);
        string[] grants = await PressAsync('g', "grant-table for remote d", guests + 1);
        return (
            [.. ports.Where(d => !d.StartsWith("0:", StringComparison.Ordinal)).SelectMany(d => PortOfGuest().Matches(d).Select(m => m.Value))],
            [.. grants.SelectMany(d => GrantToGuest().Matches(d).Select(m => m.Value))]);
    }

    private static int Setting(string name, int byDefault) =>
        int.TryParse(Environment.GetEnvironmentVariable($"XENLOOP_SOAK_{name}"), NumberStyles.None, CultureInfo.InvariantCulture, out int value) ? value : byDefault;

    private async Task<double> UptimeAsync() =>
        double.Parse((await xen.Host.RunAsync("cut -d ' ' -f 1 /proc/uptime")).Check().Output, CultureInfo.InvariantCulture);

    private double Seconds(double most) => _random.NextDouble() * most;

    private async Task<string> SuspendAsync(Node guest, string how)
    {
        // Debian's hypervisor cannot migrate PV guests.
        how = how == "migrate" && guest.Guest.Options.Kind == GuestKind.Pv ? "restore" : how;
        await xen.SuspendAsync(guest, how);
        return how;
    }

    /// <summary>Dom0's daemon dies while it has a guest suspended, or a moment before or after.</summary>
    private async Task<string> KilledDom0Async(Node guest)
    {
        Task suspend = xen.SuspendAsync(guest, "restore");
        await xen.Dom0.StrikeAsync("KILL", before: Seconds(2), down: Seconds(1));
        await suspend;
        return "Dom0 killed";
    }

    private async Task<string> KilledAsync(Node guest)
    {
        await guest.Daemon.StrikeAsync("KILL", before: 0, down: Seconds(3));
        return "killed";
    }

    private async Task<string> RestartedAsync(Node guest)
    {
        await guest.Daemon.StopAsync();
        await xen.SleepAsync(Seconds(3));
        await guest.Daemon.StartAsync();
        return "restarted";
    }

    private async Task<string> BothKilledAsync(Node guest, Node other)
    {
        await guest.Daemon.KillAsync();
        if (other != guest)
        {
            await other.Daemon.KillAsync();
            await other.Daemon.StartAsync();
        }

        await guest.Daemon.StartAsync();
        return "both killed";
    }

    private async Task<string> RebootedAsync(Node guest)
    {
        await guest.Guest.RebootAsync();
        await ChannelFixture.StartDaemonAsync(guest.Guest);
        return "rebooted";
    }

    private async Task<string> QuietAsync()
    {
        await xen.SleepAsync(5 + Seconds(40));
        return "quiet";
    }

    /// <summary>Much at once, to one who was perhaps just rebooted.</summary>
    private async Task<string> BurstAsync(Node to, Node from)
    {
        (await to.RunAsync($"{{ socat -u TCP-LISTEN:5009,reuseaddr - | sha256sum >/tmp/burst; }} & echo $! >/tmp/bursting; {TcpTransfer.Listening(5009)}")).Check();
        string sent = (await from.RunAsync($"head -c 5000000 /dev/urandom >/tmp/burst; socat -u FILE:/tmp/burst TCP:{to.Guest.Ipv4}:5009 && sha256sum </tmp/burst; rm /tmp/burst")).Check().Output;
        Assert.Equal(sent, (await to.RunAsync("while kill -0 $(cat /tmp/bursting) 2>/dev/null; do sleep 0.1; done; cat /tmp/burst")).Check().Output);
        return "burst";
    }

    private static async Task AssertModestAsync(string where, Func<string, Task<CommandResult>> run)
    {
        string[] numbers = (await run("pid=$(cat /run/xenloopd.pid); ls /proc/$pid/fd | wc -l; sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\) kB/\\1/p' /proc/$pid/status")).Check().Output.Split('\n');
        Assert.True(int.Parse(numbers[0], null) <= MostDescriptors && int.Parse(numbers[1], null) <= MostKiB, $"{where}: {numbers[0]} descriptors, {numbers[1]} KiB");
    }

    // "  12 [0/0/  -   ]: s=3 n=0 x=0 d=5 p=13": a port that is open to (2) or connected with (3) a guest.
    [GeneratedRegex(@"^.*\]: s=[23] n=\d+ x=\d+\S* d=[1-9].*$", RegexOptions.Multiline)]
    private static partial Regex PortOfGuest();

    // "[0x01f]     3 0x1234 0x00000002 ...": an entry that guest 3 has mapped.
    [GeneratedRegex(@"^.*\[0x[0-9a-f]+\] +[1-9]\d* 0x.*$", RegexOptions.Multiline)]
    private static partial Regex GrantToGuest();
}
