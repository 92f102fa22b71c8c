using XenLoop.Ring;
using XenLoop.Tests.RingStress;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Records come out as they went in, wherever in the ring and in the range of the indices they lie.</summary>
public sealed unsafe class RingWrapTests
{
    private const uint RingBytes = ControlPage.MinRingBytes;

    [Fact]
    public void RecordsOfCriticalLengthsKeepTheirContentAtEveryOffsetBeforeTheEnd()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        Random random = new(2);
        ulong number = 0;
        uint position = 0;
        for (uint offset = RingBytes - RingRecord.MaxBytes - 16; offset < RingBytes; offset += 8)
        {
            uint toEnd = RingBytes - offset;
            uint[] lengths = [1, 7, 8, 9, toEnd - 9, toEnd - 8, toEnd - 7, toEnd - 1, toEnd, toEnd + 1,
                RingRecord.MaxPayload, (uint)random.Next(1, (int)RingRecord.MaxPayload)];
            foreach (uint length in lengths)
            {
                if (length is 0 or > RingRecord.MaxPayload)
                {
                    continue;
                }

                uint distance = (offset - position) & (RingBytes - 1);
                RingMemory.Move(producer, consumer, distance == 8 ? distance + RingBytes : distance);
                Send(memory, producer, ++number, length);
                producer.Publish();
                Receive(memory, consumer, number, length);
                consumer.Publish();
                position = (offset + RingRecord.BytesFor(length)) & (RingBytes - 1);
                Assert.Equal(position, memory.ConsumerLine->Index & (RingBytes - 1));
            }
        }
    }

    [Fact]
    public void RecordsOfEveryLengthKeepTheirContent()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        for (uint length = 1; length <= RingRecord.MaxPayload; length++)
        {
            Send(memory, producer, length, length);
            producer.Publish();
            Receive(memory, consumer, length, length);
            Assert.False(consumer.TryPeek(out _));
            consumer.Publish();
        }
    }

    /// <summary>Random steps of both ends beside a plain queue that says what must come out.</summary>
    [Theory]
    [InlineData(ControlPage.MinRingBytes, 0u)]
    [InlineData(ControlPage.MinRingBytes, uint.MaxValue - 7)]
    [InlineData(ControlPage.MinRingBytes, uint.MaxValue - ControlPage.MinRingBytes + 9)]
    [InlineData(ControlPage.MinRingBytes, 0x7ffffff8u)]
    [InlineData(ControlPage.MaxRingBytes, uint.MaxValue - 65535)]
    public void OrderAndContentAreKeptUnderAnyInterleaving(uint ringBytes, uint startIndex)
    {
        using RingMemory memory = new(ringBytes);
        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(startIndex);
        Random random = new(3);
        Queue<(ulong Number, uint Length)> visible = new();
        Queue<(ulong Number, uint Length)> committed = new();
        ulong number = 0;
        uint occupied = 0;     // not yet given back by the consumer
        uint unpublished = 0;  // taken and not yet given back
        for (int step = 0; step < 200_000; step++)
        {
            switch (random.Next(8))
            {
                case 0 or 1 or 2:
                    bool room = ringBytes - occupied >= RingRecord.MaxBytes;
                    Assert.Equal(room, producer.TryReserve(out RingSegments payload));
                    if (room)
                    {
                        memory.CheckInside(payload);
                        uint length = RandomLength(random);
                        RingContent.Fill(payload, ++number, length);
                        producer.Commit(length);
                        committed.Enqueue((number, length));
                        occupied += RingRecord.BytesFor(length);
                    }

                    break;
                case 3:
                    Assert.False(producer.Publish()); // nobody armed
                    while (committed.TryDequeue(out (ulong, uint) record))
                    {
                        visible.Enqueue(record);
                    }

                    break;
                case 4 or 5 or 6:
                    Assert.Equal(visible.Count != 0, consumer.HasData());
                    if (visible.TryDequeue(out (ulong Number, uint Length) next))
                    {
                        Receive(memory, consumer, next.Number, next.Length);
                        unpublished += RingRecord.BytesFor(next.Length);
                    }
                    else
                    {
                        Assert.False(consumer.TryPeek(out _));
                    }

                    Assert.Equal(unpublished, consumer.Unpublished);
                    break;
                default:
                    Assert.False(consumer.Publish());
                    occupied -= unpublished;
                    unpublished = 0;
                    Assert.Equal(visible.Count != 0, producer.HasOutstanding());
                    break;
            }
        }

        Assert.True(number > 20_000);
    }

    [Fact]
    public void PeekingTwiceGivesTheSameRecordAndAdvancingTwiceSkipsNone()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        Send(memory, producer, 1, 100);
        Send(memory, producer, 2, 200);
        producer.Publish();
        Assert.True(consumer.TryPeek(out RingSegments first));
        Assert.True(RingContent.Matches(first, 1, 100));
        Assert.True(consumer.TryPeek(out RingSegments again));
        Assert.True(RingContent.Matches(again, 1, 100));
        consumer.Advance();
        consumer.Advance();
        Receive(memory, consumer, 2, 200);
    }

    [Fact]
    public void WhatIsCommittedIsInvisibleUntilItIsPublished()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        Send(memory, producer, 1, 100);
        Assert.False(consumer.TryPeek(out _));
        Assert.False(consumer.HasData());
        producer.Publish();
        Assert.True(consumer.HasData());
    }

    [Fact]
    public void SegmentsSplitCopyAndSkipAtEveryPoint()
    {
        using RingMemory memory = new();
        new Random(4).NextBytes(new Span<byte>(memory.Data, (int)RingBytes));
        for (uint beforeEnd = 0; beforeEnd <= 40; beforeEnd++)
        {
            byte[] whole = [.. new ReadOnlySpan<byte>(memory.Data + RingBytes - beforeEnd, (int)beforeEnd),
                .. new ReadOnlySpan<byte>(memory.Data, 40 - (int)beforeEnd)];
            RingSegments segments = RingSegments.At(memory.Data, RingBytes, (RingBytes - beforeEnd) & (RingBytes - 1), 40);
            for (uint skip = 0; skip <= 40; skip++)
            {
                RingSegments rest = segments.Skip(skip);
                memory.CheckInside(rest);
                byte[] copy = new byte[40 - skip];
                rest.CopyTo(copy);
                Assert.Equal(whole[(int)skip..], copy);
                byte[] head = new byte[skip];
                segments.CopyTo(head);
                Assert.Equal(whole[..(int)skip], head);
            }
        }
    }

    private static void Send(RingMemory memory, RingProducer producer, ulong number, uint length)
    {
        Assert.True(producer.TryReserve(out RingSegments payload));
        Assert.Equal(RingRecord.MaxPayload, payload.Length);
        memory.CheckInside(payload);
        RingContent.Fill(payload, number, length);
        producer.Commit(length);
    }

    private static void Receive(RingMemory memory, RingConsumer consumer, ulong number, uint length)
    {
        Assert.True(consumer.TryPeek(out RingSegments payload));
        memory.CheckInside(payload);
        Assert.True(RingContent.Matches(payload, number, length), $"record {number} of {length} bytes differs");
        consumer.Advance();
    }

    private static uint RandomLength(Random random) => random.Next(4) switch
    {
        0 => RingRecord.MaxPayload,
        1 => (uint)random.Next(1, 20),
        2 => (uint)random.Next(1, 1600),
        _ => (uint)random.Next(1, (int)RingRecord.MaxPayload + 1),
    };
}
