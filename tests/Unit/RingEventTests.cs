using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>
/// Who is notified, when, and that nobody else is. Each group runs from several indices, the end of the 32-bit range
/// among them.
/// </summary>
public sealed unsafe class RingEventTests
{
    private const uint RingBytes = ControlPage.MinRingBytes;

    public static TheoryData<uint> StartIndices => new(0u, 16u, 0x7fffffe8u, 0x80000000u,
        BeforeWrap(RingBytes), BeforeWrap(RingRecord.MaxBytes), BeforeWrap(RingBytes / 2), BeforeWrap(4096),
        BeforeWrap(32), BeforeWrap(24), BeforeWrap(16), BeforeWrap(8));

    [Theory, MemberData(nameof(StartIndices))]
    public void ConsumerThatArmedIsNotifiedByTheFirstRecordAndByNoOther(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        Assert.True(consumer.ArmData());
        Assert.False(producer.Publish()); // nothing committed
        Send(producer, 1);
        Assert.True(producer.Publish());
        Send(producer, 1);
        Assert.False(producer.Publish());
        Assert.False(producer.Publish());

        // Awake: any number of records, bursts and empty looks bring no event.
        for (int i = 0; i < 1000; i++)
        {
            Send(producer, 1000);
            Send(producer, 3);
            Assert.False(producer.Publish());
            Assert.True(TakeAll(consumer) >= 2);
            Assert.False(consumer.Publish());
        }

        Assert.True(consumer.ArmData());
        Send(producer, 5000);
        Send(producer, 5000);
        Assert.True(producer.Publish()); // one event for a burst
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void ConsumerCannotGoToSleepOnARecord(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        Send(producer, 1);
        producer.Publish();
        Assert.False(consumer.ArmData());
        Assert.True(consumer.TryPeek(out _));
        Assert.False(consumer.ArmData()); // peeked at, not taken
        consumer.Advance();
        Assert.True(consumer.ArmData());
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void ConsumerThatDisarmedIsNotNotified(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        Assert.True(consumer.ArmData());
        consumer.Disarm();
        for (int i = 0; i < 10; i++)
        {
            Send(producer, 1);
            Assert.False(producer.Publish());
        }

        TakeAll(consumer);
        Assert.True(consumer.ArmData()); // and can ask again
        Send(producer, 1);
        Assert.True(producer.Publish());
    }

    [Fact]
    public void ConsumerThatNeverArmedIsNeverNotified()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        for (int i = 0; i < 100_000; i++)
        {
            Send(producer, 1);
            Assert.False(producer.Publish());
            consumer.HasData();
            TakeAll(consumer);
            Assert.False(consumer.Publish());
        }
    }

    /// <summary>An old WakeAt comes into reach again after 4 GiB: one event too many, and never one too few.</summary>
    [Fact]
    public void AnOldRequestCostsAtMostOneEventInFourGibibytes()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(64);
        Assert.True(consumer.ArmData());
        int events = 0;
        for (ulong moved = 0; moved < 2UL << 32; moved += RingRecord.MaxBytes)
        {
            Send(producer, RingRecord.MaxPayload);
            events += producer.Publish() ? 1 : 0;
            TakeAll(consumer);
            consumer.Publish();
        }

        Assert.InRange(events, 1, 3);
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void ReservingStopsExactlyWhereTheGreatestRecordNoLongerFits(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        uint used = 0;
        while (producer.TryReserve(out _))
        {
            Assert.True(RingBytes - used >= RingRecord.MaxBytes);
            producer.Commit(100);
            used += RingRecord.BytesFor(100);
        }

        Assert.True(RingBytes - used < RingRecord.MaxBytes);
        producer.Publish();
        Assert.False(producer.TryReserve(out _));
        Assert.True(consumer.TryPeek(out _));
        consumer.Advance();
        Assert.False(producer.TryReserve(out _)); // taken, not given back
        consumer.Publish();
        Assert.True(producer.TryReserve(out _));
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void RingFilledToTheLastByteWorks(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        uint rest = RingBytes - RingRecord.MaxBytes;
        Send(producer, rest - RingRecord.HeaderBytes);
        Send(producer, RingRecord.MaxPayload);
        producer.Publish();
        Assert.Equal(start + RingBytes, memory.ProducerLine->Index);
        Assert.True(consumer.HasData()); // a full ring does not look like an empty one
        Assert.True(producer.ArmSpace());
        Assert.Equal(2, TakeAll(consumer));
        Assert.False(consumer.TryPeek(out _));
        Assert.Equal(RingBytes, consumer.Unpublished);
        Assert.True(consumer.Publish());
        Assert.False(producer.HasOutstanding());
        Assert.Equal(memory.ConsumerLine->Index, producer.Consumed);
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void ProducerThatWaitsForSpaceIsNotifiedOnceWhenThereIsEnough(uint start)
    {
        uint wanted = Math.Max(RingBytes / 2, RingRecord.MaxBytes);
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        Assert.False(producer.ArmSpace()); // all is free
        uint used = FillRing(producer, 1000);
        Assert.True(producer.ArmSpace());
        int events = 0;
        while (consumer.TryPeek(out _))
        {
            consumer.Advance();
            used -= RingRecord.BytesFor(1000);
            bool due = events == 0 && RingBytes - used >= wanted;
            Assert.Equal(due, consumer.Publish());
            events += due ? 1 : 0;
        }

        Assert.Equal(1, events);
        Assert.False(producer.ArmSpace());
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void ProducerThatNeverArmedIsNeverNotified(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        // The words start at zero: the only request there can be is one left over from zero, and it is behind us.
        for (int i = 0; i < 20; i++)
        {
            FillRing(producer, 3000);
            Assert.Equal(0, CountEvents(consumer));
        }
    }

    [Theory, MemberData(nameof(StartIndices))]
    public void ProducerThatWaitsForAnEmptyRingIsNotifiedByTheLastRecord(uint start)
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
        Assert.False(producer.ArmEmpty());
        for (int i = 0; i < 10; i++)
        {
            Send(producer, 100);
        }

        Assert.False(producer.HasOutstanding()); // not published: nobody has to take it
        producer.Publish();
        Assert.True(producer.HasOutstanding());
        Assert.True(producer.ArmEmpty());
        for (int i = 0; i < 9; i++)
        {
            Take(consumer);
            Assert.False(consumer.Publish());
        }

        Take(consumer);
        Assert.True(producer.HasOutstanding()); // taken, not given back
        Assert.True(consumer.Publish());
        Assert.False(producer.HasOutstanding());
        Assert.False(producer.ArmEmpty());
    }

    /// <summary>In the smallest ring half is less than a record: the wake-up must wait until one fits.</summary>
    [Theory, MemberData(nameof(StartIndices))]
    public void AnEventForSpaceAlwaysMeansRoomForTheGreatestRecord(uint start)
    {
        foreach (uint ringBytes in (uint[])[ControlPage.MinRingBytes, 2 * ControlPage.MinRingBytes, ControlPage.MaxRingBytes])
        {
            using RingMemory memory = new(ringBytes);
            (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
            foreach (uint length in (uint[])[1, 8, 1514, 9000, 65535, RingRecord.MaxPayload])
            {
                FillRing(producer, length);
                Assert.True(producer.ArmSpace());
                bool notified = false;
                while (consumer.TryPeek(out _))
                {
                    consumer.Advance();
                    if (consumer.Publish())
                    {
                        notified = true;
                        Assert.True(producer.TryReserve(out _));
                    }
                }

                Assert.True(notified);
            }
        }
    }

    private static uint BeforeWrap(uint bytes) => uint.MaxValue - bytes + 1;

    private static uint FillRing(RingProducer producer, uint length)
    {
        uint used = 0;
        while (producer.TryReserve(out _))
        {
            producer.Commit(length);
            used += RingRecord.BytesFor(length);
        }

        producer.Publish();
        return used;
    }

    private static int CountEvents(RingConsumer consumer)
    {
        int events = 0;
        while (consumer.TryPeek(out _))
        {
            consumer.Advance();
            events += consumer.Publish() ? 1 : 0;
        }

        return events;
    }

    private static void Send(RingProducer producer, uint length)
    {
        Assert.True(producer.TryReserve(out _));
        producer.Commit(length);
    }

    private static void Take(RingConsumer consumer)
    {
        Assert.True(consumer.TryPeek(out _));
        consumer.Advance();
    }

    private static int TakeAll(RingConsumer consumer)
    {
        int taken = 0;
        for (; consumer.TryPeek(out _); taken++)
        {
            consumer.Advance();
        }

        return taken;
    }
}
