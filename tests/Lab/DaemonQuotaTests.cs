using System.Diagnostics;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>A guest whose XenStore quota is used up stays on netfront, says so, and gets its channel when there is room again.</summary>
[Collection(DaemonTests.Name)]
public class DaemonQuotaTests
{
    [Fact]
    public async Task Without_room_for_the_offer_the_daemon_ends_and_says_why()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.Host.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        using XenStore store = XenStoreFixture.Open(a.StoreSocket);
        UseUp(store);
        lab.Start(a);
        await lab.UntilAsync("the daemon ends", () => lab[a].HasExited);
        await lab[a].WaitForExitAsync();
        Assert.Equal(1, lab[a].ExitCode);
        Assert.Contains("ENOSPC", lab[a].Output, StringComparison.Ordinal);
        Assert.Empty(Namespaces.Traces(a));

        // As the service manager does it.
        store.Remove("data/fill");
        lab.Start(a);
        await lab.ChannelUpAsync(a, b);
    }

    /// <summary>Creates nodes until the guest may not create more, single ones at the end.</summary>
    private static void UseUp(XenStore store)
    {
        for (int directory = 0; TryWrite(store, $"data/fill/{directory}/0"); directory++)
        {
            for (int i = 1; i < 100 && TryWrite(store, $"data/fill/{directory}/{i}"); i++)
            {
            }
        }

        _ = TryWrite(store, "data/fill/last");
        Assert.False(TryWrite(store, "data/one-more"));
    }

    private static bool TryWrite(XenStore store, string node)
    {
        try
        {
            store.Write(node, "");
            return true;
        }
        catch (NativeException e) when (e.Errno == LibC.ENOSPC)
        {
            return false;
        }
    }
}
