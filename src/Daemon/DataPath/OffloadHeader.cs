using System.Buffers.Binary;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>
/// The virtio_net_hdr before a received frame, which has the local kernel fill in a checksum and cut super-packets up. The peer's says
/// only what it wishes; where the checksum lies and how long the headers are is found in the frame, as netback finds it
/// (skb_checksum_setup): a kernel that believed the peer would write two bytes wherever the peer likes, behind its own firewall.
/// <para>What no peer's kernel writes (a kind of super-packet that this TAP never said it takes, or one cut into nothing) ends the
/// channel, as netback ends a vif. A frame that does not fit its header is refused, as netback drops it.</para>
/// </summary>
internal static class OffloadHeader
{
    public const int Bytes = 10;

    /// <summary>So much of a record is copied out of the ring at once, header included. Where the transport header is not within it,
    /// behind a chain of IPv6 extension headers, nothing can be filled in.</summary>
    public const int MostBytes = 256;

    // linux/virtio_net.h
    internal const byte VIRTIO_NET_HDR_F_NEEDS_CSUM = 1;
    internal const byte VIRTIO_NET_HDR_F_DATA_VALID = 2;
    internal const byte VIRTIO_NET_HDR_GSO_NONE = 0;
    internal const byte VIRTIO_NET_HDR_GSO_TCPV4 = 1;
    internal const byte VIRTIO_NET_HDR_GSO_TCPV6 = 4;
    internal const byte VIRTIO_NET_HDR_GSO_UDP_L4 = 5;
    internal const byte VIRTIO_NET_HDR_GSO_ECN = 0x80;

    /// <summary>Linux sends no smaller segments: TCP_MIN_GSO_SIZE of net/tcp.h, and of UDP no more of them: UDP_MAX_SEGMENTS of linux/udp.h.</summary>
    internal const int TcpSegmentLeast = 8;
    internal const int UdpSegmentsMost = 128;

    private const int EthernetBytes = 14;
    private const int IPv4Bytes = 20;
    private const int IPv6Bytes = 40;
    private const int TcpBytes = 20;
    private const int UdpBytes = 8;
    private const int TcpChecksum = 16;
    private const int UdpChecksum = 6;
    private const ushort ETH_P_IP = 0x0800;
    private const ushort ETH_P_IPV6 = 0x86dd;
    private const byte IPPROTO_TCP = 6;
    private const byte IPPROTO_UDP = 17;

