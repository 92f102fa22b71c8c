using System.Buffers.Binary;
using Tmds.Linux;
using XenLoop.Interop.Linux;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>What both directions know of frames as TAPs have them: a virtio_net_hdr, then Ethernet.</summary>
internal static unsafe class Frames
{
    // A burst is published once. Bounded, so that a peer that is awake starts on it early and no channel starves another.
    public const int BurstPackets = 32;
    public const uint BurstBytes = 256 * 1024;

    public const int VnetHeaderBytes = TapDevice.VnetHeaderSize;
    public const int HeaderBytes = VnetHeaderBytes + 14; // with the Ethernet header
    public const int EtherTypeOffset = VnetHeaderBytes + 12;

    private const int DestinationOffset = VnetHeaderBytes;
    private const int SourceOffset = VnetHeaderBytes + 6;

    public static ulong Destination(ReadOnlySpan<byte> header) => Mac(header[DestinationOffset..]);

    public static ulong Source(ReadOnlySpan<byte> header) => Mac(header[SourceOffset..]);

    /// <returns>How many of <paramref name="vectors"/> the segments take: 1 or 2.</returns>
    public static int Vectors(in RingSegments segments, iovec* vectors)
    {
        vectors[0].iov_base = segments.First;
        vectors[0].iov_len = segments.FirstLength;
        vectors[1].iov_base = segments.Second;
        vectors[1].iov_len = segments.SecondLength;
        return segments.SecondLength == 0 ? 1 : 2;
    }

    private static ulong Mac(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt64LittleEndian(bytes) & 0xffff_ffff_ffff;
}
