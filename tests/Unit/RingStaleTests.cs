using XenLoop.Ring;
using XenLoop.Tests.RingStress;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Records that the producer has overtaken by another way are thrown away, and no others.</summary>
public sealed unsafe class RingStaleTests
{
    [Theory]
    [InlineData(0u)]
    [InlineData(uint.MaxValue - 7)]
    [InlineData(uint.MaxValue - 223)] // the mark is 0
    public void Records_up_to_the_mark_are_stale_and_those_after_it_are_not(uint startIndex)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(startIndex);
        Send(producer, 1);
        Send(producer, 2);
        producer.Publish();
        Assert.False(consumer.IsStale());
        producer.MarkStale();
        Send(producer, 3);
        producer.Publish();

        Assert.Equal(2, ThrowAway(consumer));
        Assert.Equal(3ul, Receive(consumer));
        Assert.False(consumer.IsStale());
    }

    [Fact]
    public void A_mark_in_the_middle_of_what_was_looked_at_counts()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        Send(producer, 1);
        producer.Publish();
        Assert.Equal(1ul, Receive(consumer));
        Send(producer, 2);
        Send(producer, 3);
        producer.Publish();
        Assert.Equal(2ul, Receive(consumer));
        Send(producer, 4);
        producer.Publish();
        producer.MarkStale();

        Assert.Equal(2, ThrowAway(consumer));
        Assert.False(consumer.TryPeek(out _));
    }

    [Fact]
    public void The_mark_is_taken_back_when_all_that_it_covers_is_taken()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        Send(producer, 1);
        producer.Publish();
        producer.MarkStale();
        Assert.False(producer.TryClearStale());
        Assert.NotEqual(0u, memory.ProducerLine->Stale);
        Assert.Equal(1, ThrowAway(consumer));
        consumer.Publish();
        Assert.False(producer.HasOutstanding());
        Assert.True(producer.TryClearStale());
        Assert.Equal(0u, memory.ProducerLine->Stale);
    }

    [Fact]
    public void No_mark_of_a_hostile_peer_makes_the_consumer_leave_what_is_published()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        Random random = new(5);
        ulong number = 0;
        for (int round = 0; round < 20_000; round++)
        {
            Send(producer, ++number);
            producer.Publish();
            uint produced = memory.ProducerLine->Index;
            memory.ProducerLine->Stale = random.Next(4) switch
            {
                0 => produced + 8 + RingLine.StaleFlag,
                1 => (uint)random.NextInt64(1L << 32),
                2 => (produced - 4) | RingLine.StaleFlag,
                _ => (produced - 100_000) | RingLine.StaleFlag,
            };
            while (consumer.IsStale() && consumer.TryPeek(out _))
            {
                consumer.Advance();
            }

            while (consumer.TryPeek(out RingSegments record))
            {
                memory.CheckInside(record);
                Assert.True(RingContent.Matches(record, number, record.Length));
                consumer.Advance();
            }

            consumer.Publish();
            Assert.Equal(produced, memory.ConsumerLine->Index);
        }
    }

    private static int ThrowAway(RingConsumer consumer)
    {
        int count = 0;
        while (consumer.IsStale() && consumer.TryPeek(out _))
        {
            consumer.Advance();
            count++;
        }

        return count;
    }

    private static void Send(RingProducer producer, ulong number)
    {
        Assert.True(producer.TryReserve(out RingSegments payload));
        RingContent.Fill(payload, number, 100);
        producer.Commit(100);
    }

    private static ulong Receive(RingConsumer consumer)
    {
        Assert.True(consumer.TryPeek(out RingSegments payload));
        for (ulong number = 1; number < 10; number++)
        {
            if (RingContent.Matches(payload, number, 100))
            {
                consumer.Advance();
                return number;
            }
        }

        throw new InvalidOperationException("no such record");
    }
}
