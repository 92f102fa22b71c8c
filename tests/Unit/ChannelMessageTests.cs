using XenLoop.Guest.Channels;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>What a peer says is taken in few words, and none of them can do harm where they are shown.</summary>
public class ChannelMessageTests
{
    [Theory]
    [InlineData("", "")]
    [InlineData("no pages", "no pages")]
    [InlineData("tab\there \u001b[31mred\u202e é", "tab?here ?[31mred? ?")]
    public void A_reason_is_taken_as_printable_text(string said, string taken) =>
        Assert.Equal(taken, ChannelMessage.Parse($"closed 00000000000000ff {said}")!.Value.Reason);

    [Theory]
    [InlineData(1)]
    [InlineData(7)]
    [InlineData(1900)]
    public void A_reason_is_cut(int wordLength)
    {
        string said = string.Join(' ', Enumerable.Repeat(new string('x', wordLength), 1900 / wordLength));
        ChannelMessage message = ChannelMessage.Parse($"closed 00000000000000ff {said}")!.Value;
        Assert.Equal(ChannelMessage.LongestReason, message.Reason.Length);
        Assert.EndsWith("...", message.Reason, StringComparison.Ordinal);
        // What this side says of it stays short, however often it goes back and forth.
        ChannelMessage echo = ChannelMessage.Parse(new ChannelMessage(ChannelPhase.Closed, 1, Reason: $"the peer could not connect: {message.Reason}").ToString())!.Value;
        Assert.InRange(echo.Reason.Length, 1, ChannelMessage.LongestReason);
    }

    [Fact]
    public void One_peer_fills_the_log_with_a_line_a_second_and_takes_none_of_anothers()
    {
        PeerLog log = new();
        TimeSpan now = TimeSpan.FromHours(1);
        int lines = 0;
        for (int i = 0; i < 30_000; i++, now += TimeSpan.FromMilliseconds(1))
        {
            lines += log.Take(7, now) is null ? 0 : 1;
        }

        Assert.InRange(lines, PeerLog.Lines + 25, PeerLog.Lines + 31);
        Assert.Equal("", log.Take(8, now));
    }
}
