using System.Diagnostics;
using System.Globalization;
using System.Text.Json;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>Dom0 introduces only where its bridge would forward freely, and only to where the bridge would forward: also when that changes under a channel.</summary>
[Collection(DaemonTests.Name)]
public class DaemonRestrictionTests
{
    // What changes in Dom0 counts within a second; the rest is for a machine that is busy.
    private const double Soon = 1.5;

    [Theory]
    [InlineData("bridge link set dev {a} isolated on; bridge link set dev {b} isolated on", "isolated", "bridge link set dev {a} isolated off")]
    [InlineData("bridge link set dev {b} state 0", "does not forward", "bridge link set dev {b} state 3")]
    [InlineData("bridge link set dev {b} learning off locked on", "locked", "bridge link set dev {b} learning on locked off")]
    [InlineData("ip link set {b} down", "is down", "ip link set {b} up")]
    [InlineData("tc qdisc add dev {b} root tbf rate 1mbit burst 32k latency 50ms", "tbf", "tc qdisc del dev {b} root")]
    [InlineData("tc qdisc add dev {b} clsact; tc filter add dev {b} egress protocol all u32 match u32 0 0 flowid 1:1", "tc filter", "tc qdisc del dev {b} clsact")]
    [InlineData("ebtables -A FORWARD -o {b} -j DROP", "a filter of the bridges", "ebtables -F FORWARD")]
    [InlineData("iptables -A FORWARD -m physdev --physdev-out {b} -j DROP", "a packet filter", "iptables -F FORWARD")]
    public async Task What_Dom0_stops_is_stopped_though_there_is_a_channel(string set, string word, string unset)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await Dom0Async(lab, set);
        await lab.UntilAsync("both are on netfront", () => lab.IsStranger(a[0], b[0]) && DaemonLab.State(a, b) == "none" && DaemonLab.State(b, a) == "none", Soon);
        Assert.Contains(word, Restriction(lab, b), StringComparison.Ordinal);
        await Dom0Async(lab, unset);
        await lab.UntilAsync("both know each other", () => lab.IsIntroduced(a[0], b[0]), Soon);
        Assert.Equal("", Restriction(lab, b).Replace("its bridge port is isolated: it meets only those that are not", "", StringComparison.Ordinal));
        await lab.ChannelUpAsync(a, b);

        // And for a daemon in Dom0 that finds it so.
        await Dom0Async(lab, set);
        await lab.UntilAsync("both are on netfront", () => lab.IsStranger(a[0], b[0]), Soon);
        await lab.KillAsync(lab.Dom0);
        lab.Start(lab.Dom0);
        await lab.UntilAsync("Dom0's daemon answers", () => Restriction(lab, b).Contains(word, StringComparison.Ordinal));
        Assert.Empty(lab.Introductions());

        string Named(string commands) => commands.Replace("{a}", a[0].BackendInterface, StringComparison.Ordinal).Replace("{b}", b[0].BackendInterface, StringComparison.Ordinal);

