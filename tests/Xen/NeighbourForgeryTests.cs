using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What root of a guest can write and send to be taken for somebody else, or to get a channel that it may not have.</summary>
[Collection(Neighbourhood.Name)]
public sealed class NeighbourForgeryTests(NeighbourFixture xen)
{
    // For scripts: `denied COMMAND...` fails unless XenStore refuses for want of permission. The tools do not say why they fail.
    private const string Denied = """
        denied() {
          ! strace -o /tmp/answers -s 64 -e trace=read "$@" >/dev/null 2>&1 && grep -q 'EACCES' /tmp/answers && return
          echo "not denied: $*"; cat /tmp/answers; exit 1
        }

        """;

    [Fact]
    public async Task Frames_from_anothers_mac_address_do_not_go_by_the_channel()
    {
        (Node g1, Node g2, Node g3) = (xen["g1"], xen["g2"], xen["g3"]);
        await xen.ConvergeAsync(g1, g2, g3);
        string[] introductions = await xen.IntroductionsAsync();
        (long sent, long received) before = await g2.PacketsAsync(g3), beforeSender = await g3.PacketsAsync(g2);
        string Become(string mac) => $"""
            sysctl -q -w net.ipv6.conf.eth0.keep_addr_on_down=1
            ip link set eth0 down; ip link set eth0 address {mac}; ip link set eth0 up
            grep -q {mac} /sys/class/net/eth0/address
            """;
        try
        {
            (await g3.RunAsync($"set -e; {Become(g1.Guest.Macs[0])}")).Check();
            await g3.RunAsync($"ping -q -c 20 -i 0.1 -W 1 {g2.Guest.Ipv4}; ping -q -c 20 -i 0.1 -W 1 {g2.Guest.Ipv6}");
            // Whose address it is goes by netfront meanwhile, where the bridge decides, as without XenLoop. Nobody is introduced anew.
            Assert.Empty((await xen.IntroductionsAsync()).Except(introductions));
            (long sent, long received) after = await g2.PacketsAsync(g3), afterSender = await g3.PacketsAsync(g2);
            Assert.True(after.received - before.received < 20, $"{g2.Name} took them out of the channel: {before} to {after}");
            Assert.True(afterSender.sent - beforeSender.sent < 20, $"{g3.Name} put them into the channel: {beforeSender} to {afterSender}");
        }
        finally
        {
            (await g3.RunAsync($"set -e; {Become(g3.Guest.Macs[0])}")).Check();
        }

        // Dom0's bridge learns where the addresses are now.
        (await g1.RunAsync("ping -q -c 3 -i 0.1 -W 5 10.77.0.1")).Check();
        (await g3.RunAsync("ping -q -c 3 -i 0.1 -W 5 10.77.0.1")).Check();
        await xen.ConvergeAsync(g1, g2, g3);
    }

    [Fact]
    public async Task An_offer_in_anothers_name_is_refused()
    {
        (Node victim, Node forger) = (xen["g1"], xen["g3"]);
        string home = $"/local/domain/{victim.Domid}";
        (await forger.RunAsync($"""
            {Denied}
            denied xenstore-write {home}/data/xenloop/offer '1 0'
            denied xenstore-rm {home}/data/xenloop/offer
            denied xenstore-rm {home}/data/xenloop
            denied xenstore-write {home}/data/xenloop/0-{forger.Domid}-0 'calling 0123456789abcdef'
            denied xenstore-read {home}/data/xenloop/offer
            """)).Check();
        await xen.ConvergeAsync(victim, forger);
    }

    [Fact]
    public async Task Nobody_introduces_himself()
    {
        (Node forger, Node wanted) = (xen["g1"], xen["g4"]);
        (await forger.RunAsync($"""
            {Denied}
            self=/local/domain/$(xenstore-read domid)
            for home in '' $self/; do
              denied xenstore-write "$home"xenloop ''
              denied xenstore-write "$home"xenloop/0 {wanted.Guest.Macs[0]}
              denied xenstore-write "$home"xenloop/0/{wanted.Domid}-0 '{wanted.Guest.Macs[0]} 1 1'
              denied xenstore-rm "$home"xenloop
            done
            denied xenstore-write /local/domain/{wanted.Domid}/xenloop/0/{forger.Domid}-0 '{forger.Guest.Macs[0]} 1 1'
            denied xenstore-read /local/domain/{wanted.Domid}/xenloop/0
            """)).Check();
        await xen.ConvergeAsync(forger, wanted);
    }

    [Fact]
    public async Task The_channel_nodes_of_others_can_be_neither_written_nor_removed_nor_read()
    {
        (Node g1, Node g2, Node g3) = (xen["g1"], xen["g2"], xen["g3"]);
        await xen.ConvergeAsync(g1, g2, g3);
        string node = $"/local/domain/{g1.Domid}/data/xenloop/0-{g2.Domid}-0";
        string value = (await xen.Host.RunAsync($"xenstore-read {node}")).Check().Output;
        (await g3.RunAsync($"""
            {Denied}
            denied xenstore-write {node} 'closed 0123456789abcdef'
            denied xenstore-rm {node}
            denied xenstore-read {node}
            denied xenstore-chmod {node} b0
            """)).Check();
        // The peer, who may read it.
        (await g2.RunAsync($"""
            {Denied}
            denied xenstore-write {node} 'closed 0123456789abcdef'
            denied xenstore-rm {node}
            denied xenstore-chmod {node} b0
            [ "$(xenstore-read {node})" = '{value.TrimEnd()}' ]
            """)).Check();
        Assert.Equal(value, (await xen.Host.RunAsync($"xenstore-read {node}")).Check().Output);
    }

