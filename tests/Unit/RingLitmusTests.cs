using System.Runtime.InteropServices;
using XenLoop.Ring;
using XenLoop.Tests.RingStress;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>
/// Litmus tests of the store-load fences (the pattern known as SB, or Dekker's): two threads run the two halves at the
/// same moment, and one of them must see the other's store.
/// <code>
///   one who moves on           one who goes to sleep
///   Index = new                WakeAt = wanted
///   fence                      fence
///   read WakeAt: notify?       read Index: sleep?
/// </code>
/// "Not notified and asleep" is a lost wake-up: with nothing else to say, both sleep for ever. Without either fence the
/// processor keeps the store in its store buffer while the load behind it goes ahead (x86 does this too), and each side
/// reads the old word of the other. Take any of the five fences out, and on an x86 with two idle CPUs the test of its
/// name finds a lost wake-up within milliseconds.
/// <para>Where both threads share one CPU, or others take it from them, little can be shown; then the tests pass.</para>
/// </summary>
public sealed unsafe class RingLitmusTests
{
    private const int Instances = 4096;
    private const int LineBytes = 128;

    private static readonly TimeSpan _duration = TimeSpan.FromSeconds(2);

    [Fact]
    public void RecordAndSleepingConsumerNeverMissEachOther() => Run(
        prepare: (producer, consumer) =>
        {
            Assert.True(producer.TryReserve(out _));
            producer.Commit(1);
        },
        movesOn: (producer, _) => producer.Publish(),
        goesToSleep: (_, consumer) => consumer.ArmData());

    [Fact]
    public void SpaceAndSleepingProducerNeverMissEachOther() => Run(
        prepare: (producer, consumer) =>
        {
            // Full, and all of it taken: the consumer's Publish is what makes room.
            while (producer.TryReserve(out _))
            {
                producer.Commit(RingRecord.MaxPayload);
            }

            producer.Publish();
            Take(consumer);
        },
        movesOn: (_, consumer) => consumer.Publish(),
        goesToSleep: (producer, _) => producer.ArmSpace());

    [Fact]
    public void EmptyRingAndWaitingProducerNeverMissEachOther() => Run(
        prepare: (producer, consumer) =>
        {
            Assert.True(producer.TryReserve(out _));
            producer.Commit(RingRecord.MaxPayload);
            producer.Publish();
            Take(consumer);
        },
        movesOn: (_, consumer) => consumer.Publish(),
        goesToSleep: (producer, _) => producer.ArmEmpty());

    /// <summary>
    /// The other order that matters, "message passing": a record is whole when its index is seen, and the consumer's
    /// reads are over when its space is seen to be free. x86 keeps these orders by itself, so here only a compiler that
    /// moves the stores could fail this; on Arm the release and acquire in Publish and Read... are what holds it.
    /// </summary>
    [Fact]
    public void RecordsAreWholeWhenTheirIndexIsSeen()
    {
        using RingMemory memory = new();
        (RingProducer producer, RingConsumer consumer) = memory.Open();
        const ulong Count = 300_000;
        Exception? failure = null;
        Thread receiver = new(() =>
        {
            try
            {
                Random random = new(5);
                for (ulong number = 0; number < Count;)
                {
                    if (!consumer.TryPeek(out RingSegments payload))
                    {
                        consumer.Publish();
                        Thread.Yield();
                        continue;
                    }

                    uint length = (uint)random.Next(1, 3000);
                    Assert.True(RingContent.Matches(payload, number, length), $"record {number}");
                    consumer.Advance();
                    number++;
                    if (number % 7 == 0)
                    {
                        consumer.Publish();
                    }
                }
            }
            catch (Exception caught)
            {
                Volatile.Write(ref failure, caught);
            }
        });
        receiver.Start();
        Random sizes = new(5);
        for (ulong number = 0; number < Count && Volatile.Read(ref failure) is null;)
        {
            if (!producer.TryReserve(out RingSegments payload))
            {
                producer.Publish();
                Thread.Yield();
                continue;
            }

            uint length = (uint)sizes.Next(1, 3000);
            RingContent.Fill(payload, number, length);
            producer.Commit(length);
            number++;
            if (number % 5 == 0)
            {
                producer.Publish();
            }
        }

        producer.Publish();
        receiver.Join();
        Assert.Null(failure);
    }

    /// <summary>
    /// Many rings in one state, passed through by two threads side by side: they meet before each ring, so that the two
    /// halves run within some nanoseconds of each other. The rings share their data, which nobody looks at here.
    /// </summary>
    private static void Run(Action<RingProducer, RingConsumer> prepare, Func<RingProducer, RingConsumer, bool> movesOn,
        Func<RingProducer, RingConsumer, bool> goesToSleep)
    {
        using RingMemory memory = new();
        byte* lines = (byte*)NativeMemory.AlignedAlloc(2 * LineBytes * Instances, LineBytes);
        RingProducer[] producers = new RingProducer[Instances];
        RingConsumer[] consumers = new RingConsumer[Instances];
        bool[] notified = new bool[Instances];
        bool[] asleep = new bool[Instances];
        int[] places = new int[3 * 32]; // two counters, on cache lines of their own
        long end = Environment.TickCount64 + (long)_duration.TotalMilliseconds;
        long tried = 0;
        int lost = 0;
        while (lost == 0 && (tried == 0 || Environment.TickCount64 < end))
        {
            new Span<byte>(lines, 2 * LineBytes * Instances).Clear();
            for (int i = 0; i < Instances; i++)
            {
                RingLine* ofProducer = (RingLine*)(lines + (2 * LineBytes * i));
                RingLine* ofConsumer = (RingLine*)(lines + (2 * LineBytes * i) + LineBytes);
                producers[i] = new RingProducer(memory.Data, memory.RingBytes, ofProducer, ofConsumer);
                consumers[i] = new RingConsumer(memory.Data, memory.RingBytes, ofConsumer, ofProducer);
                prepare(producers[i], consumers[i]);
            }

            places[32] = places[64] = -1;
            Thread other = new(() => Pass(ref places[32], ref places[64], goesToSleep, asleep, 1));
            other.Start();
            Pass(ref places[64], ref places[32], movesOn, notified, 2);
            other.Join();
            for (int i = 0; i < Instances; i++)
            {
                lost += asleep[i] && !notified[i] ? 1 : 0;
            }

            tried += Instances;
        }

        NativeMemory.AlignedFree(lines);
        Assert.True(lost == 0, $"{lost} lost wake-ups in the last {Instances} of {tried} rounds");

        void Pass(ref int own, ref int peer, Func<RingProducer, RingConsumer, bool> half, bool[] answers, int seed)
        {
            Random random = new(seed);
            for (int i = 0; i < Instances; i++)
            {
                // Both lines in both caches: the loads will be quick, and the stores slow. That is where they change places.
                Volatile.Read(ref ((RingLine*)(lines + (2 * LineBytes * i)))->Index);
                Volatile.Read(ref ((RingLine*)(lines + (2 * LineBytes * i) + LineBytes))->Index);
                Volatile.Write(ref own, i);
                for (int spins = 0; Volatile.Read(ref peer) < i; spins++)
                {
                    // Where the other thread is not running, let it.
                    if (spins > 2000)
                    {
                        Thread.Yield();
                    }
                }

                for (int delay = random.Next(32); delay > 0; delay--)
                {
                    Volatile.Read(ref own);
                }

                answers[i] = half(producers[i], consumers[i]);
            }
        }
    }

    private static void Take(RingConsumer consumer)
    {
        while (consumer.TryPeek(out _))
        {
            consumer.Advance();
        }
    }
}
