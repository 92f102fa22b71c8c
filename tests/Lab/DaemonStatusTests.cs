using System.Globalization;
using System.Text.Json;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>What the operator sees: by which way packets go, and why not by the other.</summary>
[Collection(DaemonTests.Name)]
public class DaemonStatusTests(ITestOutputHelper output)
{
    private const string Policy = "[policy]\ndeny = [[\"customers\", \"*\"]]\n[policy.groups]\ncustomers = [\"customer-*\"]\n";

    /// <summary>One guest of each kind: in Dom0's table, and in that of a guest, each has the reason.</summary>
    [Fact]
    public async Task The_table_tells_of_each_guest_why_it_has_no_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, Policy);
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b"), denied = await lab.AddGuestAsync("customer-1");
        LabGuest bare = await lab.Host.AddGuestAsync("bare"), off = await lab.Host.AddGuestAsync("off"), filtered = await lab.AddGuestAsync("filtered");
        lab.StartWith(off, "[guest]\nenabled = false\n");
        LabGuest far = await lab.AddGuestAsync("far", bridge: "xenbr1");
        await lab.ChannelUpAsync(a, b);
        Assert.Equal(0, (await filtered.RunAsync("tc qdisc add dev eth0 root tbf rate 1mbit burst 32kbit latency 400ms")).ExitCode);
        await lab.UntilAsync("Dom0 knows all", () => lab.Introduced(filtered) is { Length: 2 } && DaemonLab.Ask(lab.Dom0)!.Contains("\"off\"", StringComparison.Ordinal)
            && lab.XenStore.Read($"{far.Home}/xenloop/0") is not null);
        await filtered.RunAsync($"ping -q -c 3 -i 0.2 {a.IPv4}");
        await lab.UntilAsync("the obstacle is seen", () => Obstacle(filtered) is not null);

        string dom0 = await LookAsync(lab.Dom0);
        Assert.Matches(@"(?m)^a +\d+ +0 +[0-9a-f:]{17} .*0/xenbr0 +willing +b, filtered$", dom0);
        Assert.Matches(@"(?m)^bare .*none +no daemon runs in it$", dom0);
        Assert.Matches(@"(?m)^off .*off +switched off in its configuration$", dom0);
        Assert.Matches(@"(?m)^a +customer-1 +the policy: deny \[""customers"", ""\*""\]$", dom0);
        Assert.Matches(@"(?m)^a +bare +bare: no daemon runs in it$", dom0);
        Assert.Matches(@"(?m)^a +off +off: switched off in its configuration$", dom0);
        Assert.Matches(@"(?m)^a +far +other segment: 0/xenbr0 and 0/xenbr1$", dom0);
        Assert.DoesNotMatch(@"(?m)^a +b +", dom0);

        string guest = await LookAsync(a);
        Assert.Contains("1 of 2 peers by shared memory", guest, StringComparison.Ordinal);
        Assert.Matches($@"(?m)^ +{b.Domid} +{b.MacText} +{b.IPv4} +shared memory .*both sides are up$", guest);
        Assert.Matches($@"(?m)^ +{filtered.Domid} +{filtered.MacText} .*netfront ", guest);
        // Who may not be met is none of a guest's business.
        foreach (LabGuest stranger in new[] { denied, bare, off, far })
        {
            Assert.DoesNotContain(stranger.MacText, guest, StringComparison.Ordinal);
        }

        Assert.Contains("netfront only: ", await LookAsync(filtered), StringComparison.Ordinal);
        Assert.Contains("Switched off: \"enabled = false\" in ", await LookAsync(off), StringComparison.Ordinal);
        Assert.Contains("Dom0 has introduced", await LookAsync(denied), StringComparison.Ordinal);
        (int exit, string doctor) = await filtered.RunAsync($"{DaemonLab.Command} doctor {DaemonLab.Socket}");
        output.WriteLine(doctor);
        Assert.Equal(1, exit);
        Assert.Matches(@"(?m)^WRONG +vif 0 +", doctor);
        Assert.Matches(@"(?m)^ok +/dev/net/tun +there", doctor);
        Assert.Matches(@"(?m)^ok +introductions +1 vifs, 2 peers", doctor);
        (_, doctor) = await off.RunAsync($"{DaemonLab.Command} doctor {DaemonLab.Socket}");
        Assert.Matches(@"(?m)^WRONG +offer +this guest is switched off\n +-> set ""enabled = true""", doctor);

        async Task<string> LookAsync(LabDomain domain)
        {
            (int code, string text) = await domain.RunAsync($"{DaemonLab.Command} status {DaemonLab.Socket}");
            output.WriteLine($"{domain.Name}# xenloop status\n{text}");
            Assert.Equal(0, code);
            Assert.DoesNotContain('\e', text);
            return text;
        }
    }

    /// <summary>One guest that is denied, one without a daemon, one that is switched off, one whose eth0 has a filter that nothing can be behind,
    /// and one that runs: who looks, in Dom0 or in a neighbour, is told of each.</summary>
    [Fact]
    public async Task Denied_bare_off_filtered_and_running_are_told_apart_in_words_and_in_JSON()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, "[policy]\ndeny = [[\"denied\", \"*\"]]\n[policy.groups]\ndenied = [\"denied\"]\n");
        LabGuest here = await lab.AddGuestAsync("here"), denied = await lab.AddGuestAsync("denied"), bare = await lab.Host.AddGuestAsync("bare");
        LabGuest off = await lab.Host.AddGuestAsync("off"), filtered = await lab.AddGuestAsync("filtered"), running = await lab.AddGuestAsync("running");
        lab.StartWith(off, "[guest]\nenabled = false\n");
        await lab.ChannelUpAsync(here, running);
        await MustAsync(filtered, "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress protocol ip prio 65535 u32 match ip dport 7 0xffff flowid 1:1");
        await lab.UntilAsync("the filter is seen", () => Obstacle(filtered) is not null);
        await here.RunAsync($"ping -q -c 3 -i 0.2 {filtered.IPv4}");
        await lab.UntilAsync("the filtered guest has declined", () => DaemonLab.Channel(here, filtered) is { } peer && peer.TryGetProperty("last_error", out _));

        // In Dom0.
        string table = await LookAsync(lab.Dom0);
        JsonElement dom0 = DaemonLab.Status(lab.Dom0)!.Value;
        Assert.Matches(@"(?m)^here +\d+ +0 .* willing +filtered, running$", table);
        Assert.Matches(@"(?m)^here +denied +the policy: deny \[""denied"", ""\*""\]$", table);
        Assert.Matches(@"(?m)^bare .* none +no daemon runs in it$", table);
        Assert.Matches(@"(?m)^off .* off +switched off in its configuration$", table);
        Assert.Equal([denied.Domid], OfDom0(here).GetProperty("denied").GetProperty("deny [\"denied\", \"*\"]").EnumerateArray().Select(d => d.GetInt32()));
        Assert.Equal(("none", "no daemon runs in it"), (OfDom0(bare).GetProperty("daemon").GetString(), OfDom0(bare).GetProperty("apart").GetString()));
        Assert.Equal(("off", "switched off in its configuration"), (OfDom0(off).GetProperty("daemon").GetString(), OfDom0(off).GetProperty("apart").GetString()));
        foreach (LabGuest guest in new[] { denied, filtered, running })
        {
            Assert.Equal(("willing", null), (OfDom0(guest).GetProperty("daemon").GetString(), OfDom0(guest).GetProperty("apart").GetString()));
            Assert.Equal(JsonValueKind.Null, OfDom0(guest).GetProperty("vifs")[0].GetProperty("restricted").ValueKind);
        }

        // In a neighbour.
        table = await LookAsync(here);
        Assert.Matches($@"(?m)^ +{running.Domid} .* shared memory .*both sides are up$", table);
        Assert.Matches($@"(?m)^ +{filtered.Domid} .* netfront .*the peer declines: something is in the way at its interface; ""xenloop status"" there says what$", table);
        Assert.Equal("running", DaemonLab.State(here, running));
        Assert.Equal("the peer declines: obstructed", DaemonLab.Channel(here, filtered)!.Value.GetProperty("last_error").GetString());

        // And in each itself.
        Assert.Matches(@"(?m)^  netfront only: the u32 filter of priority 65535 at its egress would not meet what is diverted$", await LookAsync(filtered));
        Assert.Contains("u32 filter of priority 65535", Obstacle(filtered)!, StringComparison.Ordinal);
        Assert.Contains("Switched off: \"enabled = false\"", await LookAsync(off), StringComparison.Ordinal);
        Assert.Equal(("apart", false), (DaemonLab.Status(off)!.Value.GetProperty("standing").GetString(), DaemonLab.Status(off)!.Value.GetProperty("enabled").GetBoolean()));
        Assert.Contains("Dom0 has introduced this guest to nobody", await LookAsync(denied), StringComparison.Ordinal);

        // A filter that the divert can be behind keeps nobody from a channel, but perhaps all packets.
        await MustAsync(filtered, $"tc filter del dev eth0 egress; tc filter add dev eth0 egress protocol ip prio 1 u32 match ip dst {here.IPv4}/32 flowid 1:1");
        await lab.UntilAsync("there is no obstacle", () => Obstacle(filtered) is null);
        await MustAsync(filtered, $"ping -q -c 3 -i 0.2 {here.IPv4}");
        table = await LookAsync(filtered);
        Assert.Contains(", behind filters at the egress of eth0\n", table, StringComparison.Ordinal);
        Assert.Matches($@"(?m)^ +{here.Domid} .*no packet to it has come past the filters at the vif's egress yet$", table);
        Assert.True(DaemonLab.Status(filtered)!.Value.GetProperty("vifs")[0].GetProperty("filtered").GetBoolean());
        Assert.False(DaemonLab.Status(here)!.Value.GetProperty("vifs")[0].GetProperty("filtered").GetBoolean());

        await MustAsync(here, $"{DaemonLab.Command} disable {running.Domid} {DaemonLab.Socket}");
        Assert.Matches($@"(?m)^ +{running.Domid} .* netfront .*switched off here; ""xenloop enable {running.Domid}"" ends that$", await LookAsync(here));

        JsonElement OfDom0(LabGuest guest) => dom0.GetProperty("guests").EnumerateArray().Single(g => g.GetProperty("domid").GetInt32() == guest.Domid);

        async Task<string> LookAsync(LabDomain domain)
        {
            (int code, string text) = await domain.RunAsync($"{DaemonLab.Command} status {DaemonLab.Socket}");
            output.WriteLine($"{domain.Name}# xenloop status\n{text}");
            Assert.Equal(0, code);
            return text;
        }

        static async Task MustAsync(LabDomain domain, string script)
        {
            (int code, string text) = await domain.RunAsync($"set -e; {script}");
            Assert.True(code == 0, text);
        }
    }

    [Fact]
    public async Task A_peer_is_switched_off_and_on_again_at_run_time()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        using Echo echo = Echo.Open(a[0], b[0]);
        using CancellationTokenSource end = new();
        Task sending = echo.SendAsync(100, end.Token);
        foreach (string peer in new[] { $"{b.Domid}", b.MacText })
        {
            (int exit, string text) = await a.RunAsync($"{DaemonLab.Command} disable {peer} {DaemonLab.Socket}");
            Assert.Equal((0, $"disabled: {b.MacText}\n"), (exit, text));
            await lab.UntilAsync("the channel is closed", () => !lab.IsUp(a, b) && lab.Held(a) == default);
            long diverted = DaemonLab.Diverted(a, b);
            await Task.Delay(500);
            Assert.Equal(diverted, DaemonLab.Diverted(a, b));
            Assert.True(DaemonLab.Channel(a, b)!.Value.GetProperty("disabled").GetBoolean());
            Assert.Contains("switched off here", (await a.RunAsync($"{DaemonLab.Command} status {DaemonLab.Socket}")).Output, StringComparison.Ordinal);
            Assert.Equal((0, $"enabled: {b.MacText}\n"), await a.RunAsync($"{DaemonLab.Command} enable {peer} {DaemonLab.Socket}"));
            await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
        }

        Assert.Contains(": switched off by the operator", lab[a].Output, StringComparison.Ordinal);
        // Who forgets it, has it end by itself.
        await a.RunAsync($"{DaemonLab.Command} disable --seconds 1 {b.Domid} {DaemonLab.Socket}");
        await lab.UntilAsync("the channel is closed", () => !lab.IsUp(a, b));
        await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
        await end.CancelAsync();
        await sending;
        await lab.UntilAsync(() => $"{echo.Missing} replies more", () => echo.Missing == 0, seconds: 1);
        Assert.Equal(6, (await a.RunAsync($"{DaemonLab.Command} disable 99 {DaemonLab.Socket}")).ExitCode);
        Assert.Equal(6, (await a.RunAsync($"{DaemonLab.Command} disable --seconds 100000 {b.Domid} {DaemonLab.Socket}")).ExitCode);
        (int refused, string why) = await lab.Dom0.RunAsync($"{DaemonLab.Command} disable {b.Domid} {DaemonLab.Socket}");
        Assert.Equal(6, refused);
        Assert.Contains("for the other kind of domain", why, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Ping_goes_both_ways_and_leaves_a_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        (int exit, string text) = await a.RunAsync($"{DaemonLab.Command} ping --count 5 {b.Domid} {DaemonLab.Socket}");
        output.WriteLine(text);
        Assert.True(exit == 0, text);
        Assert.Matches(@"(?m)^shared memory +5 +0 +[0-9.]+k? us", text);
        Assert.Matches(@"(?m)^netfront +5 +0 +[0-9.]+k? us", text);
        await lab.ChannelUpAsync(a, b);
    }

    [Fact]
    public async Task Metrics_top_a_dry_run_and_a_report()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, "[policy]\n");
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("customer-1");
        await lab.ChannelUpAsync(a, b);
        string file = Path.Combine(a.RuntimeDirectory, "xenloop.prom");
        Assert.Equal((0, ""), await a.RunAsync($"{DaemonLab.Command} metrics --textfile {file} {DaemonLab.Socket}"));
        Assert.Contains(string.Create(CultureInfo.InvariantCulture, $"xenloop_peer_shared{{vif=\"0\",peer=\"{b.Domid}\",peer_vif=\"0\",mac=\"{b.MacText}\"}} 1"), File.ReadAllText(file), StringComparison.Ordinal);

        (int exit, string text) = await a.RunAsync($"{DaemonLab.Command} top --count 2 --interval 0.1 {DaemonLab.Socket}");
        Assert.Equal(0, exit);
        Assert.Equal(3, text.Split("xenloopd 0").Length);

        Assert.Contains("nothing would change", (await lab.Dom0.RunAsync($"{DaemonLab.Command} reload --dry-run {DaemonLab.Socket}")).Output, StringComparison.Ordinal);
        File.WriteAllText(VifLab.ConfigurationFile(lab.Dom0), Policy);
        (exit, text) = await lab.Dom0.RunAsync($"{DaemonLab.Command} reload --dry-run {DaemonLab.Socket}");
        Assert.Equal(0, exit);
        Assert.Contains("  a and customer-1 may not meet any more: deny [\"customers\", \"*\"]\n", text, StringComparison.Ordinal);
        Assert.True(lab.IsUp(a, b), lab.Messages());

        string archive = Path.Combine(a.RuntimeDirectory, "report.tar");
        (exit, text) = await a.RunAsync($"{DaemonLab.Command} bugreport {archive} {DaemonLab.Socket}");
        Assert.True(exit == 0, text);
        Assert.Equal((0, "600\n"), await a.RunAsync($"stat -c %a {archive}"));
        string status = (await a.RunAsync($"tar -xOf {archive} xenloop-bugreport/status.json")).Output;
        Assert.Equal(1, JsonDocument.Parse(status).RootElement.GetProperty("schema").GetInt32());
        string names = (await a.RunAsync($"tar -tf {archive}")).Output;
        foreach (string name in new[] { "doctor.txt", "status.txt", "xenloopd.toml", "log.txt", "links.txt" })
        {
            Assert.Contains($"xenloop-bugreport/{name}", names, StringComparison.Ordinal);
        }

        // What is there is not written over.
        Assert.Equal(1, (await a.RunAsync($"{DaemonLab.Command} bugreport {archive} {DaemonLab.Socket}")).ExitCode);
    }

    private static string? Obstacle(LabGuest guest) =>
        DaemonLab.Status(guest) is { } status && status.GetProperty("vifs").EnumerateArray().FirstOrDefault() is { ValueKind: JsonValueKind.Object } vif
            ? vif.GetProperty("obstacle").GetString()
            : null;
}
