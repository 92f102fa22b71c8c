using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>Who gets a channel to whom, and how that follows bridges, vifs, names and the policy.</summary>
[Collection(Neighbourhood.Name)]
public sealed class NeighbourTests(NeighbourFixture xen)
{
    [Fact]
    public async Task Each_pair_on_a_bridge_has_a_channel_there_and_no_other_pair_has_one()
    {
        await xen.ConvergeAsync(xen.Guests);
        await Task.WhenAll(xen.Guests.Select(async guest =>
        {
            (PeerKey Key, Node Peer)[] neighbours = [.. xen.Neighbours(guest)];
            string addresses = string.Join(' ', neighbours.Select(n => $"{n.Peer.Guest.Ipv4Of(n.Key.PeerVif)} {n.Peer.Guest.Ipv6Of(n.Key.PeerVif)}"));
            string[] parts = (await guest.RunAsync($$"""
                xenloop status --json
                echo ---
                for address in {{addresses}}; do
                  ping -q -c 3 -i 0.05 -W 5 $address | grep -q ' 3 received' || echo "lost: $address"
                done
                echo ---
                xenloop status --json
                """)).Check().Output.Split("---\n");
            Assert.Equal("", parts[1]);
            Dictionary<PeerKey, PeerStatus> before = Peers(parts[0]), after = Peers(parts[2]);
            Assert.Equal(neighbours.Select(n => n.Key).Order(Comparer<PeerKey>.Create(Compare)), after.Keys.Order(Comparer<PeerKey>.Create(Compare)));
            foreach ((PeerKey key, PeerStatus peer) in after)
            {
                // Three requests in each family, and as many answers.
                Assert.True(peer.Sent - before[key].Sent >= 6 && peer.Received - before[key].Received >= 6, $"{guest.Name}: {before[key]} to {peer}: not through the channel");
            }
        }));
    }

    [Fact]
    public async Task The_policy_takes_a_channel_and_gives_it_back_and_no_packet_is_lost()
    {
        (Node g1, Node g2) = (xen["g1"], xen["g2"]);
        await xen.ConvergeAsync(g1, g2);
        await g1.StartPingAsync(g2.Guest.Ipv4);
        Task<CommandResult> gone = g1.RunAsync($"""
            for i in $(seq 1000); do xenloop status --json | tr -d ' \n' | grep -q '"domid":{g2.Domid},' || break; sleep 0.02; done
            bash -c 'echo $EPOCHREALTIME'
            """);
        try
        {
            string reloaded = (await xen.ReloadAsync("""
                [policy]
                deny = [["one", "other"]]
                [policy.groups]
                one = ["g1"]
                other = ["g2"]
                """)).Check().Output;
            double took = Seconds((await gone).Check().Output) - Seconds(reloaded);
            Assert.True(took < 1, $"gone after {took:0.00} s");
            await xen.KnowsAsync(g1, xen.Neighbours(g1).Where(n => n.Peer != g2));
            await xen.KnowsAsync(g2, xen.Neighbours(g2).Where(n => n.Peer != g1));
        }
        finally
        {
            (await xen.ReloadAsync(null)).Check();
        }

        // By the ping alone.
        await g1.Daemon.WaitForAsync(g2.Domid, "running");
        Assert.InRange(await g1.StopPingAsync(), 10, int.MaxValue);
        await xen.ConvergeAsync(g1, g2);
    }

    [Fact]
    public async Task A_mistake_in_the_policy_is_named_and_changes_nothing()
    {
        (Node g1, Node g2) = (xen["g1"], xen["g2"]);
        await xen.ConvergeAsync(g1, g2);
        (long sent, long received) before = await g1.PacketsAsync(g2);
        try
        {
            CommandResult result = await xen.ReloadAsync("[policy]\ndefualt = \"deny\"");
            Assert.Equal(6, result.ExitCode);
            Assert.Contains($"{NeighbourFixture.Configuration}:2:1: ", result.Error, StringComparison.Ordinal);
            (await g1.RunAsync($"ping -q -c 5 -i 0.1 -W 5 {g2.Guest.Ipv4}")).Check();
            (long sent, long received) after = await g1.PacketsAsync(g2);
            Assert.True(after.sent >= before.sent + 5, $"{before} to {after}: the channel did not stay");
        }
        finally
        {
            (await xen.ReloadAsync(null)).Check();
        }
    }

