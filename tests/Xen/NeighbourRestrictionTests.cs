using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What Dom0 restricts stays restricted, as xl and the bridge of a real Dom0 have it.</summary>
[Collection(Neighbourhood.Name)]
public sealed class NeighbourRestrictionTests(NeighbourFixture xen)
{
    private const string Mac = "00:16:3e:77:ff:07";

    [Fact]
    public async Task A_vif_with_a_rate_limit_meets_nobody()
    {
        (Node g1, Node g4) = (xen["g1"], xen["g4"]);
        await xen.ConvergeAsync(g1, g4);
        int vif = await AttachAsync("rate=1MB/s");
        try
        {
            (await g1.RunAsync($"ping -q -c 5 -i 0.1 -W 5 {g4.Guest.Ipv4}")).Check();
            await xen.KnowsAsync(g1, xen.Neighbours(g1));
            Assert.Contains("rate", (await xen.Host.RunAsync($"xenloop status --json | grep -A 4 {Mac}")).Check().Output, StringComparison.Ordinal);
        }
        finally
        {
            (await xen.Host.RunAsync($"xl network-detach g1 {vif}")).Check();
        }
    }

    [Fact]
    public async Task A_vif_with_addresses_of_its_own_uses_no_others_on_the_channel()
    {
        (Node g1, Node g4) = (xen["g1"], xen["g4"]);
        await xen.ConvergeAsync(g1, g4);
        string address = g1.Guest.Ipv4On("xenbr1"), spoofed = $"{address[..address.LastIndexOf('.')]}.250";
        int vif = await AttachAsync($"ip={address}");
        try
        {
            _ = await g4.RunAsync($"ping -q -c 20 -i 0.1 -W 1 {address}");
            await xen.EventuallyAsync(g4, "a channel to the new vif", peers => peers.Any(p => p.Key == new PeerKey(0, g1.Domid, vif) && p.State == "running"));
            (await g1.RunAsync($"ping -q -c 5 -i 0.1 -W 5 {g4.Guest.Ipv4}")).Check();
            string answers = (await g1.RunAsync($"""
                name=$(basename $(dirname $(grep -l '^{Mac}$' /sys/class/net/*/address)))
                ip addr add {spoofed}/24 dev $name
                ping -q -c 5 -i 0.1 -W 1 -I {spoofed} {g4.Guest.Ipv4}
                ip addr del {spoofed}/24 dev $name
                """)).Output;
            Assert.Contains(" 0 received", answers, StringComparison.Ordinal);
            Assert.Equal(5, (await g4.Daemon.PeerAsync(g1.Domid))!.Value.GetProperty("foreign_sources").GetInt64());
        }
        finally
        {
            (await xen.Host.RunAsync($"xl network-detach g1 {vif}")).Check();
        }

        await xen.KnowsAsync(g4, xen.Neighbours(g4));
    }

    [Fact]
    public async Task Ports_that_are_isolated_while_there_is_a_channel_lose_it()
    {
        (Node g1, Node g2) = (xen["g1"], xen["g2"]);
        await xen.ConvergeAsync(g1, g2);
        try
        {
            await IsolateAsync(1);
            await xen.KnowsAsync(g1, xen.Neighbours(g1).Where(n => n.Peer != g2));
            await xen.KnowsAsync(g2, xen.Neighbours(g2).Where(n => n.Peer != g1));
            Assert.Contains(" 0 received", (await g1.RunAsync($"ping -q -c 3 -i 0.1 -W 1 {g2.Guest.Ipv4}")).Output, StringComparison.Ordinal);
        }
        finally
        {
            await IsolateAsync(0);
        }

        await xen.ConvergeAsync(g1, g2);

        async Task IsolateAsync(int on) => (await xen.Host.RunAsync(
            $"for d in {g1.Domid} {g2.Domid}; do echo {on} >/sys/class/net/vif$d.0/brport/isolated; done")).Check();
    }

