using System.Buffers.Binary;
using XenLoop.Ring;
using static XenLoop.DataPath.OffloadHeader;

namespace XenLoop.DataPath;

/// <summary>
/// A checksum that the TAP's kernel has left to the device, and that lies where the receiver does not look for one: that of a packet within another (a
/// tunnel's: VXLAN, GENEVE, GRE, IP in IP). A receiver takes no peer's word for the place, and netfront has no such packets, for the kernel fills
/// these in before it. So they are filled in here. (Linux 6.17 and later leave them to TAPs.)
/// </summary>
internal static unsafe class InnerChecksum
{
    /// <summary>Fills it in, if there is one.</summary>
    /// <param name="record">The whole record, header included, as <see cref="VIRTIO_NET_HDR_F_NEEDS_CSUM"/> says of it.</param>
    /// <param name="head">Its first bytes, as many as there are of <see cref="MostBytes"/>.</param>
    public static void Complete(in RingSegments record, ReadOnlySpan<byte> head)
    {
        if (head[1] != VIRTIO_NET_HDR_GSO_NONE || IsOuter(head))
        {
            return;
        }

        int start = Bytes + BinaryPrimitives.ReadUInt16LittleEndian(head[6..]);
        int place = start + BinaryPrimitives.ReadUInt16LittleEndian(head[8..]);
        if (place + sizeof(ushort) > record.Length)
        {
            return;
        }

        // As skb_checksum_help: the place holds the sum of the pseudo-header. A sum of 16-bit words is the same in either byte order.
        RingSegments covered = record.Skip((uint)start);
        ulong sum = Sum(new(covered.First, (int)covered.FirstLength), odd: false)
            + Sum(new(covered.Second, (int)covered.SecondLength), odd: (covered.FirstLength & 1) != 0);
        ushort checksum = (ushort)~Fold(sum);
        // Zero says that there is none, with UDP.
        checksum = checksum == 0 ? ushort.MaxValue : checksum;
        *At(record, place) = (byte)checksum;
        *At(record, place + 1) = (byte)(checksum >> 8);
        *At(record, 0) = 0;
    }

    /// <param name="bytes">Some of what is summed up.</param>
    /// <param name="odd">They begin with the second byte of a word.</param>
    private static ulong Sum(ReadOnlySpan<byte> bytes, bool odd)
    {
        ulong sum = 0;
        while (bytes.Length >= sizeof(uint))
        {
            sum += BinaryPrimitives.ReadUInt32LittleEndian(bytes);
            bytes = bytes[sizeof(uint)..];
        }

        for (int i = 0; i < bytes.Length; i++)
        {
            sum += (ulong)bytes[i] << (8 * (i & 1));
        }

        ushort folded = Fold(sum);
        return odd ? BinaryPrimitives.ReverseEndianness(folded) : folded;
    }

    private static ushort Fold(ulong sum)
    {
        while (sum > ushort.MaxValue)
        {
            sum = (sum & ushort.MaxValue) + (sum >> 16);
        }

        return (ushort)sum;
    }

    private static byte* At(in RingSegments record, int position) =>
        position < record.FirstLength ? record.First + position : record.Second + (position - record.FirstLength);
}
