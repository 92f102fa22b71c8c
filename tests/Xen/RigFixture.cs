using XenLoop.Rig;
using Xunit;

// Two emulated machines at a time: each is one thread, and neither minds the other, for their clocks count instructions.
[assembly: CollectionBehavior(MaxParallelThreads = 2)]

namespace XenLoop.Tests.Xen;

/// <summary>A host with a guest of either kind, shared by the tests of a class.</summary>
public sealed class RigFixture : IAsyncLifetime
{
    public XenHost Host { get; private set; } = null!;

    public XenGuest Pvh { get; private set; } = null!;

    public XenGuest Pv { get; private set; } = null!;

    public async Task InitializeAsync()
    {
        Host = await XenHost.StartAsync(new XenHostOptions
        {
            Guests = [new GuestOptions { Name = "pvh", Kind = GuestKind.Pvh }, new GuestOptions { Name = "pv", Kind = GuestKind.Pv }],
        });
        (Pvh, Pv) = (Host.Guests[0], Host.Guests[1]);
    }

    public async Task DisposeAsync()
    {
        if (Host is not null)
        {
            await Host.DisposeAsync();
        }
    }
}
