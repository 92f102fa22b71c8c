using System.Runtime.CompilerServices;
using Tmds.Linux;
using XenLoop.Ring;

namespace XenLoop.Tests.Unit;

/// <summary>
/// A control page and one ring, each between two pages that nobody may touch: an access one byte outside ends the test
/// run with a segmentation fault instead of passing unnoticed.
/// </summary>
internal sealed unsafe class RingMemory : IDisposable
{
    private const uint Page = ControlPage.PageSize;

    private readonly byte* _base;
    private readonly size_t _mapped;

    public RingMemory(uint ringBytes = ControlPage.MinRingBytes)
    {
        RingBytes = ringBytes;
        _mapped = (4 * Page) + ringBytes;
        void* memory = LibC.mmap(null, _mapped, LibC.PROT_NONE, LibC.MAP_PRIVATE | LibC.MAP_ANONYMOUS, -1, 0);
        Require((nint)memory != -1);
        _base = (byte*)memory;
        Control = (ControlPage*)(_base + Page);
        Data = _base + (3 * Page);
        Require(LibC.mprotect(Control, Page, LibC.PROT_READ | LibC.PROT_WRITE) == 0);
        Require(LibC.mprotect(Data, ringBytes, LibC.PROT_READ | LibC.PROT_WRITE) == 0);
    }

    public uint RingBytes { get; }

    public ControlPage* Control { get; }

    public byte* Data { get; }

    public RingLine* ProducerLine => &Control->Producer0;

    public RingLine* ConsumerLine => &Control->Consumer0;

    /// <summary>Fresh ends; the shared words are zeroed, as the listener leaves them.</summary>
    public (RingProducer Producer, RingConsumer Consumer) Open()
    {
        *ProducerLine = default;
        *ConsumerLine = default;
        return (new RingProducer(Data, RingBytes, ProducerLine, ConsumerLine),
            new RingConsumer(Data, RingBytes, ConsumerLine, ProducerLine));
    }

    /// <summary>Ends that have already moved <paramref name="index"/> bytes (a multiple of 8) and stand empty.</summary>
    public (RingProducer Producer, RingConsumer Consumer) OpenAt(uint index)
    {
        (RingProducer producer, RingConsumer consumer) = Open();
        Index(producer) = Published(producer) = Consumed(producer) = index;
        Index(consumer) = Published(consumer) = Produced(consumer) = index;
        // As if both had last asked for an event here: zero could lie ahead again.
        *ProducerLine = new RingLine { Index = index, WakeAt = index };
        *ConsumerLine = new RingLine { Index = index, WakeAt = index };
        return (producer, consumer);
    }

    /// <summary>Moves an empty ring on by <paramref name="bytes"/> without touching payloads. 8 alone is no record.</summary>
    public static void Move(RingProducer producer, RingConsumer consumer, ulong bytes)
    {
        Require(bytes % 8 == 0 && bytes != 8);
        while (bytes != 0)
        {
            // Never leave a rest of 8: the smallest record takes 16.
            ulong step = Math.Min(bytes, RingRecord.MaxBytes);
            step = bytes - step == 8 ? step - 8 : step;
            Require(producer.TryReserve(out _));
            producer.Commit((uint)step - RingRecord.HeaderBytes);
            producer.Publish();
            Require(consumer.TryPeek(out _));
            consumer.Advance();
            consumer.Publish();
            bytes -= step;
        }
    }

    /// <summary>Throws unless both segments lie inside the ring.</summary>
    public void CheckInside(in RingSegments segments)
    {
        CheckInside(segments.First, segments.FirstLength);
        CheckInside(segments.Second, segments.SecondLength);
        if (segments.Length > RingBytes)
        {
            throw new InvalidOperationException($"segments of {segments.Length} bytes");
        }
    }

    public void Dispose() => Require(LibC.munmap(_base, _mapped) == 0);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_index")]
    private static extern ref uint Index(RingProducer producer);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_published")]
    private static extern ref uint Published(RingProducer producer);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_consumed")]
    private static extern ref uint Consumed(RingProducer producer);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_index")]
    internal static extern ref uint Index(RingConsumer consumer);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_published")]
    private static extern ref uint Published(RingConsumer consumer);

    [UnsafeAccessor(UnsafeAccessorKind.Field, Name = "_produced")]
    private static extern ref uint Produced(RingConsumer consumer);

    // No assertion of xunit's: the fuzzer has this memory too.
    private static void Require(bool condition, [CallerArgumentExpression(nameof(condition))] string? what = null)
    {
        if (!condition)
        {
            throw new InvalidOperationException($"not so: {what}");
        }
    }

    private void CheckInside(byte* start, uint length)
    {
        if (length != 0 && (start < Data || start > Data + RingBytes || length > Data + RingBytes - start))
        {
            throw new InvalidOperationException($"segment of {length} bytes at offset {start - Data}");
        }
    }
}
