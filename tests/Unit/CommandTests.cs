using System.Net;
using System.Text.Json;
using XenLoop.Command;
using XenLoop.Interop.Linux;
using XenLoop.Settings;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>What the operator's command makes of the daemon's answers.</summary>
public sealed class CommandTests
{
    private const string Dom0Status = """
        {"schema": 1, "version": "0.1.0+abc", "role": "dom0", "guests": [
          {"domid": 1, "name": "web", "uuid": "u1", "willing": true, "daemon": "willing", "apart": null, "denied": {"deny [\"web\", \"db\"]": [2]},
            "vifs": [{"vif": 0, "mac": "00:16:3e:00:00:01", "segment": "0/xenbr0", "introduced": ["6-0"]}]},
          {"domid": 2, "name": "db", "uuid": "u2", "willing": true, "daemon": "willing", "apart": null, "denied": {},
            "vifs": [{"vif": 0, "mac": "00:16:3e:00:00:02", "segment": "0/xenbr0", "introduced": []}]},
          {"domid": 3, "name": "bare", "uuid": "u3", "willing": false, "daemon": "none", "apart": "no daemon runs in it", "denied": {},
            "vifs": [{"vif": 0, "mac": "00:16:3e:00:00:03", "segment": "0/xenbr0", "introduced": []}]},
          {"domid": 4, "name": "far", "uuid": "u4", "willing": true, "daemon": "willing", "apart": null, "denied": {},
            "vifs": [{"vif": 0, "mac": "00:16:3e:00:00:04", "segment": "0/xenbr1", "introduced": []}]},
          {"domid": 5, "name": "slow", "uuid": "u5", "willing": true, "daemon": "willing", "apart": null, "denied": {},
            "vifs": [{"vif": 0, "mac": "00:16:3e:00:00:05", "segment": "0/xenbr0", "restricted": "a rate limit", "introduced": []}]},
          {"domid": 6, "name": "app", "uuid": "u6", "willing": true, "daemon": "willing", "apart": null, "denied": {},
            "vifs": [{"vif": 0, "mac": "00:16:3e:00:00:06", "segment": "0/xenbr0", "introduced": ["1-0"]}]}]}
        """;

    private const string GuestStatus = """
        {"schema": 1, "version": "0.1.0", "pid": 7, "mode": "adaptive", "role": "guest", "domid": 1, "enabled": true, "standing": "offering",
          "settings": {"packets_per_second": 1, "idle_seconds": 300, "max_channels": 64}, "channels": 2, "told_vifs": [0],
          "ring_memory_bytes": 100, "ring_memory_limit_bytes": 1000, "vifs": [{"vif": 0, "interface": "eth0", "mac": "00:16:3e:00:00:01",
          "divert": "tcx", "obstacle": null, "peers": [
            {"domid": 2, "vif": 0, "mac": "00:16:3e:00:00:02", "state": "running", "seconds": 3700, "packets_seen": 2000, "packets_diverted": 1999, "sent_bytes": 1000000, "received_bytes": 0},
            {"domid": 3, "vif": 0, "mac": "00:16:3e:00:00:03", "state": "waiting", "seconds": 2, "retry_seconds": 28, "packets_seen": 5, "packets_diverted": 0, "last_error": "bad \u001b[2J ring"},
            {"domid": 4, "vif": 0, "mac": "00:16:3e:00:00:04", "state": "idle", "packets_seen": 0, "packets_diverted": 0},
            {"domid": 5, "vif": 0, "mac": "00:16:3e:00:00:05", "state": "idle", "packets_seen": 9, "packets_diverted": 0, "disabled": true}]}]}
        """;

    private static readonly AddressBook _book = new(
        new Dictionary<MacAddress, List<IPAddress>> { [MacAddress.Parse("00:16:3e:00:00:02")] = [IPAddress.Parse("10.0.0.2")] }, "# hosts\n10.0.0.2\tdb.example db # the database\n");

    [Fact]
    public void In_Dom0_each_pair_that_does_not_meet_has_its_reason()
    {
        JsonElement status = Parse(Dom0Status);
        Apart[] apart = [.. Dom0View.WhoDoesNotMeet([.. status.Items("guests")])];
        Assert.Equal(14, apart.Length);
        Assert.DoesNotContain(apart, a => (a.One, a.Other) == ("web", "app"));
        Assert.Equal("the policy: deny [\"web\", \"db\"]", Why("web", "db"));
        Assert.Equal("bare: no daemon runs in it", Why("web", "bare"));
        Assert.Equal("other segment: 0/xenbr0 and 0/xenbr1", Why("web", "far"));
        Assert.Equal("slow vif 0: a rate limit", Why("web", "slow"));
        Assert.Equal("bare: no daemon runs in it", Why("bare", "far"));
        Assert.Equal("they are about to be introduced", Why("db", "app"));

        string text = Dom0View.Draw(status, _book, all: false, coloured: false);
        Assert.Matches(@"(?m)^web +1 +0 +00:16:3e:00:00:01 +0/xenbr0 +willing +app$", text);
        Assert.Matches(@"(?m)^bare +3 .*none +no daemon runs in it$", text);
        Assert.Matches(@"(?m)^db +2 +0 +00:16:3e:00:00:02 +10\.0\.0\.2 +0/xenbr0", text);
        Assert.Contains("6 guests, 1 pairs of vifs introduced to each other, 14 pairs of guests not", text, StringComparison.Ordinal);
        Assert.DoesNotContain('\e', text);
        Assert.Contains("\e[32m", Dom0View.Draw(status, _book, all: false, coloured: true), StringComparison.Ordinal);

        string Why(string one, string other) => apart.Single(a => (a.One, a.Other) == (one, other)).Why;
    }

