using System.Buffers.Binary;
using XenLoop.DataPath;
using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Checksums that the receiver would not find are filled in by the sender; those that it finds are left to it.</summary>
public unsafe class InnerChecksumTests
{
    private const int Header = OffloadHeader.Bytes;
    private const int OuterTransport = 34;
    private const int Inner = OuterTransport + 8 + 8 + 14; // VXLAN

    [Theory]
    [InlineData(1400, 0)]
    [InlineData(1401, 0)]
    [InlineData(1400, 90)]
    [InlineData(1401, 91)] // the ring ends within a word
    [InlineData(1401, Header + Inner + 20 + 16 + 1)] // and between the checksum's two bytes
    [InlineData(1400, 40)]
    public void That_of_a_packet_within_another_is_filled_in(int payload, int end)
    {
        byte[] record = Vxlan(payload);
        byte[] wanted = [.. record];
        int start = Header + Inner + 20;
        BinaryPrimitives.WriteUInt16BigEndian(wanted.AsSpan(start + 16), Checksum(wanted.AsSpan(start)));
        wanted[0] = 0;
        Complete(record, end);
        Assert.Equal(wanted, record);
    }

    [Fact]
    public void That_which_the_receiver_finds_is_left_to_it()
    {
        byte[] record = Vxlan(100);
        Point(record, OuterTransport, 6);
        byte[] before = [.. record];
        Complete(record, 0);
        Assert.Equal(before, record);
    }

    [Fact]
    public void A_place_outside_of_the_record_is_left_alone()
    {
        byte[] record = Vxlan(100);
        Point(record, 5000, 16);
        byte[] before = [.. record];
        Complete(record, 0);
        Assert.Equal(before, record);
    }

    private static void Complete(byte[] record, int end)
    {
        fixed (byte* bytes = record)
        {
            end = end == 0 ? record.Length : end;
            RingSegments segments = new() { First = bytes, FirstLength = (uint)end, Second = bytes + end, SecondLength = (uint)(record.Length - end) };
            InnerChecksum.Complete(segments, record.AsSpan(0, Math.Min(record.Length, OffloadHeader.MostBytes)));
        }
    }

    /// <summary>TCP in IP in Ethernet in VXLAN; the inner checksum is to be filled in, and its place holds what stands for the sum of the pseudo-header.</summary>
    private static byte[] Vxlan(int payload)
    {
        byte[] record = new byte[Header + Inner + 20 + 20 + payload];
        new Random(payload).NextBytes(record);
        record.AsSpan(0, Header).Clear();
        record[0] = OffloadHeader.VIRTIO_NET_HDR_F_NEEDS_CSUM;
        Span<byte> frame = record.AsSpan(Header);
        BinaryPrimitives.WriteUInt16BigEndian(frame[12..], 0x0800);
        frame[14] = 0x45;
        frame[14 + 6] = 0x40;
        frame[14 + 7] = 0;
        frame[14 + 9] = 17;
        Point(record, Inner + 20, 16);
        return record;
    }

    private static void Point(byte[] record, int start, int offset)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(record.AsSpan(6), (ushort)start);
        BinaryPrimitives.WriteUInt16LittleEndian(record.AsSpan(8), (ushort)offset);
    }

    /// <summary>RFC 1071, word by word.</summary>
    private static ushort Checksum(ReadOnlySpan<byte> bytes)
    {
        uint sum = 0;
        for (int i = 0; i < bytes.Length; i++)
        {
            sum += (uint)bytes[i] << ((i & 1) == 0 ? 8 : 0);
            sum = (sum & 0xffff) + (sum >> 16);
        }

        return (ushort)~sum is 0 ? ushort.MaxValue : (ushort)~sum;
    }
}
