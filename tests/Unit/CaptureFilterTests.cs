using XenLoop.Divert;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Which captures keep packets on netfront. The filters are those of the programs, as "tcpdump -dd" writes them.</summary>
public sealed class CaptureFilterTests
{
    /// <summary>ISC dhclient: UDP to port 68 over IPv4, no later fragments.</summary>
    internal const string DhcpClient = """
        28 0 0 c, 15 0 8 800, 30 0 0 17, 15 0 6 11, 28 0 0 14, 45 4 0 1fff, b1 0 0 e, 48 0 0 10, 15 0 1 44, 6 0 0 ffffffff, 6 0 0 0
        """;

    /// <summary>The same, matched by both ports at once.</summary>
    private const string BothPorts = "28 0 0 c, 15 0 6 800, 30 0 0 17, 15 0 4 11, b1 0 0 e, 40 0 0 e, 15 0 1 430044, 6 0 0 40000, 6 0 0 0";

    /// <summary>dhcpcd: every place from where the header before it ends.</summary>
    private const string Dhcpcd = """
        28 0 0 c, 15 1 0 800, 6 0 0 0, 1 0 0 e, 50 0 0 0, 54 0 0 f0, 15 1 0 40, 6 0 0 0, 50 0 0 9, 15 1 0 11, 6 0 0 0, 48 0 0 6, 45 0 1 1fff, 6 0 0 0,
        50 0 0 0, 54 0 0 f, 24 0 0 4, c 0 0 0, 7 0 0 0, 40 0 0 0, 15 1 0 430044, 6 0 0 0, 6 0 0 ffffffff
        """;

    /// <summary>lldpd: multicast destinations, then its protocols.</summary>
    private const string Lldp = "30 0 0 0, 54 0 0 1, 15 0 3 1, 28 0 0 c, 15 0 1 88cc, 6 0 0 40000, 6 0 0 0";

    /// <summary>tcpdump -Q in.</summary>
    private const string Inbound = "28 0 0 fffff004, 15 1 0 4, 6 0 0 40000, 6 0 0 0";

    [Theory]
    [InlineData(DhcpClient, false)]
    [InlineData(BothPorts, false)]
    [InlineData(Dhcpcd, false)]
    [InlineData(Lldp, false)]
    [InlineData(Inbound, false)]
    // Nothing at all.
    [InlineData("6 0 0 0", false)]
    // No filter; everything; "ip"; "udp port 53"; "host 10.0.0.1"; the length of what matches is in A.
    [InlineData("", true)]
    [InlineData("6 0 0 40000", true)]
    [InlineData("28 0 0 c, 15 0 1 800, 6 0 0 40000, 6 0 0 0", true)]
    [InlineData("28 0 0 c, 15 0 8 800, 30 0 0 17, 15 0 6 11, 28 0 0 14, 45 4 0 1fff, b1 0 0 e, 48 0 0 10, 15 0 1 35, 6 0 0 40000, 6 0 0 0", true)]
    [InlineData("28 0 0 c, 15 0 3 800, 20 0 0 1e, 15 0 1 a000001, 6 0 0 40000, 6 0 0 0", true)]
    [InlineData("80 0 0 0, 16 0 0 0", true)]
    // Port 68, but of the source; port 68 of TCP as well; a jump that turns the answer round; port 68 or more.
    [InlineData("28 0 0 c, 15 0 8 800, 30 0 0 17, 15 0 6 11, 28 0 0 14, 45 4 0 1fff, b1 0 0 e, 48 0 0 e, 15 0 1 44, 6 0 0 40000, 6 0 0 0", true)]
    [InlineData("28 0 0 c, 15 0 4 800, b1 0 0 e, 48 0 0 10, 15 0 1 44, 6 0 0 40000, 6 0 0 0", true)]
    [InlineData("28 0 0 c, 15 0 8 800, 30 0 0 17, 15 0 6 11, 28 0 0 14, 45 4 0 1fff, b1 0 0 e, 48 0 0 10, 15 1 0 44, 6 0 0 40000, 6 0 0 0", true)]
    [InlineData("28 0 0 c, 15 0 8 800, 30 0 0 17, 15 0 6 11, 28 0 0 14, 45 4 0 1fff, b1 0 0 e, 48 0 0 10, 35 0 1 44, 6 0 0 40000, 6 0 0 0", true)]
    // Runs out of the program.
    [InlineData("28 0 0 c, 15 9 9 800", true)]
    public void A_capture_counts_when_it_could_miss_a_packet(string filter, bool counts) => Assert.Equal(counts, CaptureFilter.MayMiss(Parse(filter), true));

    [Fact]
    public void A_capture_without_link_headers_counts() => Assert.True(CaptureFilter.MayMiss(Parse(DhcpClient), false));

    [Fact]
    public void A_filter_of_more_ways_than_can_be_followed_counts()
    {
        // Each pair doubles the ways: to the same place, whatever the byte is.
        sock_filter[] pairs = [.. Enumerable.Range(0, 100).SelectMany(i => Parse($"30 0 0 {i + 30:x}, 15 0 0 1")), .. Parse("6 0 0 0")];
        Assert.True(CaptureFilter.MayMiss(pairs, true));
    }

    internal static sock_filter[] Parse(string text) =>
    [
        .. text.Split(',', StringSplitOptions.RemoveEmptyEntries | StringSplitOptions.TrimEntries).Select(i =>
        {
            uint[] n = [.. i.Split(' ').Select(f => Convert.ToUInt32(f, 16))];
            return new sock_filter((ushort)n[0], (byte)n[1], (byte)n[2], n[3]);
        }),
    ];
}