    [Fact]
    public async Task Vifs_and_bridges_that_a_guest_makes_up_for_itself_count_for_nothing()
    {
        (Node forger, Node wanted) = (xen["g3"], xen["g4"]);
        await xen.ConvergeAsync(forger, wanted);
        string[] introductions = await xen.IntroductionsAsync();
        string wantedBackend = $"/local/domain/0/backend/vif/{wanted.Domid}/0";
        try
        {
            // What is refused is as good as what is ignored; a vif's own area a guest may change.
            (await forger.RunAsync($"""
                self=$(xenstore-read domid)
                xenstore-read device/vif/0/backend >/tmp/backend
                xenstore-read device/vif/0/mac >/tmp/mac
                xenstore-write device/vif/0/backend {wantedBackend}
                xenstore-write device/vif/0/mac {wanted.Guest.Macs[0]}
                xenstore-write device/vif/0/bridge xenbr1
                xenstore-write device/vif/9/backend {wantedBackend}
                xenstore-write device/vif/9/backend-id 0
                xenstore-write device/vif/9/mac 00:16:3e:77:ff:09
                xenstore-write device/vif/9/bridge xenbr1
                for node in "backend/vif/$self/9" "backend/vif/{wanted.Domid}/0" "data/backend/vif/$self/0" /local/domain/0/backend/vif/$self/9 "/libxl/$self/device/vif/9"; do
                  xenstore-write $node/mac 00:16:3e:77:ff:09
                  xenstore-write $node/bridge xenbr1
                  xenstore-write $node/backend {wantedBackend}
                done
                for node in /local/domain/0/backend/vif/$self/0 /libxl/$self/device/vif/0; do
                  xenstore-write $node/bridge xenbr1
                  xenstore-write $node/mac {wanted.Guest.Macs[0]}
                  xenstore-rm $node
                done
                [ "$(xenstore-read device/vif/0/mac) $(xenstore-read device/vif/0/bridge)" = "{wanted.Guest.Macs[0]} xenbr1" ]
                """)).Check();
            await xen.SleepAsync(2);
            Assert.Equal(introductions, await xen.IntroductionsAsync());

            // Nor does it for a daemon that reads everything anew.
            await xen.Dom0.KillAsync();
            await xen.Dom0.StartAsync();
            await xen.SleepAsync(2);
            Assert.Equal(introductions, await xen.IntroductionsAsync());
            await xen.ConvergeAsync(forger, wanted);
        }
        finally
        {
            await forger.RunAsync("""
                xenstore-write device/vif/0/backend "$(cat /tmp/backend)"
                xenstore-write device/vif/0/mac "$(cat /tmp/mac)"
                xenstore-rm device/vif/0/bridge
                xenstore-rm device/vif/9
                xenstore-rm backend
                xenstore-rm data/backend
                """);
        }
    }

    [Theory]
    [InlineData("calling 0123456789abcdef")]
    [InlineData("listening 0123456789abcdef 1 1 8 8")]
    public async Task A_call_to_a_guest_of_another_bridge_is_not_heard(string call)
    {
        (Node caller, Node callee) = (xen["g1"], xen["g4"]);
        await xen.ConvergeAsync(caller, callee);
        string[] introductions = await xen.IntroductionsAsync();
        string node = $"data/xenloop/0-{callee.Domid}-0";
        try
        {
            (await caller.RunAsync($"xenstore-write {node} '{call}' && xenstore-chmod {node} n{caller.Domid} r{callee.Domid}")).Check();
            await xen.SleepAsync(2);
            Assert.Equal(introductions, await xen.IntroductionsAsync());
            await xen.ConvergeAsync(caller, callee);
            Assert.DoesNotContain(
                string.Create(CultureInfo.InvariantCulture, $"-{caller.Domid}-"),
                (await callee.RunAsync("xenstore-list data/xenloop")).Check().Output, StringComparison.Ordinal);
        }
        finally
        {
            (await caller.RunAsync($"xenstore-rm {node}")).Check();
        }
    }

    [Fact]
    public async Task Frames_of_a_vlan_go_by_the_bridge()
    {
        (Node g1, Node g2) = (xen["g1"], xen["g2"]);
        await xen.ConvergeAsync(g1, g2);
        Node[] both = [g1, g2];
        try
        {
            foreach (Node node in both)
            {
                (await node.RunAsync($"ip link add link eth0 name eth0.5 type vlan id 5 && ip addr add 10.5.0.{node.Domid}/24 dev eth0.5 && ip link set eth0.5 up")).Check();
            }

            (long sent, long received) before = await g1.PacketsAsync(g2);
            (await g1.RunAsync($"ping -q -c 20 -i 0.1 -W 5 10.5.0.{g2.Domid}")).Check();
            (long sent, long received) after = await g1.PacketsAsync(g2);
            // Some packet of eth0's own may be among them.
            Assert.True(after.sent - before.sent < 10 && after.received - before.received < 10, $"{before} to {after}: through the channel");
        }
        finally
        {
            foreach (Node node in both)
            {
                await node.RunAsync("ip link del eth0.5");
            }
        }

        await xen.ConvergeAsync(g1, g2);
    }
}
