using System.Globalization;
using System.Text.RegularExpressions;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What is diverted arrives, or goes by netfront: whatever somebody does to a TAP, and however fast a sender is.</summary>
[Collection(ChannelHost.Name)]
public partial class DeliveryTests(ChannelFixture xen)
{
    [Theory]
    [InlineData("pvh1", "pvh2", "tc qdisc del dev TAP clsact")]
    [InlineData("pv1", "pv2", "tc qdisc del dev TAP clsact")]
    [InlineData("pvh1", "pvh2", "ip link set TAP down")]
    [InlineData("pv1", "pv2", "ip link set TAP down")]
    public async Task A_TAP_that_somebody_changes_costs_less_than_a_second(string a, string b, string change)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        string tap = $"xl{from.Domid}.0";
        Task<CommandResult> pinging = from.RunAsync($"ping -D -i 0.05 -c 200 -W 1 {to.Guest.Ipv4}");
        (await to.RunAsync($"sleep 3; cat /sys/class/net/{tap}/ifindex; {change.Replace("TAP", tap, StringComparison.Ordinal)}")).Check();
        string pings = (await pinging).Output;
        double[] times = [.. AnswerTime().Matches(pings).Select(m => double.Parse(m.Groups[1].ValueSpan, CultureInfo.InvariantCulture))];
        Assert.True(times.Length > 150, pings);
        double gap = times.Zip(times.Skip(1), (earlier, later) => later - earlier).Max();
        Assert.True(gap < 1.0, $"no answer for {gap:0.00} s");

        // By a channel again, with a new TAP.
        await ChannelFixture.ChannelUpAsync(from, to);
        (long sent, long received) before = await from.PacketsAsync(to);
        (await from.RunAsync($"ping -q -c 5 -i 0.1 {to.Guest.Ipv4}")).Check();
        (long sent, long received) after = await from.PacketsAsync(to);
        Assert.True(after.sent - before.sent >= 5 && after.received - before.received >= 5, $"{before} to {after}: not through the channel");
    }

    [Theory]
    [InlineData("pvh1", "pvh2")]
    [InlineData("pv1", "pv2")]
    public async Task A_sender_that_nobody_paces_is_not_robbed(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        await IsNotRobbedAsync(from, to, "-t 2");
    }

    /// <summary>Sender and data thread run at the same time there, and so do receiver and data thread.</summary>
    [OwnQemuFact]
    [Trait("Length", "long")]
    public async Task A_sender_with_a_processor_of_its_own_is_not_robbed()
    {
        ManyProcessors host = new();
        try
        {
            await host.InitializeAsync();
            (Node from, Node to) = (host["one"], host["other"]);
            await ChannelFixture.ChannelUpAsync(from, to);
            await IsNotRobbedAsync(from, to, "-n 48M");
        }
        finally
        {
            await host.DisposeAsync();
        }
    }

    private static async Task IsNotRobbedAsync(Node from, Node to, string howMuch)
    {
        (await to.RunAsync("iperf3 -s -1 -D >/dev/null; sleep 1")).Check();
        string lost = (await from.RunAsync($"iperf3 {howMuch} -u -l 32768 -b 0 -c {to.Guest.Ipv4} | grep receiver")).Check().Output;
        string dropped = (await from.RunAsync($"cat /sys/class/net/xl{to.Domid}.0/statistics/tx_dropped")).Check().Output;
        string failures = (await to.RunAsync("sed -n '/^Ip:/p' /proc/net/snmp | awk 'NR == 2 { print $17 }'")).Check().Output;
        Assert.True(dropped == "0\n", $"{dropped} dropped by the TAP; {lost}, {failures} reassembly failures");
        // Datagrams of several fragments pass at once.
        CommandResult ping = await from.RunAsync($"ping -q -c 5 -i 0.1 -W 2 -s 4000 {to.Guest.Ipv4}");
        Assert.True(ping.ExitCode == 0 && ping.Output.Contains(" 0% packet loss", StringComparison.Ordinal), $"{ping}; {lost}, {failures} reassembly failures");
    }

    [GeneratedRegex(@"^\[(\d+\.\d+)\] \d+ bytes from", RegexOptions.Multiline)]
    private static partial Regex AnswerTime();

    /// <summary>Six processors, two for each domain.</summary>
    private sealed class ManyProcessors() : DaemonsFixture(
        new() { Processors = 6, Dom0Vcpus = 2 }, "", new GuestOptions { Name = "one", Vcpus = 2 }, new GuestOptions { Name = "other", Vcpus = 2 });
}
