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
    /// <summary>Pages of a channel.</summary>
    private const int OneSet = 513;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Without_room_for_a_node_there_is_no_channel_until_there_is(bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest low = await lab.Host.AddGuestAsync("low"), high = await lab.Host.AddGuestAsync("high");
        (LabGuest full, LabGuest other) = listener ? (low, high) : (high, low);
        lab.Start(full);
        await lab.UntilAsync("the daemon offers its guest", () => lab.XenStore.Read($"{full.Home}/xenloop/0") is not null);
        using XenStore store = XenStoreFixture.Open(full.StoreSocket);
        UseUp(store);

        lab.Start(other);
        Ping ping = Ping.Start(full, other, interval: 0.1);
        await lab.UntilAsync("the daemon says what is wrong", () => lab.CountMessages(full, "ENOSPC") > 0);
        Assert.Contains("ENOSPC", DaemonLab.Channel(full, other)!.Value.GetProperty("last_error").GetString(), StringComparison.Ordinal);
        await Ping.MustAsync(full, other);
        Assert.Equal(0, DaemonLab.Diverted(full, other));
        // But the pages, which the next attempt takes.
        Assert.Equal(default, lab.Host.Broker.Count(full.Domid) with { PagesGranted = 0 });
        Assert.InRange(lab.Host.Broker.Count(full.Domid).PagesGranted, 0, OneSet);

        // It tries again, and does not say it again.
        Stopwatch watch = Stopwatch.StartNew();
        await lab.UntilAsync("another attempt or two", () => watch.ElapsedMilliseconds > 900);
        Assert.True(lab.CountMessages(full, "ENOSPC") == 1, lab.Messages());

        store.Remove("data/fill");
        await lab.ChannelUpAsync(full, other);
        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, summary);
    }

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
