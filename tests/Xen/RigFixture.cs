using XenLoop.Rig;
using Xunit;

// One emulated machine at a time: two would only slow each other down.
[assembly: CollectionBehavior(DisableTestParallelization = true)]

namespace XenLoop.Tests.Xen;

/// <summary>A host with a guest of either kind, shared by the tests of a class.</summary>
public sealed class RigFixture : IAsyncLifetime
{
    public XenHost Host { get; private set; } = null!;

    public XenGuest Pvh { get; private set; } = null!;

    public XenGuest Pv { get; private set; } = null!;

    public async Task InitializeAsync()
    {
        Host = await XenHost.StartAsync();
        XenGuest[] guests = await Task.WhenAll(
            Host.CreateGuestAsync(new GuestOptions { Name = "pvh", Kind = GuestKind.Pvh }),
            Host.CreateGuestAsync(new GuestOptions { Name = "pv", Kind = GuestKind.Pv }));
        (Pvh, Pv) = (guests[0], guests[1]);
    }

    public async Task DisposeAsync()
    {
        if (Host is not null)
        {
            await Host.DisposeAsync();
        }
    }
}