    [Fact]
    public async Task A_vif_plugged_in_gets_channels_and_loses_them_and_the_other_vif_does_not_notice()
    {
        const string Mac = "00:16:3e:77:ff:01";
        (Node g1, Node g2, Node g4) = (xen["g1"], xen["g2"], xen["g4"]);
        await xen.ConvergeAsync(g1, g2);
        (long sent, long received) before = await g1.PacketsAsync(g2);
        await g1.StartPingAsync(g2.Guest.Ipv4);

        (await xen.Host.RunAsync($"xl network-attach g1 mac={Mac} bridge=xenbr1")).Check();
        int vif = int.Parse((await g1.RunAsync($"""
            until path=$(grep -l '^{Mac}$' /sys/class/net/*/address); do sleep 0.1; done
            name=$(basename $(dirname $path))
            ip addr add {g1.Guest.Ipv4On("xenbr1")}/24 dev $name
            ip link set $name up
            readlink -f /sys/class/net/$name/device | sed 's/.*vif-//'
            """)).Check().Output, CultureInfo.InvariantCulture);
        await xen.KnowsAsync(g1, [.. xen.Neighbours(g1), .. xen.On("xenbr1", vif, g1)]);
        await g1.Daemon.WaitForAsync(g4.Domid, "running", pinging: g4.Guest.Ipv4);

        (await xen.Host.RunAsync($"xl network-detach g1 {vif}")).Check();
        await xen.KnowsAsync(g1, xen.Neighbours(g1));
        await xen.KnowsAsync(g4, xen.Neighbours(g4));
        int answered = await g1.StopPingAsync();
        (long sent, long received) after = await g1.PacketsAsync(g2);
        Assert.True(after.sent >= before.sent + answered, $"{answered} pings, {before} to {after}: the channel did not stay");
    }

    [Fact]
    public async Task A_vif_moved_to_another_bridge_by_hand_has_the_neighbours_there()
    {
        (Node g1, Node g3, Node g4) = (xen["g1"], xen["g3"], xen["g4"]);
        await xen.ConvergeAsync(g1, g3);
        string address = $"{g3.Guest.Ipv4On("xenbr1")}/24 dev eth0";
        (await g3.RunAsync($"ip addr add {address}")).Check();
        try
        {
            (await xen.Host.RunAsync($"ip link set vif{g3.Domid}.0 master xenbr1")).Check();
            await xen.KnowsAsync(g3, xen.On("xenbr1", 0, g3));
            await xen.KnowsAsync(g1, xen.Neighbours(g1).Where(n => n.Peer != g3));
            await g3.Daemon.WaitForAsync(g4.Domid, "running", pinging: g4.Guest.Ipv4);
            await g4.Daemon.WaitForAsync(g3.Domid, "running");
        }
        finally
        {
            (await xen.Host.RunAsync($"ip link set vif{g3.Domid}.0 master xenbr0")).Check();
            (await g3.RunAsync($"ip addr del {address}")).Check();
        }

        await xen.ConvergeAsync(g1, g3, g4);
    }

    [Fact]
    public async Task A_guest_renamed_into_a_denied_group_loses_its_channels()
    {
        (Node g4, Node g6) = (xen["g4"], xen["g6"]);
        await xen.ConvergeAsync(g4, g6);
        try
        {
            (await xen.ReloadAsync("""
                [policy]
                deny = [["banned", "*"]]
                [policy.groups]
                banned = ["banned-*"]
                """)).Check();
            await xen.KnowsAsync(g6, xen.Neighbours(g6));
            (await xen.Host.RunAsync("xl rename g6 banned-6")).Check();
            await xen.KnowsAsync(g6, []);
            await xen.KnowsAsync(g4, xen.Neighbours(g4).Where(n => n.Peer != g6));
            (await g6.RunAsync($"ping -q -c 3 -i 0.1 -W 5 {g4.Guest.Ipv4}")).Check();
            (await xen.Host.RunAsync("xl rename banned-6 g6")).Check();
            await xen.ConvergeAsync(g4, g6);
        }
        finally
        {
            await xen.Host.RunAsync("xl rename banned-6 g6");
            (await xen.ReloadAsync(null)).Check();
        }
    }

    [Fact]
    public async Task Daemons_killed_in_dom0_and_a_guest_find_together_again()
    {
        Node g7 = xen["g7"];
        await xen.ConvergeAsync(g7);
        await xen.Dom0.KillAsync();
        await g7.Daemon.KillAsync();
        await g7.Daemon.StartAsync(NeighbourFixture.DaemonArguments);
        await xen.Dom0.StartAsync();
        await xen.ConvergeAsync(g7);
        string[] nodes = (await g7.RunAsync("xenstore-list data/xenloop; ip -o link | grep -c ': xl'")).Check().Output.Split('\n', StringSplitOptions.RemoveEmptyEntries);
        Assert.Equal(
            xen.Neighbours(g7).Select(n => $"{n.Key.Vif}-{n.Key.Domid}-{n.Key.PeerVif}").Append("offer").Order(StringComparer.Ordinal),
            nodes[..^1].Order(StringComparer.Ordinal));
        Assert.Equal(xen.Neighbours(g7).Count().ToString(CultureInfo.InvariantCulture), nodes[^1]);
    }

