using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using Xunit;

namespace XenLoop.Tests.Lab;

public class XenStoreQuotaTests
{
    [Fact]
    public async Task A_guest_owns_1000_nodes_at_most_and_Dom0_any_number()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);

        // One is the data directory itself. Several directories: one holds about 400 names.
        for (int i = 0; i < 10; i++)
        {
            guest.MakeDirectory($"data/{i}");
        }

        for (int i = 0; i < 989; i++)
        {
            guest.Write($"data/{i % 10}/{i}", "");
        }

        Assert.Equal(1000, fixture.Server.Count(1).Nodes);
        Assert.Equal(LibC.ENOSPC, Assert.Throws<NativeException>(() => guest.Write("data/more", "")).Errno);
        guest.Remove("data/0/0");
        guest.Write("data/more", "");
        for (int i = 0; i < 1500; i++)
        {
            fixture.Server.Write($"/local/domain/1/data/dom0/{i}", "");
        }
    }

    [Fact]
    public async Task A_guest_has_129_watches_on_all_connections_together()
    {
        await using XenStoreFixture fixture = new();
        using XenStore one = fixture.Connect(1), two = fixture.Connect(1), peer = fixture.Connect(2);
        for (int i = 0; i < 129; i++)
        {
            (i % 2 == 0 ? one : two).Watch("data", $"{i}");
        }

        Assert.Equal(LibC.E2BIG, Assert.Throws<NativeException>(() => two.Watch("data", "more")).Errno);
        Assert.Equal(LibC.EEXIST, Assert.Throws<NativeException>(() => one.Watch("data", "0")).Errno);
        peer.Watch("data", "others are not affected");
        one.Unwatch("data", "0");
        two.Watch("data", "more");
    }

    [Fact]
    public async Task A_guest_gives_5_permissions_at_most()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Write("data/x", "");
        (ushort, XenStoreAccess)[] permissions = [(1, XenStoreAccess.None), .. Enumerable.Repeat(((ushort)2, XenStoreAccess.Read), 4)];
        guest.SetPermissions("data/x", permissions);
        Assert.Equal(
            LibC.ENOSPC,
            Assert.Throws<NativeException>(() => guest.SetPermissions("data/x", [.. permissions, (2, XenStoreAccess.Read)])).Errno);
    }

    [Fact]
    public async Task A_guests_values_have_2015_bytes_at_most()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1), dom0 = fixture.Connect(0);
        guest.Write("data/x", new string('x', 2015));
        Assert.Equal(2015, guest.Read("data/x")!.Length);
        Assert.Equal(LibC.ENOSPC, Assert.Throws<NativeException>(() => guest.Write("data/x", new string('x', 2016))).Errno);
        dom0.Write("/local/domain/1/data/x", new string('x', 4000));
    }

    [Fact]
    public async Task A_request_too_long_for_the_kernel_is_refused_before_it_is_sent()
    {
        await using XenStoreFixture fixture = new();
        using XenStore dom0 = fixture.Connect(0);
        dom0.Write("/x", new string('x', 4080 - "/x\0".Length));
        Assert.Equal(LibC.E2BIG, Assert.Throws<NativeException>(() => dom0.Write("/x", new string('x', 4081 - "/x\0".Length))).Errno);
        Assert.Equal(4077, dom0.Read("/x")!.Length);
    }

    [Fact]
    public async Task A_guests_directory_is_full_at_some_400_names()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        NativeException full = Assert.Throws<NativeException>(() =>
        {
            for (int i = 1000; i < 2000; i++)
            {
                guest.Write($"data/d/{i}", "");
            }
        });
        Assert.Equal(LibC.ENOSPC, full.Errno);
        Assert.Equal(403, guest.List("data/d").Length);
    }

    [Fact]
    public async Task A_directory_longer_than_a_message_is_listed_whole()
    {
        await using XenStoreFixture fixture = new();
        using XenStore dom0 = fixture.Connect(0);
        for (int i = 0; i < 3000; i++)
        {
            fixture.Server.Write($"/big/{i}", "");
        }

        Assert.Equal(Enumerable.Range(0, 3000).Select(i => $"{i}").Order(), dom0.List("/big").Order());
    }

    [Fact]
    public async Task A_lost_connection_is_told_by_the_next_call()
    {
        XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Watch("data", "t");
        await fixture.DisposeAsync();
        Assert.Throws<NativeException>(() => guest.Read("data"));
    }
}
