using XenLoop.DataPath;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>When the data thread gives the application its turn while bulk comes, with a clock made by hand.</summary>
public sealed class ApplicationTurnTests
{
    private readonly FakeClock _clock = new();
    private readonly ApplicationTurn _turn;

    public ApplicationTurnTests() => _turn = new ApplicationTurn(_clock);

    [Theory]
    [InlineData(1, ApplicationTurn.Bytes / 4, true, 4)]
    [InlineData(32, 32 * 1400, true, 2)]
    [InlineData(32, 32 * 1400, false, 2)]
    [InlineData(1, ApplicationTurn.Bytes / 4, false, ApplicationTurn.Packets)]
    [InlineData(0, 0, true, int.MaxValue)]
    public void The_application_has_its_turn_after_so_much(int packets, uint bytes, bool beside, int every)
    {
        _clock.Turn = 300;
        for (int i = 1; i <= 1000; i++)
        {
            _turn.Received(packets, bytes, beside);
            Assert.Equal(i / every, _clock.Turns);
        }
    }

    [Fact]
    public void Between_turns_no_clock_is_read()
    {
        for (int i = 1; i < ApplicationTurn.Packets; i++)
        {
            _turn.Received(1, ApplicationTurn.Bytes / ApplicationTurn.Packets, beside: true);
        }

        Assert.Equal((0, 0), (_clock.Reads, _clock.CoarseReads));
    }

    [Fact]
    public void A_program_that_computes_has_no_more_than_a_turn_now_and_then()
    {
        _clock.Turn = 4000; // to the next tick
        long begin = _clock.Now, given = 0;
        while (_clock.Now - begin < 10_000_000)
        {
            int before = _clock.Turns;
            _turn.Received(4, ApplicationTurn.Bytes, beside: true);
            given += (_clock.Turns - before) * _clock.Turn;
            _clock.Advance(250);
        }

        Assert.InRange(given, 1, 10_000_000 / 25);
        _clock.Turn = 300;
        _clock.Advance(1000 * ApplicationTurn.RestMilliseconds);
        for (int i = 0; i < 3; i++)
        {
            int before = _clock.Turns;
            _turn.Received(4, ApplicationTurn.Bytes, beside: true);
            Assert.Equal(before + 1, _clock.Turns);
        }
    }
}
