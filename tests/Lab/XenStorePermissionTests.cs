using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using Xunit;

namespace XenLoop.Tests.Lab;

public class XenStorePermissionTests
{
    private const string Data = "/local/domain/1/data";

    [Fact]
    public async Task A_value_comes_back_and_a_missing_node_is_null()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Write($"{Data}/a/b", "value with spaces, ü");
        Assert.Equal("value with spaces, ü", guest.Read($"{Data}/a/b"));
        Assert.Equal("", guest.Read($"{Data}/a"));
        Assert.Null(guest.Read($"{Data}/none"));
        Assert.Equal(["b"], guest.List($"{Data}/a"));
        Assert.Empty(guest.List($"{Data}/a/b"));
        Assert.Empty(guest.List($"{Data}/none"));
        guest.Remove($"{Data}/a");
        Assert.Null(guest.Read($"{Data}/a/b"));
        guest.Remove($"{Data}/a");
    }

    [Fact]
    public async Task Relative_paths_are_below_the_home()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Write("data/x", "1");
        Assert.Equal("1", fixture.Server.Read($"{Data}/x"));
        Assert.Equal("/local/domain/7", guest.GetDomainPath(7));
        guest.Watch("data", "t");
        Assert.Equal([("data", "t")], XenStoreFixture.TakeEvents(guest, 1));
        guest.Write($"{Data}/x", "2");
        Assert.Equal([("data/x", "t")], XenStoreFixture.TakeEvents(guest, 1));
    }

    [Theory]
    [InlineData("/local/domain")]
    [InlineData("/local/domain/2/data")]
    [InlineData("/local/domain/2/data/none")]
    [InlineData("/none")]
    public async Task A_guest_sees_nothing_of_others(string path)
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        foreach (Action attempt in new Action[]
        {
            () => guest.Read(path),
            () => guest.List(path),
            () => guest.Write(path, "x"),
            () => guest.MakeDirectory($"{path}/new"),
            () => guest.Remove(path),
            () => guest.SetPermissions(path, (1, XenStoreAccess.None)),
        })
        {
            Assert.Equal(LibC.EACCES, Assert.Throws<NativeException>(attempt).Errno);
        }
    }

    [Fact]
    public async Task A_guest_reads_its_home_and_cannot_write_there()
    {
        await using XenStoreFixture fixture = new();
        fixture.Server.Write("/local/domain/1/name", "one");
        using XenStore guest = fixture.Connect(1);
        Assert.Equal("one", guest.Read("name"));
        NativeException e = Assert.Throws<NativeException>(() => guest.Write("name", "two"));
        Assert.Equal("xs_write on name: EACCES (Permission denied)", e.Message);
        Assert.Throws<NativeException>(() => guest.Write("xenloop", "forged"));
    }

    [Fact]
    public async Task A_node_is_shown_to_one_peer_only()
    {
        await using XenStoreFixture fixture = new();
        fixture.AddGuest(3);
        using XenStore guest = fixture.Connect(1), peer = fixture.Connect(2), third = fixture.Connect(3);
        guest.Write("data/xenloop/0-2-0", "closed");
        guest.SetPermissions("data/xenloop/0-2-0", (1, XenStoreAccess.None), (2, XenStoreAccess.Read));
        Assert.Equal([((ushort)1, XenStoreAccess.None), ((ushort)2, XenStoreAccess.Read)], guest.GetPermissions("data/xenloop/0-2-0")!);

        Assert.Equal("closed", peer.Read($"{Data}/xenloop/0-2-0"));
        Assert.Throws<NativeException>(() => peer.Write($"{Data}/xenloop/0-2-0", "forged"));
        Assert.Throws<NativeException>(() => peer.List($"{Data}/xenloop"));
        Assert.Throws<NativeException>(() => third.Read($"{Data}/xenloop/0-2-0"));
    }

    [Fact]
    public async Task Permissions_are_inherited_at_creation_and_not_afterwards()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1), peer = fixture.Connect(2), dom0 = fixture.Connect(0);
        guest.Write("data/d/before", "1");
        guest.SetPermissions("data/d", (1, XenStoreAccess.None), (2, XenStoreAccess.ReadWrite));
        guest.Write("data/d/after", "2");
        Assert.Throws<NativeException>(() => peer.Read($"{Data}/d/before"));
        Assert.Equal("2", peer.Read($"{Data}/d/after"));

        // A guest owns what it creates, in another's directory too; Dom0 leaves the directory's owner.
        peer.Write($"{Data}/d/peers", "3");
        Assert.Equal(((ushort)2, XenStoreAccess.None), peer.GetPermissions($"{Data}/d/peers")![0]);
        dom0.Write($"{Data}/d/dom0s", "4");
        Assert.Equal(((ushort)1, XenStoreAccess.None), dom0.GetPermissions($"{Data}/d/dom0s")![0]);
    }

    [Fact]
    public async Task A_guest_cannot_give_a_node_away()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Write("data/x", "1");
        Assert.Equal(
            LibC.EPERM,
            Assert.Throws<NativeException>(() => guest.SetPermissions("data/x", (2, XenStoreAccess.None))).Errno);
    }

    [Theory]
    [InlineData("data/with space")]
    [InlineData("data//x")]
    [InlineData("data/")]
    [InlineData("data/x.y")]
    [InlineData("")]
    public async Task Malformed_paths_are_refused_before_they_are_sent(string path)
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        Assert.Equal(LibC.EINVAL, Assert.Throws<NativeException>(() => guest.Watch(path, "t")).Errno);
        Assert.Equal(LibC.EINVAL, Assert.Throws<NativeException>(() => guest.Read(path)).Errno);

        // The connection lives.
        guest.Write("data/x", "1");
    }

    [Fact]
    public async Task The_xenstore_tools_see_the_tree()
    {
        await using XenStoreFixture fixture = new();
        using XenStore guest = fixture.Connect(1);
        guest.Write("data/x", "seen");
        (int exit, string output) = await ToolAsync(fixture, 0, "xenstore-ls", "-f", "-p", "/local/domain/1");
        Assert.True(exit == 0, output);
        Assert.Contains("/local/domain/1/data/x = \"seen\"   (n1)", output, StringComparison.Ordinal);

        (exit, output) = await ToolAsync(fixture, 1, "xenstore-write", "data/y", "by tool");
        Assert.True(exit == 0, output);
        Assert.Equal("by tool", guest.Read("data/y"));
        (exit, _) = await ToolAsync(fixture, 1, "xenstore-write", "name", "forged");
        Assert.NotEqual(0, exit);
    }

    private static async Task<(int ExitCode, string Output)> ToolAsync(XenStoreFixture fixture, ushort domid, string tool, params string[] arguments)
    {
        using System.Diagnostics.Process process = System.Diagnostics.Process.Start(new System.Diagnostics.ProcessStartInfo(tool, arguments)
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            Environment = { ["XENSTORED_PATH"] = fixture.SocketOf(domid) },
        })!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = await process.StandardOutput.ReadToEndAsync();
        await process.WaitForExitAsync();
        return (process.ExitCode, output + await errors);
    }
}
