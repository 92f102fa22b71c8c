using System.Globalization;
using System.Text.RegularExpressions;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What unmodified programs see while the daemons move their packets, and what they see when a daemon dies or ends.</summary>
[Collection(ChannelHost.Name)]
public partial class ChannelTests(ChannelFixture xen)
{
    /// <summary>Each kind of guest on either side of a channel.</summary>
    public static readonly TheoryData<string, string> Pairs = new() { { "pvh1", "pvh2" }, { "pv1", "pv2" } };

    public static readonly TheoryData<string, string> AllPairs = new() { { "pvh1", "pvh2" }, { "pv1", "pv2" }, { "pvh1", "pv1" } };

    [Theory, MemberData(nameof(Pairs))]
    public async Task The_divert_and_the_offloads_are_the_best_that_the_kernel_has(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        string divert = (await from.Daemon.StatusAsync()).GetProperty("vifs")[0].GetProperty("divert").GetString()!;
        string uso = (await from.RunAsync($"ethtool -k xl{to.Domid}.0 | sed -n 's/^tx-udp-segmentation: //p'")).Check().Output;
        Assert.Equal(xen.Host.Options.Release == DebianRelease.Bookworm ? ("clsbpf", "off [fixed]\n") : ("tcx", "on\n"), (divert, uso));
    }

    [Theory, MemberData(nameof(AllPairs))]
    public async Task Pings_of_every_size_pass_through_the_channel(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        (long sent, long received) before = await from.PacketsAsync(to);
        foreach (string address in new[] { to.Guest.Ipv4, to.Guest.Ipv6, to.Guest.LinkLocal + "%eth0" })
        {
            foreach (int size in new[] { 1, 56, 1400, 1472, 1500, 9000, 30000, 60000 })
            {
                CommandResult result = await from.RunAsync($"ping -q -c 5 -i 0.05 -W 5 -s {size} {address}");
                Assert.True(result.ExitCode == 0 && result.Output.Contains(" 0% packet loss", StringComparison.Ordinal), $"size {size} to {address}: {result}");
            }
        }

        (long sent, long received) after = await from.PacketsAsync(to);
        // 3 addresses, 8 sizes, 5 each, the large ones in fragments.
        Assert.True(after.sent - before.sent >= 120 && after.received - before.received >= 120, $"{before} to {after}: not through the channel");
    }

    [Theory, MemberData(nameof(AllPairs))]
    public async Task Tcp_in_both_directions_at_once_arrives_unchanged(string a, string b)
    {
        (Node left, Node right) = await xen.UpAsync(a, b);
        (long sent, long received) before = await left.PacketsAsync(right);
        string receive = $"socat -u TCP-LISTEN:5001,reuseaddr CREATE:/tmp/got & echo $! >/tmp/receiver; {TcpTransfer.Listening(5001)}";
        foreach (Node node in new[] { left, right })
        {
            (await node.RunAsync("head -c 8000000 /dev/urandom >/tmp/sent; " + receive)).Check();
        }

        static string Send(Node to) => $"socat -u FILE:/tmp/sent TCP:{to.Guest.Ipv4}:5001 && sha256sum </tmp/sent";
        CommandResult[] sent = await Task.WhenAll(left.RunAsync(Send(right)), right.RunAsync(Send(left)));
        const string Digest = "while kill -0 $(cat /tmp/receiver) 2>/dev/null; do sleep 0.1; done; sha256sum </tmp/got";
        Assert.Equal(sent[0].Check().Output, (await right.RunAsync(Digest)).Check().Output);
        Assert.Equal(sent[1].Check().Output, (await left.RunAsync(Digest)).Check().Output);
        (long sent, long received) after = await left.PacketsAsync(right);
        Assert.True(after.sent > before.sent + 100 && after.received > before.received + 100, $"{before} to {after}: not through the channel");
    }

    [Theory, MemberData(nameof(Pairs))]
    public async Task Udp_passes_in_datagrams_of_every_size(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        // An echo at the other end; each datagram must come back as it went.
        (await to.RunAsync("socat -b 65536 UDP-LISTEN:5002,fork PIPE >/dev/null 2>&1 & sleep 0.3")).Check();
        try
        {
            (await from.RunAsync($$"""
                set -e
                for size in 1 16 1400 9000 60000; do
                  head -c $size /dev/urandom >/tmp/datagram
                  for i in 1 2 3; do
                    socat -b 65536 -T 1 - UDP:{{to.Guest.Ipv4}}:5002 </tmp/datagram >/tmp/echo
                    cmp /tmp/datagram /tmp/echo || { echo "size $size"; exit 1; }
                  done
                done
                """)).Check();
        }
        finally
        {
            await to.RunAsync("pkill -f UDP-LISTEN:5002");
        }
    }

