using XenLoop.Interop;
using XenLoop.Interop.Xen;
using Xunit;
using static XenLoop.Tests.Lab.XenStoreFixture;

namespace XenLoop.Tests.Lab;

public class XenStoreWatchTests
{
    private const string Data = "/local/domain/1/data";

    [Fact]
    public async Task A_watch_fires_once_at_first_then_for_the_node_and_all_below()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Watch($"{Data}/x", "t");
        Assert.Equal([($"{Data}/x", "t")], TakeEvents(guest, 1));

        fixture.Server.Write($"{Data}/x/y", "1");
        fixture.Server.Write($"{Data}/x", "2");
        fixture.Server.Write($"{Data}/xx", "not below");
        Assert.Equal([($"{Data}/x/y", "t"), ($"{Data}/x", "t")], TakeEvents(guest, 2));
        AssertNoEvents(guest);
    }

    [Fact]
    public async Task Removal_of_a_directory_fires_watches_on_it_above_and_on_nodes_below()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1), watcher = fixture.Connect(1);
        guest.Write("data/d/a/b", "1");
        foreach (string path in new[] { "data", "data/d", "data/d/a/b", "data/d/none" })
        {
            watcher.Watch(path, path);
        }

        TakeEvents(watcher, 4);
        guest.Remove("data/d");
        Assert.Equal(
            [("data/d", "data"), ("data/d", "data/d"), ("data/d/a/b", "data/d/a/b")],
            TakeEvents(watcher, 3).Order());
        AssertNoEvents(watcher);
    }

    [Fact]
    public async Task A_peer_hears_of_nodes_it_may_read_and_of_no_others()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1), peer = fixture.Connect(2);
        peer.Watch($"{Data}/c", "t");
        TakeEvents(peer, 1);

        guest.Write("data/c", "not shown yet");
        AssertNoEvents(peer);
        guest.SetPermissions("data/c", (1, XenStoreAccess.None), (2, XenStoreAccess.Read));
        Assert.Equal([($"{Data}/c", "t")], TakeEvents(peer, 1));
        guest.Write("data/c", "shown");
        Assert.Equal([($"{Data}/c", "t")], TakeEvents(peer, 1));

        // Losing sight of the node is the last that is heard of it.
        guest.SetPermissions("data/c", [(1, XenStoreAccess.None)]);
        Assert.Equal([($"{Data}/c", "t")], TakeEvents(peer, 1));
        guest.Write("data/c", "hidden");
        AssertNoEvents(peer);
    }

    [Fact]
    public async Task Removal_of_a_shown_node_is_heard()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1), peer = fixture.Connect(2);
        guest.Write("data/c", "x");
        guest.SetPermissions("data/c", (1, XenStoreAccess.None), (2, XenStoreAccess.Read));
        peer.Watch($"{Data}/c", "t");
        TakeEvents(peer, 1);
        guest.Remove("data/c");
        Assert.Equal([($"{Data}/c", "t")], TakeEvents(peer, 1));
    }

    [Fact]
    public async Task An_ended_watch_is_silent_and_its_queued_events_are_gone()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Watch("data/x", "t");
        TakeEvents(guest, 1);
        guest.Write("data/x", "1");

        // The event precedes the answer to the write, so it is in the library's queue now.
        guest.Unwatch("data/x", "t");
        guest.Write("data/x", "2");
        AssertNoEvents(guest);
        guest.Unwatch("data/x", "t");
    }

    [Fact]
    public async Task Only_Dom0_hears_of_domains_until_it_lets_others()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1), dom0 = fixture.Connect(0);
        foreach (XenStore store in new[] { guest, dom0 })
        {
            store.Watch("@introduceDomain", "i");
            store.Watch("@releaseDomain", "r");
            Assert.Equal([("@introduceDomain", "i"), ("@releaseDomain", "r")], TakeEvents(store, 2));
        }

        fixture.AddGuest(5);
        Assert.Equal([("@introduceDomain", "i")], TakeEvents(dom0, 1));
        await fixture.DestroyGuestAsync(5);
        Assert.Equal([("@releaseDomain", "r")], TakeEvents(dom0, 1));
        AssertNoEvents(guest);

        Assert.Throws<NativeException>(() => guest.GetPermissions("@releaseDomain"));
        fixture.AddGuest(6);
        TakeEvents(dom0, 1);
        AllowReleaseDomain(fixture);
        await fixture.DestroyGuestAsync(6);
        Assert.Equal([("@releaseDomain", "r")], TakeEvents(guest, 1));
    }

    [Fact]
    public async Task Destroying_a_domain_removes_what_it_owned_and_tells_those_who_could_read()
    {
        await using XenStoreFixture fixture = new();
        using XenStore peer = fixture.Connect(2);
        using (XenStore guest = fixture.Connect(1))
        {
            guest.Write("data/c", "x");
            guest.SetPermissions("data/c", (1, XenStoreAccess.None), (2, XenStoreAccess.Read));
            peer.Watch($"{Data}/c", "t");
            TakeEvents(peer, 1);
        }

        peer.Write("data/for1", "x");
        peer.SetPermissions("data/for1", (2, XenStoreAccess.None), (1, XenStoreAccess.Read));
        fixture.Server.Write("/shared", "", (1, XenStoreAccess.None));

        await fixture.DestroyGuestAsync(1);
        Assert.Equal([($"{Data}/c", "t")], TakeEvents(peer, 1));
        Assert.Null(fixture.Server.Read("/local/domain/1"));
        Assert.Null(fixture.Server.Read("/shared"));
        Assert.Equal((0, 0, 0), fixture.Server.Count(1));

        // A new domain with the old number inherits nothing.
        fixture.AddGuest(1);
        using XenStore successor = fixture.Connect(1);
        Assert.Throws<NativeException>(() => successor.Read("/local/domain/2/data/for1"));
    }

    private static void AllowReleaseDomain(XenStoreFixture fixture)
    {
        // XenStore's own check refuses @-paths that are not watched; xenstore-chmod sends them.
        using System.Diagnostics.Process process = System.Diagnostics.Process.Start(
            new System.Diagnostics.ProcessStartInfo("xenstore-chmod", ["@releaseDomain", "n0", "r1"])
            {
                Environment = { ["XENSTORED_PATH"] = fixture.SocketOf(0) },
            })!;
        process.WaitForExit();
        Assert.Equal(0, process.ExitCode);
    }
}