    [Fact]
    public void Hundreds_of_pairs_are_cut_short_unless_all_are_asked_for()
    {
        JsonElement status = Parse($$"""{"role": "dom0", "guests": [{{string.Join(',', Enumerable.Range(1, 20).Select(d => $$"""{"domid": {{d}}, "name": "g{{d}}", "apart": "x", "vifs": []}"""))}}]}""");
        Assert.Contains("and 160 more pairs", Dom0View.Draw(status, _book, all: false, coloured: false), StringComparison.Ordinal);
        Assert.DoesNotContain("more pairs", Dom0View.Draw(status, _book, all: true, coloured: false), StringComparison.Ordinal);
    }

    [Fact]
    public void In_a_guest_each_peer_has_its_way_and_the_reason()
    {
        JsonElement status = Parse(GuestStatus);
        JsonElement before = Parse(GuestStatus.Replace("\"packets_seen\": 2000", "\"packets_seen\": 1000", StringComparison.Ordinal).Replace("\"sent_bytes\": 1000000", "\"sent_bytes\": 0", StringComparison.Ordinal));
        string text = GuestView.Draw(status, before, 0.5, _book, coloured: false);
        Assert.Contains("1 of 4 peers by shared memory", text, StringComparison.Ordinal);
        Assert.Matches(@"(?m)^  db\.example +2 +00:16:3e:00:00:02 +10\.0\.0\.2 +shared memory +2\.00k pkt/s, 16\.0Mb/s +99\.9% +1h 1m +both sides are up$", text);
        Assert.Matches(@"(?m)^ +3 .*netfront +- +0% +2s +it failed: bad \?\[2J ring; next attempt in 28s$", text);
        Assert.Matches(@"(?m)^ +4 .*netfront .*no packets yet$", text);
        Assert.Matches(@"(?m)^ +5 .*netfront .*switched off here; ""xenloop enable 5"" ends that$", text);
        Assert.DoesNotContain('\e', text);
        string obstructed = GuestView.Draw(Parse(GuestStatus.Replace("\"obstacle\": null", "\"obstacle\": \"a filter\"", StringComparison.Ordinal)), null, 0, _book, coloured: false);
        Assert.Contains("  netfront only: a filter\n", obstructed, StringComparison.Ordinal);
        string filtered = GuestView.Draw(Parse(GuestStatus.Replace("\"obstacle\": null", "\"filtered\": true, \"obstacle\": null", StringComparison.Ordinal)), null, 0, _book, coloured: false);
        Assert.Contains("divert by tcx, behind filters at the egress of eth0\n", filtered, StringComparison.Ordinal);
        Assert.Matches(@"(?m)^ +2 .*both sides are up$|db\.example .*both sides are up$", filtered);
        Assert.Matches(@"(?m)^ +4 .*netfront .*no packet to it has come past the filters at the vif's egress yet$", filtered);
        string off = GuestView.Draw(Parse("""{"role": "guest", "domid": 1, "enabled": false, "standing": "apart", "told_vifs": [], "vifs": []}"""), null, 0, _book, coloured: false);
        Assert.Contains("Switched off", off, StringComparison.Ordinal);
        string untold = GuestView.Draw(Parse("""{"role": "guest", "domid": 1, "enabled": true, "standing": "offering", "told_vifs": [], "vifs": []}"""), null, 0, _book, coloured: false);
        Assert.Contains("Dom0 tells this guest nothing", untold, StringComparison.Ordinal);
    }

    [Fact]
    public void Peers_keep_their_places()
    {
        JsonElement status = Parse("""{"role": "guest", "domid": 1, "vifs": [{"vif": 0, "peers": [{"domid": 10, "vif": 0}, {"domid": 9, "vif": 1}, {"domid": 9, "vif": 0}]}]}""");
        Assert.Matches(@"(?s)\n +9 .*\n +9-1 .*\n +10 ", GuestView.Draw(status, null, 0, _book, coloured: false));
    }

    [Theory]
    [InlineData(0, "0")]
    [InlineData(7, "7")]
    [InlineData(9.996, "10.0")]
    [InlineData(999.4, "999")]
    [InlineData(999.6, "1.00k")]
    [InlineData(12_345, "12.3k")]
    [InlineData(1e9, "1.00G")]
    public void Figures_have_three_digits(double value, string text) => Assert.Equal(text, Quantity.Short(value));

