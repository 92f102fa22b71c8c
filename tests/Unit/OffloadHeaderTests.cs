using System.Buffers.Binary;
using XenLoop.DataPath;
using XenLoop.Ring;
using Xunit;
using static XenLoop.DataPath.OffloadHeader;

namespace XenLoop.Tests.Unit;

/// <summary>The header before a received frame says what the frame says, and nothing of what a peer wishes.</summary>
public class OffloadHeaderTests
{
    private const int Super = 60_000;
    private const byte TCP = 6;
    private const byte UDP = 17;

    [Fact]
    public void A_checksum_goes_where_the_frame_has_it_wherever_the_peer_points()
    {
        // The port behind a firewall: offset 2 of the UDP header at 34.
        foreach ((int start, int offset) in new[] { (34, 2), (0, 0), (14, 10), (65535, 65535), (34, 6) })
        {
            byte[] head = Head(IPv4(UDP), flags: VIRTIO_NET_HDR_F_NEEDS_CSUM, start: start, offset: offset, headers: 9999);
            Assert.True(TryRebuild(head, 100, uso: true));
            Assert.Equal(new Header(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 34, 6), Header.Read(head));
        }
    }

    [Fact]
    public void A_super_packet_of_an_honest_kernel_arrives_as_it_was_sent()
    {
        byte[] head = Head(IPv4(TCP), VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN, segment: 1448, headers: 66);
        Assert.True(TryRebuild(head, Super, uso: false));
        Assert.Equal(new Header(VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_ECN, 66, 1448, 34, 16), Header.Read(head));
        head = Head(IPv6(TCP), VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV6, segment: 1428);
        Assert.True(TryRebuild(head, Super, uso: false));
        Assert.Equal(new Header(VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV6, 86, 1428, 54, 16), Header.Read(head));
        head = Head(IPv6(UDP, (60, 2), (0, 0)), VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP_L4, segment: 1200);
        Assert.True(TryRebuild(head, Super, uso: true));
        Assert.Equal(new Header(VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_UDP_L4, 54 + 32 + 8, 1200, 54 + 32, 6), Header.Read(head));
    }

    [Theory]
    [InlineData(3, 1400, true)] // UFO
    [InlineData(5, 1400, false)] // USO, not agreed on
    [InlineData(0x85, 1400, true)]
    [InlineData(0x80, 1400, true)]
    [InlineData(2, 1400, true)]
    [InlineData(0xff, 1400, true)]
    [InlineData(1, 0, true)]
    public void What_no_kernel_writes_ends_the_channel(byte type, ushort segment, bool uso) =>
        Assert.Throws<PeerViolationException>(() => TryRebuild(Head(IPv4(TCP), VIRTIO_NET_HDR_F_NEEDS_CSUM, type, segment), Super, uso));

    [Theory]
    [InlineData(VIRTIO_NET_HDR_GSO_TCPV4, UDP, false, 1448)]
    [InlineData(VIRTIO_NET_HDR_GSO_TCPV4, TCP, true, 1448)]
    [InlineData(VIRTIO_NET_HDR_GSO_TCPV6, TCP, false, 1448)]
    [InlineData(VIRTIO_NET_HDR_GSO_UDP_L4, TCP, false, 1448)]
    [InlineData(VIRTIO_NET_HDR_GSO_TCPV4, 132, false, 1448)] // SCTP
    [InlineData(VIRTIO_NET_HDR_GSO_TCPV4, TCP, false, 7)]
    [InlineData(VIRTIO_NET_HDR_GSO_UDP_L4, UDP, false, 400)]
    [InlineData(VIRTIO_NET_HDR_GSO_NONE, 132, false, 0)]
    public void A_frame_that_does_not_fit_its_header_is_refused(byte type, byte protocol, bool isIPv6, ushort segment) =>
        Assert.False(TryRebuild(Head(isIPv6 ? IPv6(protocol) : IPv4(protocol), VIRTIO_NET_HDR_F_NEEDS_CSUM, type, segment), Super, uso: true));

    [Fact]
    public void Flags_that_nobody_knows_are_dropped()
    {
        byte[] head = Head(IPv4(TCP), flags: 0xfe);
        Assert.True(TryRebuild(head, 100, uso: false));
        Assert.Equal(new Header(VIRTIO_NET_HDR_F_DATA_VALID, 0, 0, 0, 0, 0), Header.Read(head));
        head = Head(IPv4(TCP), flags: 0xff);
        Assert.True(TryRebuild(head, 100, uso: false));
        Assert.Equal(new Header(VIRTIO_NET_HDR_F_NEEDS_CSUM, 0, 0, 0, 34, 16), Header.Read(head));
    }

