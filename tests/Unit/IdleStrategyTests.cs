using XenLoop.DataPath;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>When the data thread looks again and when it sleeps, with a clock that goes on by a microsecond at each turn.</summary>
public sealed class IdleStrategyTests
{
    private const uint Small = 100;
    private const int Never = int.MaxValue;

    private readonly FakeClock _clock = new();
    private readonly IdleStrategy _idle;
    private long _lost;

    public IdleStrategyTests() => _idle = new IdleStrategy(IdleMode.Adaptive, _clock);

    [Fact]
    public void Answers_that_come_within_the_window_are_spun_for_from_the_first_on()
    {
        for (int i = 0; i < 10_000; i++)
        {
            Assert.True(Question(answerAfter: 40));
            Assert.True(Answer(questionAfter: 30));
        }

        Assert.Equal(0, _lost);
    }

    [Fact]
    public void A_spin_ends_after_its_window()
    {
        Assert.False(Question(answerAfter: 1000));
        Assert.InRange(_lost, IdleStrategy.Window, IdleStrategy.Window + 32);
    }

    [Fact]
    public void A_spin_that_gave_the_processor_away_for_long_ends()
    {
        _clock.Turn = 3000;
        Assert.False(Question(answerAfter: Never));
        Assert.InRange(_clock.Turns, 1, 64);
    }

    [Fact]
    public void Where_no_answer_ever_comes_within_a_spin_hardly_any_time_is_lost()
    {
        // A host with one processor: the peer answers as soon as this domain sleeps, and never before.
        _clock.Advance(1_000_000);
        long begin = _clock.Now;
        for (int i = 0; i < 50_000; i++)
        {
            _ = Question(answerAfter: Never, asleep: 140);
        }

        Assert.InRange(_lost, IdleStrategy.Window, IdleStrategy.Budget + 32 + ((_clock.Now - begin) / 300));
    }

    [Fact]
    public void Probes_find_that_answers_have_begun_to_come()
    {
        for (int i = 0; i < 1000; i++)
        {
            _ = Question(answerAfter: Never, asleep: 140);
        }

        // The guest has moved to a host with processors to spare.
        int until = 0;
        while (!Question(answerAfter: 40, asleep: 100))
        {
            until++;
        }

        Assert.InRange(until * 100L, 0, IdleStrategy.Window * IdleStrategy.Refill);
        for (int i = 0; i < 1000; i++)
        {
            Assert.True(Question(answerAfter: 40, asleep: 100));
        }
    }

    [Fact]
    public void Sparse_questions_are_spun_for_and_the_time_between_them_is_slept()
    {
        for (int i = 0; i < 1000; i++)
        {
            Assert.True(Question(answerAfter: 70) || i == 0);
            bool spun = Answer(questionAfter: 10_000, asleep: 10_000);
            Assert.False(spun);
        }

        // The first, for nothing is known yet.
        Assert.InRange(_lost, 0, 2 * (IdleStrategy.Window + 32));
    }

    [Fact]
    public void A_flow_that_begins_after_a_pause_is_spun_for_from_the_second_wait_on()
    {
        for (int flow = 0; flow < 100; flow++)
        {
            for (int i = 0; i < 20; i++)
            {
                bool spun = Question(answerAfter: 40, asleep: 100);
                Assert.True(spun || i < 2);
            }

            _ = Question(answerAfter: Never, asleep: 1_000_000);
        }
    }

    [Theory]
    [InlineData(IdleStrategy.BulkBytes, 0)]
    [InlineData(0, IdleStrategy.BulkBytes)]
    [InlineData(200_000, Small)]
    public void Bulk_ends_spinning_until_so_many_small_bursts_have_come(uint received, uint sent)
    {
        Assert.True(Question(answerAfter: 40));
        _idle.Worked(received, sent);
        Assert.False(_idle.Spin());
        // Two bursts each.
        for (int i = 0; i < IdleStrategy.SmallBursts / 2; i++)
        {
            Assert.False(Question(answerAfter: 0, asleep: 50));
        }

        Assert.Equal(0, _lost);
        Assert.True(Question(answerAfter: 40));
    }

    [Fact]
    public void A_burst_below_bulk_is_none()
    {
        _idle.Worked(IdleStrategy.BulkBytes - 1, IdleStrategy.BulkBytes - 1);
        Assert.True(_idle.Spin());
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(10)]
    [InlineData(100)]
    public void A_hostile_peer_makes_us_lose_no_more_than_its_answers_have_earned(int every)
    {
        const int Waits = 100_000;
        long begin = _clock.Now;
        int paid = 0;
        for (int i = 0; i < Waits; i++)
        {
            // An answer just before the window ends, or just after.
            paid += Question(answerAfter: i % every == 0 ? IdleStrategy.Window - 32 : Never, asleep: 20) ? 1 : 0;
        }

        Assert.InRange(_lost, 0, IdleStrategy.Budget + 32 + (paid * (long)IdleStrategy.Earned * 5 / 4) + ((_clock.Now - begin) / 300));
    }