    [Theory]
    [InlineData(59.9, "59s")]
    [InlineData(61, "1m 1s")]
    [InlineData(90_061, "1d 1h")]
    public void Times_have_two_units(double seconds, string text) => Assert.Equal(text, Quantity.Time(seconds));

    [Fact]
    public void Almost_all_is_not_all()
    {
        Assert.Equal("99.9%", Quantity.Share(999_999, 1_000_000));
        Assert.Equal("100%", Quantity.Share(5, 5));
        Assert.Equal("0.1%", Quantity.Share(1, 1_000_000));
        Assert.Equal("0%", Quantity.Share(0, 9));
        Assert.Equal("", Quantity.Share(0, 0));
    }

    [Fact]
    public void Metrics_are_what_Prometheus_reads()
    {
        string text = Metrics.Write(Parse(GuestStatus));
        Assert.Contains("xenloop_info{version=\"0.1.0\",role=\"guest\",mode=\"adaptive\"} 1\n", text, StringComparison.Ordinal);
        Assert.Contains("xenloop_peer_packets_diverted_total{vif=\"0\",peer=\"2\",peer_vif=\"0\",mac=\"00:16:3e:00:00:02\"} 1999\n", text, StringComparison.Ordinal);
        Assert.Contains("xenloop_peer_shared{vif=\"0\",peer=\"3\",peer_vif=\"0\",mac=\"00:16:3e:00:00:03\"} 0\n", text, StringComparison.Ordinal);
        // Each line is a comment, or a name, labels and a number; each metric is headed once.
        string[] lines = text.TrimEnd('\n').Split('\n');
        Assert.All(lines, l => Assert.Matches("""^(# (HELP|TYPE) xenloop_\w+ .+|xenloop_\w+(\{(\w+="([^"\\]|\\.)*",?)+\})? [-0-9.E+]+)$""", l));
        string[] heads = [.. lines.Where(l => l.StartsWith("# TYPE", StringComparison.Ordinal)).Select(l => l.Split(' ')[2])];
        Assert.Equal(heads.Distinct(), heads);
        Assert.Contains("name=\"a\\\"b\"", Metrics.Write(Parse("""{"role": "dom0", "guests": [{"domid": 1, "name": "a\"b", "vifs": []}]}""")), StringComparison.Ordinal);
    }

    [Fact]
    public void A_dry_run_names_what_would_change_and_nothing_else()
    {
        Assert.Empty(DryRun.Changes(Parse(GuestStatus), new Configuration()));
        Configuration other = new() { Guest = new GuestSettings { Enabled = false, MaxChannels = 3 } };
        Assert.Equal(["enabled: true becomes false", "max-channels: 64 becomes 3"], DryRun.Changes(Parse(GuestStatus), other));
        Policy policy = new(new Dictionary<string, Glob[]> { ["app"] = [new Glob("app")] }, [], [("app", "*")]);
        string[] changes = [.. DryRun.Changes(Parse(Dom0Status), new Configuration { Policy = policy })];
        Assert.Equal(["web and db may meet (before: deny [\"web\", \"db\"])", "web and app may not meet any more: deny [\"app\", \"*\"]"], changes[..2]);
        Assert.DoesNotContain(changes, c => c.Contains("bare", StringComparison.Ordinal));
    }

    [Fact]
    public void A_dry_run_names_the_vifs_whose_restrictions_are_ignored_and_those_where_they_are_not_any_more()
    {
        JsonElement status = Parse("""
            {"role": "dom0", "guests": [
              {"domid": 1, "name": "slow", "uuid": "u1", "vifs": [
                {"vif": 0, "interface": "vif1.0", "segment": "0/xenbr0", "restricted": "a rate limit", "restriction_ignored": false},
                {"vif": 1, "interface": "vif1.1", "segment": "0/xenbr1", "restricted": "a rate limit", "restriction_ignored": true},
                {"vif": 2, "interface": "vif1.2", "segment": "0/xenbr2", "restricted": null}]},
              {"domid": 2, "name": "twin", "uuid": "u2", "vifs": [
                {"vif": 0, "interface": "vif2.0", "segment": "0/xenbr0", "restricted": "another vif on its segment has the same MAC address"}]}]}
            """);
        Assert.Equal(["slow vif 1 is restricted (a rate limit): that is not ignored any more, it goes back to netfront"], DryRun.Changes(status, new Configuration()));
        string[] changes = ["slow vif 0 is restricted (a rate limit): it may meet others in spite of that"];
        foreach (string place in new[] { "vif?.?", "xenbr*", "0/xenbr?" })
        {
            Assert.Equal(changes, DryRun.Changes(status, new Configuration { Policy = new Policy { UnrestrictedPlaces = [new Glob(place)] } }));
        }

        Assert.Equal(changes, DryRun.Changes(status, new Configuration { Policy = new Policy { UnrestrictedGroups = ["*"] } }));
    }

    private static JsonElement Parse(string json) => JsonDocument.Parse(json).RootElement;
}