    [Fact]
    public void Random_headers_end_as_netback_would_have_them()
    {
        Random random = new(Seed: 4);
        byte[] protocols = [TCP, UDP, 0, 43, 44, 51, 60, 132, 1];
        byte[] types = [0, 0, 1, 4, 5, 3, 0x81, 0x84, 0x85, 0xff];
        int[] outcomes = new int[3];
        for (int i = 0; i < 300_000; i++)
        {
            byte[] frame = (random.Next(3)) switch
            {
                0 => IPv4(Pick(protocols)),
                1 => IPv6(Pick(protocols), [.. Enumerable.Range(0, random.Next(5)).Select(_ => (Pick([0, 43, 44, 51, 60]), (byte)random.Next(4)))]),
                _ => IPv4(TCP),
            };
            for (int flips = random.Next(4); flips > 0; flips--)
            {
                frame[random.Next(12, frame.Length)] = (byte)random.Next(256);
            }

            int cut = random.Next(4) == 0 ? random.Next(14, frame.Length) : frame.Length;
            bool super = cut == frame.Length && cut > MostBytes - Bytes;
            byte[] head = Head(frame[..cut], (byte)random.Next(4), Pick(types), (ushort)random.Next(0, 3000), random.Next(100), random.Next(100), random.Next(100));
            int length = super ? random.Next(head.Length - Bytes, 65_000) : head.Length - Bytes;
            bool uso = random.Next(2) == 0;
            byte[] full = new byte[length];
            head.AsSpan(Bytes).CopyTo(full);
            (int verdict, int start, int offset) = Netback.Take(Header.Read(head), full, uso);
            outcomes[verdict]++;
            Header before = Header.Read(head);
            switch (verdict)
            {
                case Netback.Close:
                    Assert.Throws<PeerViolationException>(() => TryRebuild(head, length, uso));
                    break;
                case Netback.Drop:
                    Assert.False(TryRebuild(head, length, uso), $"{before} {Convert.ToHexString(full.AsSpan(0, Math.Min(120, length)))}");
                    break;
                default:
                    Assert.True(TryRebuild(head, length, uso), $"{before} {Convert.ToHexString(full.AsSpan(0, Math.Min(120, length)))}");
                    Header after = Header.Read(head);
                    Assert.Equal((start, offset), (after.Start, after.Offset));
                    Assert.Equal(before.Type, after.Type);
                    Assert.Equal((before.Flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0, after.Flags == VIRTIO_NET_HDR_F_NEEDS_CSUM);
                    Assert.InRange(after.Headers, 0, length);
                    break;
            }
        }

        Assert.All(outcomes, o => Assert.InRange(o, 3_000, 300_000));

        byte Pick(byte[] of) => of[random.Next(of.Length)];
    }

    private static byte[] Head(byte[] frame, byte flags = 0, byte type = 0, ushort segment = 0, int headers = 0, int start = 0, int offset = 0)
    {
        byte[] head = new byte[Math.Min(Bytes + frame.Length, MostBytes)];
        head[0] = flags;
        head[1] = type;
        BinaryPrimitives.WriteUInt16LittleEndian(head.AsSpan(2), (ushort)headers);
        BinaryPrimitives.WriteUInt16LittleEndian(head.AsSpan(4), segment);
        BinaryPrimitives.WriteUInt16LittleEndian(head.AsSpan(6), (ushort)start);
        BinaryPrimitives.WriteUInt16LittleEndian(head.AsSpan(8), (ushort)offset);
        frame.AsSpan(0, head.Length - Bytes).CopyTo(head.AsSpan(Bytes));
        return head;
    }

    /// <summary>TCP with timestamps, or UDP, or anything.</summary>
    private static byte[] IPv4(byte protocol)
    {
        byte[] frame = new byte[300];
        BinaryPrimitives.WriteUInt16BigEndian(frame.AsSpan(12), 0x0800);
        frame[14] = 0x45;
        frame[14 + 6] = 0x40; // not to be fragmented
        frame[14 + 9] = protocol;
        frame[34 + 12] = 0x80;
        return frame;
    }

    private static byte[] IPv6(byte protocol, params (byte Protocol, byte Units)[] extensions)
    {
        byte[] frame = new byte[400];
        BinaryPrimitives.WriteUInt16BigEndian(frame.AsSpan(12), 0x86dd);
        BinaryPrimitives.WriteUInt16BigEndian(frame.AsSpan(18), 10_000);
        frame[14] = 0x60;
        int next = 14 + 6, at = 54;
        foreach ((byte extension, byte units) in extensions)
        {
            frame[next] = extension;
            next = at;
            frame[at + 1] = extension == 44 ? (byte)0 : units;
            at += extension == 51 ? (units + 2) * 4 : extension == 44 ? 8 : (units + 1) * 8;
        }

        frame[next] = protocol;
        frame[at + 12] = 0x80;
        return frame;
    }

    private readonly record struct Header(byte Flags, byte Type, ushort Headers, ushort Segment, ushort Start, ushort Offset)
    {
        public static Header Read(ReadOnlySpan<byte> head) => new(
            head[0],
            head[1],
            BinaryPrimitives.ReadUInt16LittleEndian(head[2..]),
            BinaryPrimitives.ReadUInt16LittleEndian(head[4..]),
            BinaryPrimitives.ReadUInt16LittleEndian(head[6..]),
            BinaryPrimitives.ReadUInt16LittleEndian(head[8..]));
    }

    /// <summary>
    /// netback, told straight: xenvif_set_skb_gso, checksum_setup, skb_checksum_setup. Where it is more patient than we are is said by the
    /// name of the rule.
    /// </summary>
    private static class Netback
    {
        public const int Deliver = 0;
        public const int Drop = 1;
        public const int Close = 2;

        public static (int Verdict, int Start, int Offset) Take(Header header, byte[] frame, bool uso)
        {
            bool needs = (header.Flags & 1) != 0, isGso = header.Type != 0;
            int kind = header.Type & 0x7f;
            if (isGso)
            {
                bool known = kind is 1 or 4 || (kind == 5 && (header.Type & 0x80) == 0 && uso);
                if (!known || header.Segment == 0)
                {
                    return (Close, 0, 0);
                }

                if (StricterSuperPacketsHaveAChecksumToFillIn(needs))
                {
                    return (Drop, 0, 0);
                }
            }

            if (!needs)
            {
                return (Deliver, 0, 0);
            }

            (int Protocol, int At, bool IPv6)? found = (frame[12] << 8 | frame[13]) switch
            {
                0x0800 => IPv4(frame),
                0x86dd => IPv6(frame),
                _ => null,
            };
            if (found is not { } transport)
            {
                return (Drop, 0, 0);
            }

            int length = transport.Protocol == 6 ? 20 : transport.Protocol == 17 ? 8 : int.MaxValue / 2;
            if (transport.At + length > frame.Length || StricterHeadersLieWithinWhatIsCopied(transport.At + length))
            {
                return (Drop, 0, 0);
            }

            if (isGso && StricterSuperPacketsAreOfTheirKind(header, transport, kind, frame))
            {
                return (Drop, 0, 0);
            }

            return (Deliver, transport.At, transport.Protocol == 6 ? 16 : 6);
        }

        private static bool StricterSuperPacketsHaveAChecksumToFillIn(bool needs) => !needs;

        private static bool StricterHeadersLieWithinWhatIsCopied(int end) => end > MostBytes - Bytes;

        private static bool StricterSuperPacketsAreOfTheirKind(Header header, (int Protocol, int At, bool IPv6) transport, int kind, byte[] frame)
        {
            if ((transport.Protocol, transport.IPv6) != (kind == 5 ? UDP : TCP, kind == 5 ? transport.IPv6 : kind == 4))
            {
                return true;
            }

            if (transport.Protocol == UDP)
            {
                return frame.Length - transport.At - 8 > header.Segment * UdpSegmentsMost;
            }

            int headers = frame[transport.At + 12] / 16 * 4;
            return headers < 20 || header.Segment < TcpSegmentLeast || transport.At + headers > Math.Min(frame.Length, MostBytes - Bytes);
        }

        private static (int Protocol, int At, bool IPv6)? IPv4(byte[] frame)
        {
            if (frame.Length < 34)
            {
                return null;
            }

            int header = frame[14] % 16 * 4;
            bool isFragment = ((frame[20] << 8 | frame[21]) & 0x3fff) != 0;
            // (The IP layer itself refuses a shorter header, before anybody looks at the checksum.)
            return isFragment || header < 20 ? null : (frame[23], 14 + header, false);
        }

        private static (int Protocol, int At, bool IPv6)? IPv6(byte[] frame)
        {
            if (frame.Length < 54)
            {
                return null;
            }

            int at = 40, length = 40 + (frame[18] << 8 | frame[19]), next = frame[20];
            byte[] packet = frame[14..];
            while (at <= length)
            {
                if (next is not (0 or 43 or 44 or 51 or 60))
                {
                    return (next, 14 + at, true);
                }

                if (at + 8 > packet.Length || StricterHeadersLieWithinWhatIsCopied(14 + at + 8))
                {
                    return null;
                }

                if (next == 44 && ((packet[at + 2] << 8 | packet[at + 3]) & 0xfff9) != 0)
                {
                    return null;
                }

                int size = next switch { 44 => 8, 51 => (packet[at + 1] + 2) * 4, _ => (packet[at + 1] + 1) * 8 };
                next = packet[at];
                at += size;
            }

            return null;
        }
    }
}
