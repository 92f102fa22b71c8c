using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What takes long and shows nothing new where it passes: run by <c>./test long</c>.</summary>
[CollectionDefinition(Name)]
public sealed class LongHost : ICollectionFixture<ChannelFixture>
{
    public const string Name = "Long";
}

/// <summary>Suspends ten times in a row, either side in turn, under the same connections.</summary>
[Collection(LongHost.Name), Trait("Length", "long")]
public sealed class LongSuspendTests(ChannelFixture xen)
{
    private const int Times = 10;

    public static readonly TheoryData<string, string, string> Pairs = new()
    {
        { "pvh1", "pvh2", "restore" },
        { "pvh1", "pvh2", "cancel" },
        { "pvh1", "pvh2", "migrate" },
        { "pv1", "pv2", "restore" },
        { "pv1", "pv2", "cancel" },
    };

    [Theory, MemberData(nameof(Pairs))]
    public async Task Connections_outlive_ten_suspends_in_a_row(string a, string b, string how)
    {
        (Node one, Node other) = (xen[a], xen[b]);
        await ChannelFixture.ChannelUpAsync(one, other);
        TcpTransfer forth = await TcpTransfer.StartAsync(one, other);
        TcpTransfer back = await TcpTransfer.StartAsync(other, one);
        await one.StartPingAsync(other.Guest.Ipv4);
        for (int i = 0; i < Times; i++)
        {
            // The listener, whose domid is the lower, and the connector in turn.
            bool listener = i % 2 == 0;
            await xen.SuspendAsync(one.Domid < other.Domid == listener ? one : other, how);
            await ChannelFixture.ChannelUpAsync(one, other);
            await forth.GoesOnAsync();
            await back.GoesOnAsync();
        }

        await one.PingsGoOnAsync();
        await forth.FinishAsync();
        await back.FinishAsync();
        await one.KernelIsWellAsync();
        await other.KernelIsWellAsync();
    }
}