    /// <summary>Puts in the place of the peer's header one that fits the frame. Tens of instructions; allocates nothing.</summary>
    /// <param name="head">The first bytes of the record, as many as there are of <see cref="MostBytes"/>, out of the peer's reach; at least those of the Ethernet header.</param>
    /// <param name="frameBytes">Of the whole frame, without the header.</param>
    /// <param name="uso">UDP super-packets were agreed on.</param>
    /// <returns>False: not to be delivered.</returns>
    /// <exception cref="PeerViolationException">No peer's kernel writes such a header.</exception>
    public static bool TryRebuild(Span<byte> head, int frameBytes, bool uso)
    {
        byte flags = head[0];
        byte type = head[1];
        if (type == VIRTIO_NET_HDR_GSO_NONE && (flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0)
        {
            Write(head, (byte)(flags & VIRTIO_NET_HDR_F_DATA_VALID), VIRTIO_NET_HDR_GSO_NONE, 0, 0, 0, 0);
            return true;
        }

        ushort segment = BinaryPrimitives.ReadUInt16LittleEndian(head[4..]);
        if (type != VIRTIO_NET_HDR_GSO_NONE && !(IsAgreed(type, uso) && segment != 0))
        {
            throw new PeerViolationException($"super-packet of kind {type} in segments of {segment} bytes");
        }

        ReadOnlySpan<byte> frame = head[Bytes..];
        if ((flags & VIRTIO_NET_HDR_F_NEEDS_CSUM) == 0 || !TryFindTransport(frame, out int transport, out byte protocol, out bool isIPv6))
        {
            return false;
        }

        int checksum, headers;
        if (protocol == IPPROTO_TCP && frame.Length >= transport + TcpBytes)
        {
            checksum = TcpChecksum;
            headers = transport + ((frame[transport + 12] >> 4) * 4);
        }
        else if (protocol == IPPROTO_UDP && frame.Length >= transport + UdpBytes)
        {
            checksum = UdpChecksum;
            headers = transport + UdpBytes;
        }
        else
        {
            return false;
        }

        if (type == VIRTIO_NET_HDR_GSO_NONE)
        {
            Write(head, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_NONE, 0, 0, transport, checksum);
            return true;
        }

        int payload = frameBytes - headers;
        bool fits = (type & ~VIRTIO_NET_HDR_GSO_ECN) switch
        {
            VIRTIO_NET_HDR_GSO_TCPV4 => protocol == IPPROTO_TCP && !isIPv6,
            VIRTIO_NET_HDR_GSO_TCPV6 => protocol == IPPROTO_TCP && isIPv6,
            _ => protocol == IPPROTO_UDP && payload <= segment * UdpSegmentsMost,
        };
        if (!fits || headers > frame.Length || (protocol == IPPROTO_TCP && (headers < transport + TcpBytes || segment < TcpSegmentLeast)))
        {
            return false;
        }

        Write(head, VIRTIO_NET_HDR_F_NEEDS_CSUM, type, headers, segment, transport, checksum);
        return true;
    }

    /// <summary>Whether the place of the checksum is the one where <see cref="TryRebuild"/> finds it.</summary>
    /// <param name="head">See <see cref="TryRebuild"/>; <see cref="VIRTIO_NET_HDR_F_NEEDS_CSUM"/> is set.</param>
    public static bool IsOuter(ReadOnlySpan<byte> head) =>
        TryFindTransport(head[Bytes..], out int transport, out byte protocol, out _)
        && BinaryPrimitives.ReadUInt16LittleEndian(head[6..]) == transport
        && BinaryPrimitives.ReadUInt16LittleEndian(head[8..]) == protocol switch { IPPROTO_TCP => TcpChecksum, IPPROTO_UDP => UdpChecksum, _ => 0 };

    private static bool IsAgreed(byte type, bool uso) =>
        (type & ~VIRTIO_NET_HDR_GSO_ECN) is VIRTIO_NET_HDR_GSO_TCPV4 or VIRTIO_NET_HDR_GSO_TCPV6
        || (type == VIRTIO_NET_HDR_GSO_UDP_L4 && uso);

    /// <summary>As skb_checksum_setup: of what is no fragment.</summary>
    private static bool TryFindTransport(ReadOnlySpan<byte> frame, out int transport, out byte protocol, out bool isIPv6)
    {
        (transport, protocol, isIPv6) = (0, 0, false);
        ushort etherType = BinaryPrimitives.ReadUInt16BigEndian(frame[12..]);
        if (etherType == ETH_P_IP)
        {
            if (frame.Length < EthernetBytes + IPv4Bytes)
            {
                return false;
            }

            int header = (frame[EthernetBytes] & 0xf) * 4;
            transport = EthernetBytes + header;
            protocol = frame[EthernetBytes + 9];
            // More fragments, or an offset.
            return header >= IPv4Bytes && (BinaryPrimitives.ReadUInt16BigEndian(frame[(EthernetBytes + 6)..]) & 0x3fff) == 0;
        }

        isIPv6 = true;
        return etherType == ETH_P_IPV6 && TryFindTransport6(frame, out transport, out protocol);
    }

    private static bool TryFindTransport6(ReadOnlySpan<byte> frame, out int transport, out byte protocol)
    {
        (transport, protocol) = (EthernetBytes + IPv6Bytes, 0);
        if (frame.Length < transport)
        {
            return false;
        }

        protocol = frame[EthernetBytes + 6];
        int end = transport + BinaryPrimitives.ReadUInt16BigEndian(frame[(EthernetBytes + 4)..]);
        // Each is of eight bytes at least, within what was copied.
        while (protocol is not (IPPROTO_TCP or IPPROTO_UDP))
        {
            if (frame.Length < transport + 8)
            {
                return false;
            }

            switch (protocol)
            {
                case 0 or 43 or 60: // hop-by-hop, routing, destination options
                    protocol = frame[transport];
                    transport += (frame[transport + 1] + 1) * 8;
                    break;
                case 51: // authentication
                    protocol = frame[transport];
                    transport += (frame[transport + 1] + 2) * 4;
                    break;
                case 44 when (BinaryPrimitives.ReadUInt16BigEndian(frame[(transport + 2)..]) & 0xfff9) == 0: // a fragment that is the whole
                    protocol = frame[transport];
                    transport += 8;
                    break;
                default:
                    return false;
            }
        }

        return transport <= end;
    }

    private static void Write(Span<byte> head, byte flags, byte type, int headers, int segment, int checksumStart, int checksumOffset)
    {
        BinaryPrimitives.WriteUInt64LittleEndian(head, flags | ((ulong)type << 8) | ((ulong)headers << 16) | ((ulong)segment << 32) | ((ulong)checksumStart << 48));
        BinaryPrimitives.WriteUInt16LittleEndian(head[8..], (ushort)checksumOffset);
    }
}