    [Fact]
    public async Task A_port_that_drops_long_packets_drops_them_though_there_was_a_channel()
    {
        (Node g1, Node g2) = (xen["g1"], xen["g2"]);
        await xen.ConvergeAsync(g1, g2);
        try
        {
            await MtuAsync(1400);
            Assert.Contains(" 0 received", await LongPingAsync(), StringComparison.Ordinal);
            (await g1.RunAsync($"ping -q -c 3 -i 0.1 -W 1 {g2.Guest.Ipv4}")).Check();
            Assert.Contains("1400 bytes", (await g1.Daemon.PeerAsync(g2.Domid))!.Value.GetProperty("obstacle").GetString(), StringComparison.Ordinal);
        }
        finally
        {
            await MtuAsync(1500);
        }

        await xen.ConvergeAsync(g1, g2);
        Assert.Contains(" 3 received", await LongPingAsync(), StringComparison.Ordinal);

        async Task MtuAsync(int mtu) => (await xen.Host.RunAsync($"ip link set vif{g2.Domid}.0 mtu {mtu}; sleep 1")).Check();

        async Task<string> LongPingAsync() => (await g1.RunAsync($"ping -q -c 3 -i 0.1 -W 1 -M do -s 1450 {g2.Guest.Ipv4}")).Output;
    }

    /// <summary>Who had the address before does not know that it has lost it.</summary>
    [Fact]
    public async Task Whoever_takes_a_MAC_over_gets_its_frames()
    {
        (Node g1, Node g2, Node g3) = (xen["g1"], xen["g2"], xen["g3"]);
        await xen.ConvergeAsync(g1, g2, g3);
        await g2.StartPingAsync(g1.Guest.Ipv4);
        try
        {
            string[] counts = (await g3.RunAsync($$"""
                set -e
                # Or g1 defends the link-local address that comes with the MAC, and has it back with that frame.
                echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
                ip link set eth0 down; ip link set eth0 address {{g1.Guest.Macs[0]}}; ip link set eth0 up
                ip addr add {{g1.Guest.Ipv4}}/32 dev eth0
                echos() { awk '/^Icmp:/ && n++ { print $10 }' /proc/net/snmp; }
                ping -q -c 1 -W 2 -I {{g1.Guest.Ipv4}} 10.77.0.1 >/dev/null
                echos; sleep 2; echos
                """)).Check().Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
            int arrived = int.Parse(counts[1], CultureInfo.InvariantCulture) - int.Parse(counts[0], CultureInfo.InvariantCulture);
            Assert.True(arrived >= 10, $"{arrived} requests in 2 s");
            await xen.KnowsAsync(g2, xen.Neighbours(g2).Where(n => n.Peer != g1));
        }
        finally
        {
            (await g3.RunAsync($"""
                ip addr del {g1.Guest.Ipv4}/32 dev eth0
                ip link set eth0 down; ip link set eth0 address {g3.Guest.Macs[0]}; ip link set eth0 up
                echo 0 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
                """)).Check();
            (await g1.RunAsync("ping -q -c 3 -i 0.1 -W 5 10.77.0.1")).Check();
            (await g3.RunAsync("ping -q -c 3 -i 0.1 -W 5 10.77.0.1")).Check();
        }

        await g2.PingsGoOnAsync();
        await xen.ConvergeAsync(g1, g2, g3);
    }

    /// <summary>Gives g1 one vif more on the other bridge, with its address there.</summary>
    /// <returns>The vif's number.</returns>
    private async Task<int> AttachAsync(string option)
    {
        Node g1 = xen["g1"];
        (await xen.Host.RunAsync($"xl network-attach g1 mac={Mac} bridge=xenbr1 {option}")).Check();
        return int.Parse((await g1.RunAsync($"""
            until path=$(grep -l '^{Mac}$' /sys/class/net/*/address); do sleep 0.1; done
            name=$(basename $(dirname $path))
            ip addr add {g1.Guest.Ipv4On("xenbr1")}/24 dev $name
            ip link set $name up
            readlink -f /sys/class/net/$name/device | sed 's/.*vif-//'
            """)).Check().Output, CultureInfo.InvariantCulture);
    }
}
