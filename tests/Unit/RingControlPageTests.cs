using System.Runtime.InteropServices;
using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The layouts two daemons of different builds must agree on. A number that changes here needs a new version.</summary>
public sealed unsafe class RingControlPageTests
{
    [Theory]
    [InlineData(nameof(ControlPage.Magic), 0x000)]
    [InlineData(nameof(ControlPage.Version), 0x004)]
    [InlineData(nameof(ControlPage.RingBytes), 0x008)]
    [InlineData(nameof(ControlPage.Session), 0x010)]
    [InlineData(nameof(ControlPage.ListenerAlive), 0x080)]
    [InlineData(nameof(ControlPage.ConnectorAlive), 0x100)]
    [InlineData(nameof(ControlPage.Producer0), 0x180)]
    [InlineData(nameof(ControlPage.Consumer0), 0x200)]
    [InlineData(nameof(ControlPage.Producer1), 0x280)]
    [InlineData(nameof(ControlPage.Consumer1), 0x300)]
    [InlineData(nameof(ControlPage.RingReferences), 0x800)]
    public void FieldsLieWhereTheProtocolPutsThem(string field, int offset) =>
        Assert.Equal(offset, (int)Marshal.OffsetOf<ControlPage>(field));

    [Fact]
    public void PageAndLineHaveTheSizesOfTheProtocol()
    {
        Assert.Equal(4096, sizeof(ControlPage));
        Assert.Equal(12, sizeof(RingLine));
        Assert.Equal(0, (int)Marshal.OffsetOf<RingLine>(nameof(RingLine.Index)));
        Assert.Equal(4, (int)Marshal.OffsetOf<RingLine>(nameof(RingLine.WakeAt)));
        Assert.Equal(8, (int)Marshal.OffsetOf<RingLine>(nameof(RingLine.Stale)));
        Assert.Equal(ControlPage.Size - 0x800, ControlPage.MaxRingPages * sizeof(uint));
        Assert.Equal("XLP1"u8, MemoryMarshal.AsBytes([ControlPage.MagicValue]));
        Assert.Equal(1u, ControlPage.CurrentVersion);
    }

    [Fact]
    public void WhatTwoSidesWriteIsNeverInOnePairOfCacheLines()
    {
        int[] offsets = [0, ControlPage.ListenerAliveOffset, ControlPage.ConnectorAliveOffset,
            (int)Marshal.OffsetOf<ControlPage>(nameof(ControlPage.Producer0)),
            (int)Marshal.OffsetOf<ControlPage>(nameof(ControlPage.Consumer0)),
            (int)Marshal.OffsetOf<ControlPage>(nameof(ControlPage.Producer1)),
            (int)Marshal.OffsetOf<ControlPage>(nameof(ControlPage.Consumer1)),
            (int)Marshal.OffsetOf<ControlPage>(nameof(ControlPage.RingReferences))];
        Assert.Equal(offsets.Length, offsets.Select(offset => offset / 128).Distinct().Count());
    }

    [Theory]
    [InlineData(128 * 1024, true)]
    [InlineData(256 * 1024, true)]
    [InlineData(1024 * 1024, true)]
    [InlineData(0, false)]
    [InlineData(1, false)]
    [InlineData(64 * 1024, false)]
    [InlineData((128 * 1024) - 1, false)]
    [InlineData((128 * 1024) + 1, false)]
    [InlineData(192 * 1024, false)]
    [InlineData(2 * 1024 * 1024, false)]
    [InlineData(0x80000000, false)]
    [InlineData(0xffffffff, false)]
    public void OnlyPowersOfTwoWithinTheLimitsAreRingSizes(uint bytes, bool valid) =>
        Assert.Equal(valid, ControlPage.IsValidRingSize(bytes));

    [Fact]
    public void EveryRingThatIsAcceptedTakesTheGreatestRecord()
    {
        Assert.True(RingRecord.MaxBytes <= ControlPage.MinRingBytes);
        Assert.Equal(0u, RingRecord.MaxBytes % 8);
        // virtio_net_hdr with a hash report (20), Ethernet header with two VLAN tags, the longest IP packet.
        Assert.True(RingRecord.MaxPayload >= 20 + 22 + 65535);
    }

    [Theory]
    [InlineData(1, 16)]
    [InlineData(8, 16)]
    [InlineData(9, 24)]
    [InlineData(RingRecord.MaxPayload, RingRecord.MaxBytes)]
    public void RecordsTakeHeaderPayloadAndPadding(uint payload, uint bytes) =>
        Assert.Equal(bytes, RingRecord.BytesFor(payload));

    [Fact]
    public void ARecordInMemoryIsItsLengthAndItsPayload()
    {
        using RingMemory memory = new();
        new Span<byte>(memory.Data, 64).Fill(0xee);
        (RingProducer producer, _) = memory.Open();
        Assert.True(producer.TryReserve(out RingSegments payload));
        "hello"u8.CopyTo(new Span<byte>(payload.First, 5));
        producer.Commit(5);

        Assert.Equal(0u, memory.ProducerLine->Index);
        producer.Publish();

        Assert.Equal(16u, memory.ProducerLine->Index);
        Assert.Equal("\u0005\0\0\0\0\0\0\0hello"u8, new ReadOnlySpan<byte>(memory.Data, 13));
    }
}
