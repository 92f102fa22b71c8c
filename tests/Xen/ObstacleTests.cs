using System.Text.Json;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What a guest has on eth0 that a diverted packet would pass by: traffic goes by netfront while it is there.</summary>
[Collection(ChannelHost.Name)]
public class ObstacleTests(ChannelFixture xen)
{
    [Theory, MemberData(nameof(ChannelTests.Pairs), MemberType = typeof(ChannelTests))]
    public async Task A_qdisc_that_shapes_has_the_traffic_until_it_goes(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        (await from.RunAsync("tc qdisc show dev eth0 >/tmp/qdiscs; tc qdisc replace dev eth0 root tbf rate 20mbit burst 32k latency 50ms")).Check();
        try
        {
            await ObstacleAsync(from, "tbf");
            (await from.RunAsync($"""
                sent() {"{"} tc -s qdisc show dev eth0 root | sed -n 's/^ Sent [0-9]* bytes \([0-9]*\) pkt.*/\1/p'; {"}"}
                before=$(sent)
                ping -q -c 20 -i 0.05 -W 5 {to.Guest.Ipv4} || exit 1
                [ $(sent) -ge $((before + 20)) ] || {"{"} echo "$before, $(sent)"; xenloop status --json; exit 1; {"}"}
                """)).Check();
        }
        finally
        {
            (await from.RunAsync("tc qdisc del dev eth0 root")).Check();
        }

        await ChannelFixture.ChannelUpAsync(from, to);
        Assert.Null(await ReadObstacleAsync(from));
    }

    [Theory, MemberData(nameof(ChannelTests.Pairs), MemberType = typeof(ChannelTests))]
    public async Task Tcpdump_sees_both_directions(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        (await from.RunAsync($"""
            tcpdump -i eth0 -n -c 10 -w /dev/null icmp 2>/tmp/dump & dump=$!
            sleep 1
            ping -q -c 1 -W 5 {to.Guest.Ipv4}
            # The capture is found within a second of the first packet.
            sleep 1.5
            ping -q -c 5 -i 0.1 -W 5 {to.Guest.Ipv4} || exit 1
            while kill -0 $dump 2>/dev/null && [ $((waited += 1)) -lt 50 ]; do sleep 0.1; done
            kill $dump 2>/dev/null
            cat /tmp/dump
            grep '^10 packets captured' /tmp/dump
            """)).Check();
        await ChannelFixture.ChannelUpAsync(from, to);
    }

    private static async Task ObstacleAsync(Node node, string what) => (await node.RunAsync($$"""
        for i in $(seq 100); do
          xenloop status --json | grep '"obstacle": "[^"]*{{what}}' && ! xenloop status --json | grep -q '"state": "running"' && exit 0
          sleep 0.1
        done
        xenloop status --json; exit 1
        """)).Check();

    private static async Task<string?> ReadObstacleAsync(Node node)
    {
        JsonElement status = await node.Daemon.StatusAsync();
        return status.GetProperty("vifs")[0].GetProperty("obstacle").GetString();
    }
}
