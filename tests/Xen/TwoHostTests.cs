using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>Two joined hosts, each with the daemon in Dom0 and a guest with its daemon.</summary>
public sealed class TwoHostFixture : IAsyncLifetime
{
    private XenHost[] _hosts = [];

    public XenHost First => _hosts[0];

    public XenHost Second => _hosts[1];

    /// <summary>Boots on the first host, and migrates.</summary>
    public Node Mobile { get; private set; } = null!;

    /// <summary>Stays on the second host.</summary>
    public Node Static { get; private set; } = null!;

    public async Task InitializeAsync()
    {
        _hosts = await XenHost.StartJoinedAsync();
        foreach (XenLoopDaemon dom0 in await Task.WhenAll(_hosts.Select(XenLoopDaemon.InstallAsync)))
        {
            await dom0.StartAsync();
        }

        Node[] nodes = await Task.WhenAll(AddGuestAsync(First, "mobile", 256), AddGuestAsync(Second, "static", 512));
        (Mobile, Static) = (nodes[0], nodes[1]);
    }

    public async Task DisposeAsync()
    {
        foreach (XenHost host in _hosts)
        {
            await host.DisposeAsync();
        }
    }

    private static async Task<Node> AddGuestAsync(XenHost host, string name, int memory)
    {
        XenGuest guest = await host.CreateGuestAsync(new GuestOptions { Name = name, MemoryMiB = memory });
        XenLoopDaemon daemon = await XenLoopDaemon.InstallAsync(guest);
        await daemon.StartAsync();
        return new Node(guest, daemon);
    }
}

/// <summary>A guest migrates to the host of one that it talks to, and away again.</summary>
[Trait("Length", "long")]
public sealed class TwoHostTests(TwoHostFixture xen) : IClassFixture<TwoHostFixture>
{
    [Fact]
    public async Task A_connection_outlives_a_migration_to_its_peers_host_and_one_away_and_takes_the_channel_meanwhile()
    {
        (Node here, Node mobile) = (xen.Static, xen.Mobile);
        TcpTransfer transfer = await TcpTransfer.StartAsync(here, mobile);
        await here.StartPingAsync(mobile.Guest.Ipv4);
        await ArrivesAsync();
        Assert.Empty(await here.PeersAsync());

        await mobile.Guest.MigrateToAsync(xen.Second);
        // The stream's next packets build the channel.
        await here.Daemon.WaitForAsync(mobile.Domid, "running");
        await mobile.Daemon.WaitForAsync(here.Domid, "running");
        (long sent, long received) before = await here.PacketsAsync(mobile);
        await ArrivesAsync();
        (long sent, long received) after = await here.PacketsAsync(mobile);
        Assert.True(after.sent > before.sent + 10 && after.received > before.received + 10, $"{before} to {after}: not through the channel");

        int there = mobile.Domid;
        await mobile.Guest.MigrateToAsync(xen.First);
        await ArrivesAsync();
        Assert.Empty(await here.PeersAsync());
        await transfer.FinishAsync();
        await mobile.KernelIsWellAsync();
        await here.KernelIsWellAsync();

        // Nothing of it is left on either host.
        await AssertHasOnlyAsync(xen.First, mobile);
        await AssertHasOnlyAsync(xen.Second, here);
        Assert.DoesNotContain($"{there}-", (await xen.Second.RunAsync($"xenstore-ls -f /local/domain/{here.Domid} | grep xenloop")).Check().Output, StringComparison.Ordinal);

        // The connection is still there and carries more than it did, and pings are answered.
        async Task ArrivesAsync()
        {
            // What the one at the end of the connection has read.
            const string Received = "sed -n 's/^rchar: //p' /proc/$(pidof sha256sum)/io";
            const string Answers = "grep -c 'bytes from' /tmp/pings";
            long stream = await CountAsync(mobile, Received);
            long pings = await CountAsync(here, Answers);
            (await here.RunAsync("sleep 5")).Check();
            Assert.True(await CountAsync(mobile, Received) > stream + 100_000, "The transfer stands still.");
            Assert.True(await CountAsync(here, Answers) > pings + 10, "Pings are not answered.");
        }
    }

    private static async Task<long> CountAsync(Node node, string script) =>
        long.Parse((await node.RunAsync(script)).Check().Output, CultureInfo.InvariantCulture);

    /// <summary>No domain but Dom0 and this guest, dead or alive, and none in XenStore.</summary>
    private static async Task AssertHasOnlyAsync(XenHost host, Node guest)
    {
        int[] expected = [0, guest.Domid];
        Assert.Equal(expected, (await host.DomainsAsync()).Select(domain => domain.Id));
        Assert.Equal(
            expected,
            (await host.RunAsync("xenstore-list /local/domain")).Check().Output.Split('\n', StringSplitOptions.RemoveEmptyEntries)
                .Select(id => int.Parse(id, CultureInfo.InvariantCulture)).Order());
    }
}