    [Fact]
    public async Task Dom0_forgets_all_introductions_when_told()
    {
        Node g7 = xen["g7"];
        await xen.ConvergeAsync(g7);
        Assert.NotEqual(0, (await xen.Host.RunAsync("xenloopd --forget")).ExitCode);
        Assert.NotEmpty(await xen.IntroductionsAsync());
        await xen.Dom0.StopAsync();
        try
        {
            Assert.NotEmpty(await xen.IntroductionsAsync());
            (await xen.Host.RunAsync("xenloopd --forget")).Check();
            Assert.Empty(await xen.IntroductionsAsync());
            await Task.WhenAll(xen.Guests.Select(async guest => Assert.Equal("offer\n", (await guest.RunAsync("""
                for i in $(seq 50); do xenloop status --json | grep -q '"state"' || break; sleep 0.2; done
                xenloop status --json | grep '"state"'
                ip -o link | grep ': xl'
                xenstore-list data/xenloop
                """)).Output)));
        }
        finally
        {
            await xen.Dom0.StartAsync();
        }

        await xen.ConvergeAsync(g7);
    }

    [Fact]
    public async Task A_guests_daemon_that_stops_leaves_nothing_and_is_forgotten_by_all()
    {
        Node g8 = xen["g8"];
        await xen.ConvergeAsync(g8);
        await g8.Daemon.StopAsync();
        Assert.Equal("", (await g8.RunAsync("""
            xenstore-exists data/xenloop && xenstore-ls data/xenloop
            ip -o link | grep ': xl'
            tc filter show dev eth0 egress
            tc filter show dev eth1 egress
            """)).Output);
        string[] introductions = await xen.IntroductionsAsync();
        Assert.DoesNotContain(introductions, node => node.StartsWith($"/local/domain/{g8.Domid}/", StringComparison.Ordinal));
        Assert.DoesNotContain(introductions, node => node.Contains($"/{g8.Domid}-", StringComparison.Ordinal));
        foreach (Node peer in new[] { xen["g1"], xen["g4"], xen["g7"] })
        {
            await xen.KnowsAsync(peer, xen.Neighbours(peer).Where(n => n.Peer != g8));
        }

        await g8.Daemon.StartAsync(NeighbourFixture.DaemonArguments);
        await xen.ConvergeAsync(g8);
    }

    [Fact]
    public async Task A_channel_goes_when_idle_and_comes_at_the_next_packet()
    {
        (Node g2, Node g3) = (xen["g2"], xen["g3"]);
        await xen.ConvergeAsync(g2, g3);
        try
        {
            await SetAsync("[guest]\nidle-seconds = 2\n");
            // All in one script: between two the clock leaps. The first ping is long enough that neither kernel asks five seconds
            // later whether its ARP entry still holds, for which a channel would be built.
            string output = (await g2.RunAsync($$"""
                set -e
                state() { xenloop status --json | tr -d ' \n' | sed 's/.*"domid":{{g3.Domid}},"vif":0,"mac":"[0-9a-f:]*","state":"\([a-z]*\)".*/\1/'; echo; }
                ping -q -i 0.5 -w 8 {{g3.Guest.Ipv4}} >/dev/null
                state
                sleep 4
                state
                ping -q -i 0.2 -w 2 {{g3.Guest.Ipv4}} >/dev/null
                state
                """)).Check().Output;
            Assert.Equal("running\nidle\nrunning\n", output);
        }
        finally
        {
            await SetAsync(NeighbourFixture.GuestConfiguration);
        }

        await xen.ConvergeAsync(g2, g3);

        // A channel keeps the look at its idleness that was due when the configuration changed: another daemon has none.
        async Task SetAsync(string configuration)
        {
            await g2.Daemon.StopAsync();
            (await g2.RunAsync($"cat >{NeighbourFixture.Configuration} <<'END'\n{configuration}END")).Check();
            await g2.Daemon.StartAsync(NeighbourFixture.DaemonArguments);
        }
    }

    private static double Seconds(string output) =>
        double.Parse(output.Split('\n', StringSplitOptions.RemoveEmptyEntries)[^1], CultureInfo.InvariantCulture);

    private static Dictionary<PeerKey, PeerStatus> Peers(string status) => Node.Peers(status).ToDictionary(p => p.Key);

    private static int Compare(PeerKey one, PeerKey other) =>
        (one.Vif, one.Domid, one.PeerVif).CompareTo((other.Vif, other.Domid, other.PeerVif));
}