    [Theory, MemberData(nameof(Pairs))]
    public async Task A_firewall_rule_on_eth0_is_honoured(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        (await to.RunAsync($$"""
            nft add table inet fw
            nft 'add chain inet fw input { type filter hook input priority 0; }'
            nft add rule inet fw input iifname eth0 tcp dport 5003 counter reject with tcp reset
            nft add rule inet fw input iifname eth0 tcp dport 5004 counter accept
            for port in 5003 5004; do socat -u TCP-LISTEN:$port,reuseaddr,fork /dev/null & done
            {{TcpTransfer.Listening(5003)}}; {{TcpTransfer.Listening(5004)}}
            """)).Check();
        try
        {
            Assert.NotEqual(0, (await from.RunAsync(Knock(to, 5003))).ExitCode);
            (await from.RunAsync(Knock(to, 5004))).Check();
            string rules = (await to.RunAsync("nft list table inet fw")).Check().Output;
            Assert.Matches(@"dport 5003 counter packets [1-9]", rules);
            Assert.Matches(@"dport 5004 counter packets [1-9]", rules);

            // And on the way out, at the sender's eth0.
            (await from.RunAsync("""
                nft add table inet fw
                nft 'add chain inet fw output { type filter hook output priority 0; }'
                nft add rule inet fw output oifname eth0 tcp dport 5004 counter reject with tcp reset
                """)).Check();
            Assert.NotEqual(0, (await from.RunAsync(Knock(to, 5004))).ExitCode);
        }
        finally
        {
            await to.RunAsync("nft delete table inet fw; pkill -f TCP-LISTEN:500");
            await from.RunAsync("nft delete table inet fw");
        }
    }

    private static string Knock(Node at, int port) => $"echo x | socat -u - TCP:{at.Guest.Ipv4}:{port},connect-timeout=5";

    [Theory, MemberData(nameof(Pairs))]
    public async Task Ssh_works_and_tcpdump_on_eth0_sees_what_is_received(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        (await to.RunAsync("tcpdump -i eth0 -n -c 5 -w /dev/null tcp port 22 2>/tmp/dump & sleep 1")).Check();
        Assert.Equal(b, (await from.RunAsync($"ssh {to.Guest.Ipv4} hostname")).Check().Output.Trim());
        (await to.RunAsync("while pidof tcpdump >/dev/null; do sleep 0.1; done; cat /tmp/dump; grep '^5 packets captured' /tmp/dump")).Check();
    }

    public static TheoryData<string, string, string, int> Blows()
    {
        TheoryData<string, string, string, int> blows = [];
        foreach (object[] pair in Pairs)
        {
            for (int victim = 0; victim < 2; victim++)
            {
                blows.Add((string)pair[0], (string)pair[1], "KILL", victim);
                blows.Add((string)pair[0], (string)pair[1], "STOP", victim);
            }
        }

        return blows;
    }

    [Theory, MemberData(nameof(Blows))]
    public async Task A_daemon_killed_or_stopped_costs_less_than_a_second(string a, string b, string signal, int victim)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        Node struck = victim == 0 ? from : to;
        Task<CommandResult> pinging = from.RunAsync($"ping -D -i 0.05 -c 300 -W 1 {to.Guest.Ipv4}");
        // One script over there: the guests' clock leaps ahead of ours whenever they all wait.
        await struck.Daemon.StrikeAsync(signal, before: 3, down: 3);
        double gap = LongestGap((await pinging).Output);
        Assert.True(gap < 1.0, $"no answer for {gap:0.00} s");

        // Afterwards through the channel again.
        await ChannelFixture.ChannelUpAsync(from, to);
        (long sent, long received) before = await from.PacketsAsync(to);
        (await from.RunAsync($"ping -q -c 5 -i 0.1 {to.Guest.Ipv4}")).Check();
        (long sent, long received) after = await from.PacketsAsync(to);
        Assert.True(after.sent - before.sent >= 5 && after.received - before.received >= 5, $"{before} to {after}: not through the channel");
    }

    [Fact]
    public async Task A_daemon_that_ends_leaves_nothing_behind()
    {
        (Node from, Node to) = await xen.UpAsync("pvh2", "pv2");
        await to.Daemon.StopAsync();
        CommandResult left = await to.RunAsync("""
            ip -o link | grep ': xl'
            tc filter show dev eth0 egress
            tc qdisc show dev eth0 | grep clsact
            xenstore-ls data/xenloop 2>/dev/null
            true
            """);
        Assert.Equal("", left.Output);
        (await from.RunAsync($"ping -q -c 3 -i 0.2 {to.Guest.Ipv4}")).Check();
        await to.Daemon.StartAsync();
    }

    /// <summary>The longest time between two answers, in seconds.</summary>
    private static double LongestGap(string pings)
    {
        double[] times = [.. AnswerTime().Matches(pings).Select(m => double.Parse(m.Groups[1].ValueSpan, CultureInfo.InvariantCulture))];
        Assert.True(times.Length > 60, $"only {times.Length} answers:\n{pings}");
        return times.Zip(times.Skip(1), (earlier, later) => later - earlier).Max();
    }

    [GeneratedRegex(@"^\[(\d+\.\d+)\] \d+ bytes from", RegexOptions.Multiline)]
    private static partial Regex AnswerTime();
}
