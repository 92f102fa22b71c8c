using XenLoop.Interop.Xen;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

public class XenStoreTreeTests
{
    private readonly XenStoreTree _tree = new();

    public XenStoreTreeTests()
    {
        _tree.AddDomain(1);
        _tree.Write(0, "/home", []);
        _tree.SetPermissions(0, "/home", [new(1, XenStoreAccess.None)]);
        _tree.Changes.Clear();
    }

    [Fact]
    public void A_transaction_shows_at_its_end_and_is_told_then()
    {
        XenStoreTree transaction = _tree.Fork();
        long start = _tree.Generation;
        transaction.Write(1, "/home/a", [1]);
        Assert.Equal("ENOENT", Assert.Throws<XenStoreRefusal>(() => _tree.Read(1, "/home/a")).Error);
        Assert.Empty(_tree.Changes);

        _tree.Merge(transaction, start);
        Assert.Equal([1], _tree.Read(1, "/home/a").Value);
        Assert.Equal("/home/a", Assert.Single(_tree.Changes).Path);
        Assert.Equal(2, _tree.CountNodes(1));
    }

    [Fact]
    public void A_transaction_that_others_overtook_must_be_tried_again()
    {
        XenStoreTree transaction = _tree.Fork(), reader = _tree.Fork();
        long start = _tree.Generation;
        transaction.Write(1, "/home/a", [1]);
        reader.Read(1, "/home");
        _tree.Write(1, "/home/a", [2]);
        Assert.Equal("EAGAIN", Assert.Throws<XenStoreRefusal>(() => _tree.Merge(transaction, start)).Error);
        Assert.Equal([2], _tree.Read(1, "/home/a").Value);
        _tree.Merge(reader, start);
    }

    [Fact]
    public void The_count_of_nodes_follows_creation_removal_and_change_of_owner()
    {
        _tree.Write(1, "/home/a/b/c", []);
        Assert.Equal(4, _tree.CountNodes(1));
        _tree.SetPermissions(0, "/home/a/b", [new(0, XenStoreAccess.None)]);
        Assert.Equal(3, _tree.CountNodes(1));
        _tree.Remove(1, "/home/a");
        Assert.Equal(1, _tree.CountNodes(1));
        _tree.RemoveDomain(1);
        Assert.Equal(0, _tree.CountNodes(1));
        Assert.Equal("ENOENT", Assert.Throws<XenStoreRefusal>(() => _tree.Read(0, "/home")).Error);
    }

    [Theory]
    [InlineData("r5", 5, XenStoreAccess.Read)]
    [InlineData("n0", 0, XenStoreAccess.None)]
    [InlineData("b65535", 65535, XenStoreAccess.ReadWrite)]
    [InlineData("w1", 1, XenStoreAccess.Write)]
    public void Permissions_are_written_as_letter_and_domid(string text, int domid, object access)
    {
        XenStorePermission permission = new((ushort)domid, (XenStoreAccess)access);
        Assert.Equal(permission, XenStorePermission.Parse(text));
        Assert.Equal(text, permission.ToString());
    }

    [Theory]
    [InlineData("")]
    [InlineData("x1")]
    [InlineData("r")]
    [InlineData("r65536")]
    public void Malformed_permissions_are_refused(string text) =>
        Assert.Equal("EINVAL", Assert.Throws<XenStoreRefusal>(() => XenStorePermission.Parse(text)).Error);
}