        async Task Dom0Async(DaemonLab host, string commands)
        {
            (int exit, string said) = await host.Dom0.RunAsync($"set -e; {Named(commands)}");
            Assert.True(exit == 0, said);
        }
    }

    [Fact]
    public async Task Packets_that_are_too_long_for_the_peers_port_go_by_netfront_and_get_what_they_get_there()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        Ping ping = Ping.Start(a, b, interval: 0.05);
        await MustAsync(lab.Dom0, $"ip link set {b[0].BackendInterface} mtu 1400");
        await lab.UntilAsync("a says why not", () => Obstacle().Contains("MTU of 1500 bytes", StringComparison.Ordinal) && Obstacle().Contains("1400", StringComparison.Ordinal), Soon);
        await lab.UntilAsync("b is told that there is something", () => Text(DaemonLab.Channel(b, a), "last_error") == "the peer declines: obstructed");
        Assert.NotEqual(0, (await a.RunAsync($"ping -q -c 2 -i 0.2 -W 1 -s 1450 -M do {b.IPv4}")).ExitCode);

        // As whoever finds that out does, or DHCP.
        await MustAsync(a, "ip link set eth0 mtu 1400");
        await lab.ChannelUpAsync(a, b);

        await MustAsync(a, "ip link set eth0 mtu 9000");
        await lab.UntilAsync("a says why not", () => Obstacle().Contains("MTU of 9000 bytes", StringComparison.Ordinal), Soon);
        await MustAsync(lab.Dom0, $"ip link set {b[0].BackendInterface} mtu 9000");
        await lab.ChannelUpAsync(a, b);
        // Of some hundred. Each change of the port is another introduction.
        Assert.InRange((await ping.StopAsync()).Lost, 0, 10);

        string Obstacle() => Text(DaemonLab.Channel(a, b), "obstacle");

        static string Text(JsonElement? peer, string member) => peer is { } known && known.TryGetProperty(member, out JsonElement text) ? text.GetString()! : "";

        static async Task MustAsync(LabDomain domain, string command)
        {
            (int exit, string said) = await domain.RunAsync(command);
            Assert.True(exit == 0, said);
        }
    }

    [Fact]
    public async Task A_port_that_is_isolated_meets_those_that_are_not()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        (int exit, string said) = await lab.Dom0.RunAsync($"bridge link set dev {a[0].BackendInterface} isolated on");
        Assert.True(exit == 0, said);
        await lab.UntilAsync("Dom0 knows", () => Restriction(lab, a).Contains("isolated", StringComparison.Ordinal));
        Assert.True(lab.IsUp(a, b), lab.Messages());
        Assert.Equal(session, lab.Session(a, b));
    }

    [Fact]
    public async Task A_rate_limit_and_the_policy_that_ignores_it()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, "");
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.MustDivertAsync(a[0], b[0]);
        lab.XenStore.Write($"{b.Backend}/rate", "125000,50000");
        await lab.UntilAsync("both are on netfront", () => lab.IsStranger(a[0], b[0]) && DaemonLab.State(a, b) == "none", Soon);
        Assert.Contains("rate", Restriction(lab, b), StringComparison.Ordinal);
        const string Ignoring = "[policy]\nignore-restrictions = [\"free\"]\n[policy.groups]\nfree = [\"b\"]\n";
        Assert.Matches(@"(?m)^  b vif 0 is restricted \(.*rate.*\): it may meet others in spite of that$", await DryRunAsync(Ignoring));
        await lab.ReloadAsync(lab.Dom0, Ignoring);
        await lab.IntroducedAsync((a[0], b[0]));
        await lab.MustDivertAsync(a[0], b[0]);
        Assert.Matches(@"(?m)^  b vif 0 is restricted .*: that is not ignored any more, it goes back to netfront$", await DryRunAsync(""));
        string vifs = $"[policy]\nignore-restrictions-on = [\"{b[0].BackendInterface}\"]\n";
        Assert.Contains("nothing would change", await DryRunAsync(vifs), StringComparison.Ordinal);

        async Task<string> DryRunAsync(string configuration)
        {
            File.WriteAllText(VifLab.ConfigurationFile(lab.Dom0), configuration);
            return (await lab.Dom0.RunAsync($"{DaemonLab.Command} reload --dry-run {DaemonLab.Socket}")).Output;
        }
    }

    /// <summary>The holder of an address goes, or does not hear that it has lost it.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Whoever_takes_a_MAC_over_gets_its_frames(bool holderGoes)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest c = await lab.AddGuestAsync("c");
        await lab.ChannelUpAsync(a, c);
        Ping ping = Ping.Start(a, b, interval: 0.02);
        await lab.UntilAsync("replies", () => ping.Replies > 20);
        if (holderGoes)
        {
            await MustAsync(b, "ip link set eth0 down");
        }

        long before = Echoes(c);
        await MustAsync(c, $"ip link set eth0 down; ip link set eth0 address {b.MacText}; ip link set eth0 up; ip addr add {b.IPv4}/32 dev eth0; ping -q -c 1 -W 1 -I {b.IPv4} {lab.Dom0.IPv4} >/dev/null");
        await lab.UntilAsync(() => $"the requests arrive there, {Echoes(c) - before} have", () => Echoes(c) - before > 10, Soon);
        Assert.Contains("another port", Restriction(lab, b), StringComparison.Ordinal);
        Assert.True(lab.IsStranger(a[0], b[0]), lab.Messages());
        (_, double gap, string summary) = await ping.StopAsync();
        Assert.True(gap < 2, $"{gap} s without a reply; {summary}");

        // And back.
        await MustAsync(c, $"ip addr del {b.IPv4}/32 dev eth0; ip link set eth0 down; ip link set eth0 address {c.MacText}; ip link set eth0 up");
        await MustAsync(b, $"ip link set eth0 up; ping -q -c 1 -W 3 {lab.Dom0.IPv4} >/dev/null");
        await lab.UntilAsync("b is introduced again", () => lab.IsIntroduced(a[0], b[0]), 5);
        await lab.ChannelUpAsync(a, b);
    }

    [Fact]
    public async Task An_address_that_moves_to_and_fro_costs_Dom0_little_and_nobody_is_introduced_to_it()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest thief = await lab.Host.AddGuestAsync("thief");
        await MustAsync(thief, $"ip link set eth0 down; ip link set eth0 address {b.MacText}; ip link set eth0 up");
        using LabProcess flood = thief.Start($"ip neigh replace {lab.Dom0.IPv4} lladdr 00:16:3e:00:00:99 dev eth0; exec ping -q -i 0.002 {lab.Dom0.IPv4}");
        using LabProcess own = b.Start($"ip neigh replace {lab.Dom0.IPv4} lladdr 00:16:3e:00:00:99 dev eth0; exec ping -q -i 0.002 {lab.Dom0.IPv4}");
        await lab.UntilAsync("b is introduced to nobody", () => lab.IsStranger(a[0], b[0]));
        TimeSpan before = DaemonLab.ProcessorTime(lab[lab.Dom0]);
        long sleeps = DaemonLab.Sleeps(lab[lab.Dom0]);
        Stopwatch watch = Stopwatch.StartNew();
        while (watch.Elapsed.TotalSeconds < 4)
        {
            Assert.True(lab.IsStranger(a[0], b[0]), lab.Messages());
            await Task.Delay(20);
        }

        TimeSpan took = DaemonLab.ProcessorTime(lab[lab.Dom0]) - before;
        long woken = DaemonLab.Sleeps(lab[lab.Dom0]) - sleeps;
        Assert.True(took.TotalSeconds < 0.5 && woken < 200, $"{took} of the processor, woken {woken} times");
    }

    [Fact]
    public async Task Twins_are_introduced_to_nobody_and_a_thief_that_came_first_loses_what_it_has()
    {
        const string Mac = "00:16:3e:77:00:01";
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), thief = await lab.AddGuestAsync("thief", mac: Mac);
        await lab.ChannelUpAsync(a, thief);
        LabGuest victim = await lab.Host.AddGuestAsync("victim", mac: Mac);
        await lab.UntilAsync("the thief is introduced to nobody", () => lab.IsStranger(a[0], thief[0]) && DaemonLab.State(a, thief) == "none", Soon);
        await lab.UntilAsync("Dom0 knows why", () => Restriction(lab, thief).Contains("same MAC", StringComparison.Ordinal));
        lab.Start(victim);
        await lab.UntilAsync("the victim takes part", () => lab.XenStore.Read($"{victim.Home}/xenloop/0") == Mac);
        Assert.Empty(lab.Introductions());
        LabGuest other = await lab.AddGuestAsync("other");
        await lab.IntroducedAsync((a[0], other[0]));

        await lab.Host.DestroyGuestAsync(thief);
        await lab.IntroducedAsync((a[0], other[0]), (a[0], victim[0]), (victim[0], other[0]));
        await lab.ChannelUpAsync(a, victim);
    }

    [Fact]
    public async Task What_a_vif_may_use_of_addresses_holds_on_the_channel_too()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        lab.XenStore.Write($"{b.Backend}/ip", b.IPv4.ToString());
        await lab.UntilAsync("another channel", () =>
        {
            _ = b.RunAsync($"ping -q -c 1 -W 0.3 {a.IPv4} >/dev/null").Wait(1000);
            return lab.IsUp(a, b) && lab.Session(a, b) != session;
        });
        long diverted = DaemonLab.Diverted(b, a);
        await Ping.MustAsync(b, a, 5);
        await lab.EchoAsync(b[0], a[0], 5);
        Assert.Equal(0, Foreign(a, b));

        await MustAsync(b, "ip addr add 10.78.0.250/24 dev eth0");
        long echoes = Echoes(a);
        await b.RunAsync($"ping -q -c 5 -i 0.2 -W 0.2 -I 10.78.0.250 {a.IPv4}");
        Assert.InRange(Foreign(a, b), 5, 6);
        Assert.Equal(echoes, Echoes(a));
        Assert.InRange(DaemonLab.Diverted(b, a), diverted + 15, long.MaxValue);
        // Of its peer nothing is said.
        await MustAsync(a, "ip addr add 10.78.0.251/24 dev eth0");
        await MustAsync(a, $"ping -q -c 3 -i 0.1 -W 2 -I 10.78.0.251 {b.IPv4}");
        Assert.True(lab.IsUp(a, b), lab.Messages());

        static long Foreign(LabGuest guest, LabGuest peer) => DaemonLab.Channel(guest, peer)!.Value.GetProperty("foreign_sources").GetInt64();
    }

    private static async Task MustAsync(LabGuest guest, string command)
    {
        (int exit, string said) = await guest.RunAsync($"set -e; {command}");
        Assert.True(exit == 0, $"{guest.Name}: {command}: {said}");
    }

    /// <summary>Echo requests that have come to a guest's stack, by whatever way.</summary>
    private static long Echoes(LabGuest guest) => Namespaces.Run(guest, () =>
    {
        string[][] icmp = [.. File.ReadLines("/proc/thread-self/net/snmp").Where(l => l.StartsWith("Icmp:", StringComparison.Ordinal)).Select(l => l.Split(' '))];
        return long.Parse(icmp[1][Array.IndexOf(icmp[0], "InEchos")], CultureInfo.InvariantCulture);
    });

    /// <summary>Why Dom0 keeps a guest's first vif to netfront; empty when it does not, or does not answer.</summary>
    private static string Restriction(DaemonLab lab, LabGuest guest) =>
        DaemonLab.Status(lab.Dom0)?.GetProperty("guests").EnumerateArray().Cast<JsonElement?>()
            .FirstOrDefault(g => g!.Value.GetProperty("domid").GetInt32() == guest.Domid)
            ?.GetProperty("vifs").EnumerateArray().First().GetProperty("restricted").GetString() ?? "";
}