    [Fact]
    public void Where_something_else_waits_for_the_processor_spins_end_at_once_and_come_back_when_it_has_gone()
    {
        Assert.True(Question(answerAfter: 40));
        _clock.Crowded = true;
        long begin = _clock.Now;
        int spun = _clock.Turns;
        while (_clock.Now - begin < 10_000_000)
        {
            _ = Question(answerAfter: 40, asleep: 100);
            _ = Answer(questionAfter: 40, asleep: 100);
        }

        // Until the first looks; then, once a rest, the turns up to the look.
        const int UntilSeen = IdleStrategy.LookMilliseconds * 1000;
        Assert.InRange(_clock.Turns - spun, 1, UntilSeen + (20 * (10_000 / IdleStrategy.RestMilliseconds)));
        _clock.Crowded = false;
        _clock.Advance(IdleStrategy.RestMilliseconds * 1000);
        for (int i = 0; i < 100; i++)
        {
            Assert.True(Question(answerAfter: 40));
        }
    }

    [Fact]
    public void An_application_that_was_just_woken_is_no_crowd()
    {
        for (int i = 0; i < 10_000; i++)
        {
            _clock.Crowded = i % 3 != 0;
            Assert.True(Question(answerAfter: 40));
        }
    }

    [Fact]
    public void Short_spins_that_pay_read_no_precise_clock()
    {
        Assert.True(Question(answerAfter: 12));
        _clock.Reads = 0;
        for (int i = 0; i < 100; i++)
        {
            Assert.True(Question(answerAfter: 12));
        }

        Assert.Equal(0, _clock.Reads);
    }

    [Fact]
    public void Peers_run_beside_us_when_the_last_spin_for_one_has_paid()
    {
        Assert.False(_idle.PeersRunBeside);
        _ = Question(answerAfter: 40);
        Assert.True(_idle.PeersRunBeside);
        // Of the application's waits, long or short, and of bulk it learns nothing.
        _ = Answer(questionAfter: Never, asleep: 50);
        _idle.Worked(IdleStrategy.BulkBytes, IdleStrategy.BulkBytes);
        Assert.True(_idle.PeersRunBeside);
        for (int i = 0; i < IdleStrategy.SmallBursts / 2; i++)
        {
            _ = Question(answerAfter: 0, asleep: 50);
        }

        _ = Question(answerAfter: Never);
        Assert.False(_idle.PeersRunBeside);
        Assert.True(new IdleStrategy(IdleMode.Poll, _clock).PeersRunBeside);
        Assert.False(new IdleStrategy(IdleMode.Event, _clock).PeersRunBeside);
    }

    [Fact]
    public void By_event_it_sleeps_at_once_and_reads_no_clock_and_polling_never_sleeps()
    {
        IdleStrategy sleeper = new(IdleMode.Event, _clock), poller = new(IdleMode.Poll, _clock);
        _clock.Reads = _clock.CoarseReads = 0;
        for (int i = 0; i < 1000; i++)
        {
            sleeper.Worked(Small, Small);
            Assert.False(sleeper.Spin());
            sleeper.FallsAsleep();
            sleeper.Slept();
            Assert.True(poller.Spin());
        }

        Assert.Equal((0, 0), (_clock.Reads, _clock.CoarseReads));
    }

    /// <summary>Something is sent, and the answer comes after so much time: awake, or at the latest so long after falling asleep.</summary>
    /// <returns>Whether a spin saw it come.</returns>
    private bool Question(int answerAfter, int asleep = 100)
    {
        _idle.Worked(0, Small);
        bool seen = Wait(answerAfter, asleep);
        _idle.Worked(Small, 0);
        return seen;
    }

    /// <summary>Something was received, and the local application sends something after so much time.</summary>
    private bool Answer(int questionAfter, int asleep = 100) => Wait(questionAfter, asleep);

    private bool Wait(int workAfter, int asleep)
    {
        long begin = _clock.Now;
        bool spun = false;
        while (_idle.Spin())
        {
            spun = true;
            if (_clock.Now - begin >= workAfter)
            {
                return true;
            }
        }

        _lost += spun ? _clock.Now - begin : 0;
        _idle.FallsAsleep();
        _clock.Advance(asleep);
        _idle.Slept();
        return false;
    }
}
