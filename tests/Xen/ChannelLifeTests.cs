using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>Channels that go and come back, with a daemon, Dom0's daemon or a guest.</summary>
[Collection(ChannelHost.Name)]
public sealed class ChannelLifeTests(ChannelFixture xen)
{
    [Theory, MemberData(nameof(ChannelTests.Pairs), MemberType = typeof(ChannelTests))]
    public async Task A_connection_outlives_the_channels_building_loss_and_rebuilding(string a, string b)
    {
        (Node from, Node to) = await xen.UpAsync(a, b);
        await from.Daemon.StopAsync();

        // 40 pieces, one every half a second, over one connection that begins on netfront.
        (await to.RunAsync($"socat -u TCP-LISTEN:5005,reuseaddr CREATE:/tmp/stream & echo $! >/tmp/receiver; {TcpTransfer.Listening(5005)}")).Check();
        (await from.RunAsync("head -c 4000000 /dev/urandom >/tmp/source")).Check();
        Task<CommandResult> sending = from.RunAsync($$"""
            { for i in $(seq 0 39); do dd if=/tmp/source bs=100000 skip=$i count=1 2>/dev/null; sleep 0.5; done; } | socat -u - TCP:{{to.Guest.Ipv4}}:5005
            sha256sum </tmp/source
            """);
        await xen.SleepAsync(1);
        await from.Daemon.StartAsync();
        await ChannelFixture.ChannelUpAsync(from, to);
        await to.Daemon.SignalAsync("KILL");
        await xen.SleepAsync(1.5);
        await to.Daemon.StartAsync();
        await ChannelFixture.ChannelUpAsync(from, to);
        Assert.False(sending.IsCompleted, "the stream was over before the channel was back: nothing is shown");

        string digest = (await sending).Check().Output;
        Assert.Equal(digest, (await to.RunAsync("while kill -0 $(cat /tmp/receiver) 2>/dev/null; do sleep 0.1; done; sha256sum </tmp/stream")).Check().Output);
    }

    [Fact]
    public async Task Dom0s_daemon_restarted_costs_no_packet_and_no_channel()
    {
        (Node from, Node to) = await xen.UpAsync("pvh1", "pv1");
        (long sent, long received) before = await from.PacketsAsync(to);
        Task<CommandResult> pinging = from.RunAsync($"ping -q -i 0.05 -c 200 {to.Guest.Ipv4}");
        await xen.Dom0.SignalAsync("KILL");
        await xen.Dom0.StartAsync();
        await xen.Dom0.StopAsync();
        await xen.Dom0.StartAsync();
        Assert.Contains(" 0% packet loss", (await pinging).Output, StringComparison.Ordinal);
        (long sent, long received) after = await from.PacketsAsync(to);
        Assert.True(after.sent - before.sent >= 200, $"{before} to {after}: the channel did not stay");
    }

    [Theory]
    [InlineData(GuestKind.Pvh, "pvh1")]
    [InlineData(GuestKind.Pv, "pv1")]
    public async Task A_guest_destroyed_leaves_no_zombie(GuestKind kind, string peerName)
    {
        Node peer = xen[peerName];
        Node doomed = await xen.AddGuestAsync(ChannelFixture.Small($"doomed-{kind}", kind));
        await ChannelFixture.ChannelUpAsync(peer, doomed);
        await doomed.Guest.DestroyAsync();
        for (int i = 0; i < 50; i++)
        {
            if (!(await xen.Host.DomainsAsync()).Any(d => d.Id == doomed.Guest.Domid))
            {
                return;
            }

            await xen.SleepAsync(0.1);
        }

        Assert.Fail($"still there after 5 s: {string.Join('\n', await xen.Host.DomainsAsync())}\n{await peer.Daemon.LogAsync()}");
    }
}
