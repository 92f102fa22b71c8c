using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using Xunit;

namespace XenLoop.Tests.Unit;

public class InteropXenTests
{
    [Theory]
    [InlineData(16, "EBUSY (Device or resource busy)")]
    [InlineData(7, "E2BIG (Argument list too long)")]
    [InlineData(110, "ETIMEDOUT (Connection timed out)")]
    [InlineData(0, "failed, and set no errno")]
    [InlineData(4000, "4000 (Unknown error 4000)")]
    public void Errno_has_its_name_and_text(int errno, string description) =>
        Assert.Equal(description, Errno.Describe(errno));

    [Fact]
    public void A_failure_says_call_object_errno_and_remedy()
    {
        Assert.Equal(
            "xs_watch on data: E2BIG (Argument list too long)", new NativeException("xs_watch", "data", 7).Message);
        NativeException e = new("dlopen", "libx", 2, "Install x");
        Assert.Equal(("dlopen on libx: ENOENT (No such file or directory). Install x", 2), (e.Message, e.Errno));
    }

    [Fact]
    public void Xs_permissions_has_the_layout_of_C()
    {
        Assert.Equal(8, Unsafe.SizeOf<LibXenStore.xs_permissions>());
        Assert.Equal(0, (int)Marshal.OffsetOf<LibXenStore.xs_permissions>(nameof(LibXenStore.xs_permissions.id)));
        Assert.Equal(4, (int)Marshal.OffsetOf<LibXenStore.xs_permissions>(nameof(LibXenStore.xs_permissions.perms)));
    }
}
