using System.Diagnostics;
using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>
/// A peer that writes anything, anywhere, at any moment. Allowed are a <see cref="PeerViolationException"/> and records
/// full of rubbish; never an access outside the ring (guard pages stand around it, and every segment is checked and
/// touched from end to end), never another exception, never an end that does not come back.
/// </summary>
public sealed unsafe class RingHostileTests
{
    private const uint RingBytes = ControlPage.MinRingBytes;

    private static readonly uint[] _boundaries = [0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 4095, 4096, 65535, 65536,
        RingRecord.MaxPayload - 1, RingRecord.MaxPayload, RingRecord.MaxPayload + 1, RingRecord.MaxPayload + 8,
        RingRecord.MaxBytes, RingRecord.MaxBytes + 1, RingBytes / 2, RingBytes - 16, RingBytes - 8, RingBytes - 1, RingBytes,
        RingBytes + 1, RingBytes + 8, 2 * RingBytes, 0x7ffffff8, 0x7fffffff, 0x80000000, 0x80000008, 0xfffffff0, 0xfffffff8,
        0xfffffffe, 0xffffffff];

    public static TheoryData<uint> Starts => new(0u, 4096u, 0x7ffffff8u, 0xfffe0000u, 0xfffffff8u);

    [Theory, MemberData(nameof(Starts))]
    public void ConsumerRefusesEveryProducerIndexThatNoHonestPeerWrites(uint start)
    {
        foreach (uint boundary in _boundaries)
        {
            foreach (uint published in (uint[])[0, 16, RingBytes / 2])
            {
                using RingMemory memory = new();
                (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
                // Something taken and not given back: that space is not the producer's yet.
                if (published != 0)
                {
                    Send(producer, published - RingRecord.HeaderBytes);
                    producer.Publish();
                    Assert.True(consumer.TryPeek(out _));
                    consumer.Advance();
                }

                uint reach = RingBytes - published;
                memory.ProducerLine->Index = start + published + boundary;
                *(ulong*)(memory.Data + ((start + published) & (RingBytes - 1))) = 8; // a record that fits 16 and more
                bool honest = boundary <= reach && boundary % 8 == 0;
                if (!honest)
                {
                    Assert.Throws<PeerViolationException>(() => consumer.TryPeek(out _));
                    Assert.Throws<PeerViolationException>(() => consumer.HasData());
                    Assert.Throws<PeerViolationException>(() => consumer.ArmData());
                }
                else if (boundary == 8)
                {
                    Assert.Throws<PeerViolationException>(() => consumer.TryPeek(out _)); // no room for the record
                }
                else
                {
                    Assert.Equal(boundary != 0, consumer.TryPeek(out _));
                }
            }
        }
    }

    [Theory, MemberData(nameof(Starts))]
    public void ProducerRefusesEveryConsumerIndexThatNoHonestPeerWrites(uint start)
    {
        foreach (uint boundary in _boundaries)
        {
            using RingMemory memory = new();
            (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
            // 32 published and taken, 1024 published, 48 committed and not published.
            Send(producer, 24);
            producer.Publish();
            Assert.True(consumer.TryPeek(out _));
            consumer.Advance();
            consumer.Publish();
            Assert.False(producer.HasOutstanding());
            Send(producer, 1016);
            producer.Publish();
            Send(producer, 40);
            memory.ConsumerLine->Index = start + 32 + boundary;
            if (boundary > 1024)
            {
                Assert.Throws<PeerViolationException>(() => producer.HasOutstanding());
                Assert.Throws<PeerViolationException>(() => producer.ArmEmpty());
                Assert.Throws<PeerViolationException>(() => producer.ArmSpace());
            }
            else
            {
                Assert.Equal(boundary != 1024, producer.HasOutstanding());
            }
        }
    }

    [Fact]
    public void ProducerDoesNotLetAnIndexGoBack()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        RingMemory.Move(producer, consumer, RingBytes);
        Assert.False(producer.HasOutstanding());
        memory.ConsumerLine->Index -= 8;
        Assert.Throws<PeerViolationException>(() => producer.HasOutstanding());
    }

    [Theory, MemberData(nameof(Starts))]
    public void ConsumerRefusesEveryLengthThatDoesNotFit(uint start)
    {
        foreach (uint length in _boundaries)
        {
            foreach (uint claimed in (uint[])[16, 24, 4096, RingRecord.MaxBytes - 8, RingRecord.MaxBytes, RingBytes])
            {
                using RingMemory memory = new();
                (_, RingConsumer consumer) = memory.OpenAt(start);
                memory.ProducerLine->Index = start + claimed;
                uint* header = (uint*)(memory.Data + (start & (RingBytes - 1)));
                header[0] = length;
                header[1] = 0xdeadbeef; // not looked at
                if (length is > 0 and <= RingRecord.MaxPayload && RingRecord.BytesFor(length) <= claimed)
                {
                    Assert.True(consumer.TryPeek(out RingSegments payload));
                    Assert.Equal(length, payload.Length);
                    memory.CheckInside(payload);
                    Touch(payload);
                }
                else
                {
                    Assert.Throws<PeerViolationException>(() => consumer.TryPeek(out _));
                    consumer.Advance(); // must not move over what was refused
                    Assert.Equal(0u, consumer.Unpublished);
                }
            }
        }
    }

    [Fact]
    public void ARecordTooShortForWhatIsAskedOfItIsAViolationAndNotAnAccessBehindIt()
    {
        using RingMemory memory = new();
        for (uint length = 1; length < 24; length++)
        {
            for (uint beforeEnd = 0; beforeEnd <= length; beforeEnd++)
            {
                RingSegments record = RingSegments.At(memory.Data, RingBytes, (RingBytes - beforeEnd) & (RingBytes - 1), length);
                Assert.Throws<PeerViolationException>(() => record.Skip(24));
                Assert.Throws<PeerViolationException>(() => record.Skip(uint.MaxValue));
                Assert.Throws<PeerViolationException>(() => record.CopyTo(new byte[24]));
                Assert.Equal(0u, record.Skip(length).Length);
            }
        }
    }

    /// <summary>Every word of the other side, every boundary value, in every state, followed by every operation.</summary>
    [Theory, MemberData(nameof(Starts))]
    public void EveryWordMayHoldAnyValue(uint start)
    {
        for (int word = 0; word < 5; word++)
        {
            foreach (uint value in _boundaries)
            {
                foreach (uint base_ in (uint[])[0, start, start + (RingBytes / 2)])
                {
                    for (int state = 0; state < 4; state++)
                    {
                        using RingMemory memory = new();
                        (RingProducer producer, RingConsumer consumer) = memory.OpenAt(start);
                        for (int i = 0; i < state; i++)
                        {
                            Send(producer, 20_000);
                        }

                        if (state > 1)
                        {
                            producer.Publish();
                        }

                        *Word(memory, word) = value + base_;
                        for (int operation = 0; operation < 20; operation++)
                        {
                            Try(memory, producer, consumer, operation % 10);
                        }
                    }
                }
            }
        }
    }

    [Fact]
    public void RandomValuesBetweenRandomSteps()
    {
        Random random = new(8);
        int violations = 0;
        for (int run = 0; run < 3000; run++)
        {
            using RingMemory memory = new();
            (RingProducer producer, RingConsumer consumer) = memory.OpenAt((uint)random.NextInt64() & ~15u & 0xfffff);
            for (int step = 0; step < 200; step++)
            {
                // Rarely enough that there is a state worth spoiling, and near the truth more often than anywhere.
                if (random.Next(20) == 0)
                {
                    uint* word = Word(memory, random.Next(5));
                    *word = random.Next(4) switch
                    {
                        0 => (uint)random.NextInt64(),
                        1 => *word + (uint)random.Next(-32, 32),
                        2 => *word + (8 * (uint)random.Next(-8192, 8192)),
                        _ => _boundaries[random.Next(_boundaries.Length)],
                    };
                }

                if (random.Next(50) == 0)
                {
                    new Span<uint>(memory.Data, (int)RingBytes / 4).Fill((uint)random.Next(1, 70_000));
                }

                violations += Try(memory, producer, consumer, random.Next(10)) ? 0 : 1;
            }
        }

        Assert.True(violations > 1000, $"{violations} violations: the values were too tame");
    }

    /// <summary>
    /// Both ends run at full speed while a third thread writes into everything a peer can write: what is checked must
    /// be what is used. An end that finds a violation opens anew, as a channel would.
    /// </summary>
    [Fact]
    public void TheWordsMayChangeAtAnyMoment()
    {
        using RingMemory memory = new();
        Stopwatch clock = Stopwatch.StartNew();
        List<Exception> failures = [];
        long[] counts = new long[4];

        // Long enough for each count to be of some size, on a busy machine too.
        bool Running() => clock.ElapsedMilliseconds < 2000 || (clock.ElapsedMilliseconds < 20_000 && counts.Min() < 200);

        void Guard(Action body)
        {
            try
            {
                body();
            }
            catch (Exception e)
            {
                lock (failures)
                {
                    failures.Add(e);
                }
            }
        }

        Thread[] threads =
        [
            new(() => Guard(() =>
            {
                Random random = new(9);
                RingProducer producer = memory.Open().Producer;
                while (Running())
                {
                    try
                    {
                        for (int i = 0; i < 16 && producer.TryReserve(out RingSegments room); i++)
                        {
                            memory.CheckInside(room);
                            uint length = (uint)random.Next(1, (int)RingRecord.MaxPayload + 1);
                            new Span<byte>(room.First, (int)room.FirstLength).Fill(1);
                            new Span<byte>(room.Second, (int)room.SecondLength).Fill(1);
                            producer.Commit(length);
                            counts[0]++;
                        }

                        producer.Publish();
                        producer.ArmSpace();
                        producer.ArmEmpty();
                    }
                    catch (PeerViolationException)
                    {
                        counts[1]++;
                        producer = memory.Open().Producer;
                    }
                }
            })),
            new(() => Guard(() =>
            {
                RingConsumer consumer = memory.Open().Consumer;
                while (Running())
                {
                    try
                    {
                        for (int i = 0; i < 16 && consumer.TryPeek(out RingSegments payload); i++)
                        {
                            memory.CheckInside(payload);
                            Assert.InRange(payload.Length, 1u, RingRecord.MaxPayload);
                            Touch(payload);
                            consumer.Advance();
                            Assert.InRange(consumer.Unpublished, 16u, RingBytes);
                            counts[2]++;
                        }

                        consumer.Publish();
                        consumer.ArmData();
                        consumer.Disarm();
                    }
                    catch (PeerViolationException)
                    {
                        counts[3]++;
                        consumer = memory.Open().Consumer;
                    }
                }
            })),
            new(() => Guard(() =>
            {
                Random random = new(10);
                while (Running())
                {
                    uint index = memory.ProducerLine->Index;
                    switch (random.Next(8))
                    {
                        case 0:
                            *Word(memory, random.Next(5)) = _boundaries[random.Next(_boundaries.Length)];
                            break;
                        case 1:
                            memory.Control->ListenerAlive = (byte)random.Next();
                            memory.Control->ConnectorAlive = (byte)random.Next();
                            break;
                        case 2:
                            *Word(memory, random.Next(4)) = index + (8 * (uint)random.Next(-4096, 4096));
                            break;
                        default:
                            // Lengths, at the places where headers may lie, changing under the reader.
                            *(uint*)(memory.Data + ((index + (8 * (uint)random.Next(-2048, 64))) & (RingBytes - 1) & ~7u)) = (uint)random.Next(0, 70_000);
                            break;
                    }

                    Thread.SpinWait(random.Next(200));
                }
            })),
        ];
        Array.ForEach(threads, thread => thread.Start());
        foreach (Thread thread in threads)
        {
            Assert.True(thread.Join(TimeSpan.FromSeconds(30)), "an end does not come back");
        }

        Assert.Empty(failures);
        Assert.All(counts, count => Assert.True(count > 100, string.Join(' ', counts)));
    }

    /// <summary>
    /// What is checked is what is used: a word that flips between an honest and a dishonest value as fast as a processor
    /// can write must never pass the check as one and be used as the other.
    /// </summary>
    [Fact]
    public void AWordThatFlipsBetweenCheckAndUseGainsNothing()
    {
        using RingMemory memory = new();
        (_, RingConsumer consumer) = memory.Open();
        memory.ProducerLine->Index = 16;
        uint accepted = 0;
        WhileFlipping((uint*)memory.Data, 8, 60_000, () =>
        {
            try
            {
                Assert.True(consumer.TryPeek(out RingSegments payload));
                Assert.Equal(8u, payload.Length);
                accepted++;
            }
            catch (PeerViolationException)
            {
            }
        });
        Assert.NotEqual(0u, accepted);

        // A record of 60000 bytes where the index makes room for 16, or for more than there is.
        *(uint*)memory.Data = 60_000;
        WhileFlipping(&memory.ProducerLine->Index, 16, 0x8000_0000, () => Assert.Throws<PeerViolationException>(() =>
            new RingConsumer(memory.Data, RingBytes, memory.ConsumerLine, memory.ProducerLine).TryPeek(out _)));

        // A full ring, whose reader has taken nothing, or more than there was.
        (RingProducer producer, _) = memory.Open();
        while (producer.TryReserve(out _))
        {
            producer.Commit(RingRecord.MaxPayload);
        }

        producer.Publish();
        WhileFlipping(&memory.ConsumerLine->Index, 0, RingRecord.MaxBytes + 8, () =>
        {
            try
            {
                Assert.False(producer.TryReserve(out _));
            }
            catch (PeerViolationException)
            {
            }
        });
    }

    private static void WhileFlipping(uint* word, uint honest, uint dishonest, Action attempt)
    {
        bool stop = false;
        *word = honest;
        Thread flipper = new(() =>
        {
            while (!Volatile.Read(ref stop))
            {
                Volatile.Write(ref *word, dishonest);
                Volatile.Write(ref *word, honest);
            }
        });
        flipper.Start();
        try
        {
            for (long end = Environment.TickCount64 + 500; Environment.TickCount64 < end;)
            {
                attempt();
            }
        }
        finally
        {
            Volatile.Write(ref stop, true);
            flipper.Join();
        }
    }

    /// <summary>The words that a peer can write: 0 to 3 in the control page, 4 the header of the next record.</summary>
    private static uint* Word(RingMemory memory, int word) => word switch
    {
        0 => &memory.ProducerLine->Index,
        1 => &memory.ProducerLine->WakeAt,
        2 => &memory.ConsumerLine->Index,
        3 => &memory.ConsumerLine->WakeAt,
        _ => (uint*)(memory.Data + (memory.ConsumerLine->Index & (RingBytes - 1) & ~7u)),
    };

    /// <summary>One operation. False: it found a violation.</summary>
    private static bool Try(RingMemory memory, RingProducer producer, RingConsumer consumer, int operation)
    {
        try
        {
            switch (operation)
            {
                case 0 or 1:
                    if (producer.TryReserve(out RingSegments room))
                    {
                        memory.CheckInside(room);
                        new Span<byte>(room.First, (int)room.FirstLength).Fill(2);
                        new Span<byte>(room.Second, (int)room.SecondLength).Fill(2);
                        producer.Commit(room.Length);
                    }

                    break;
                case 2:
                    producer.Publish();
                    break;
                case 3 or 4:
                    if (consumer.TryPeek(out RingSegments payload))
                    {
                        memory.CheckInside(payload);
                        Assert.InRange(payload.Length, 1u, RingRecord.MaxPayload);
                        Touch(payload);
                        consumer.Advance();
                        Assert.True(consumer.Unpublished <= RingBytes);
                    }

                    break;
                case 5:
                    consumer.Publish();
                    break;
                case 6:
                    consumer.ArmData();
                    break;
                case 7:
                    producer.ArmSpace();
                    break;
                case 8:
                    producer.ArmEmpty();
                    break;
                default:
                    consumer.HasData();
                    consumer.Disarm();
                    producer.HasOutstanding();
                    break;
            }

            return true;
        }
        catch (PeerViolationException)
        {
            return false;
        }
    }

    private static void Send(RingProducer producer, uint length)
    {
        Assert.True(producer.TryReserve(out _));
        producer.Commit(length);
    }

    /// <summary>Reads every byte: the guard pages answer if one lies outside.</summary>
    private static void Touch(in RingSegments payload)
    {
        byte[] copy = new byte[payload.Length];
        payload.CopyTo(copy);
        GC.KeepAlive(copy);
    }
}
