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

    /// <summary>The longest frame of TCP that carries no data: headers of IPv4 and TCP with all options.</summary>
    public const int MostWithoutData = HeaderBytes + 60 + 60;

    private const ushort ETH_P_IP = 0x0800;
    private const ushort ETH_P_IPV6 = 0x86dd;
    private const byte IPPROTO_TCP = 6;

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

    /// <summary>Whether somebody may wait for this frame: false for TCP's bare acknowledgements. A hint, of what anybody may have written.</summary>
    /// <param name="frame">All of it, or <see cref="MostWithoutData"/> bytes.</param>
    /// <param name="length">Of all of it.</param>
    public static bool CarriesData(ReadOnlySpan<byte> frame, uint length)
    {
        const int Ip = HeaderBytes;
        if (length > MostWithoutData || length < Ip + 20 + 20)
        {
            return true;
        }

        switch (BinaryPrimitives.ReadUInt16BigEndian(frame[EtherTypeOffset..]))
        {
            case ETH_P_IP when frame[Ip + 9] == IPPROTO_TCP:
                int tcp = (frame[Ip] & 0xf) * 4;
                return Ip + tcp + 20 > frame.Length || BinaryPrimitives.ReadUInt16BigEndian(frame[(Ip + 2)..]) > tcp + TcpHeader(frame[(Ip + tcp)..]);
            case ETH_P_IPV6 when frame[Ip + 6] == IPPROTO_TCP && frame.Length >= Ip + 40 + 20:
                return BinaryPrimitives.ReadUInt16BigEndian(frame[(Ip + 4)..]) > TcpHeader(frame[(Ip + 40)..]);
            default:
                return true;
        }
    }

    private static int TcpHeader(ReadOnlySpan<byte> tcp) => (tcp[12] >> 4) * 4;

    private static ulong Mac(ReadOnlySpan<byte> bytes) => BinaryPrimitives.ReadUInt64LittleEndian(bytes) & 0xffff_ffff_ffff;
}
