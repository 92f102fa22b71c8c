using System.Buffers.Binary;
using System.Net;
using System.Net.Sockets;

namespace XenLoop.DataPath;

/// <summary>
/// The source addresses that a peer may use, as Dom0's filter would see to it on netfront's way. Looks at copies of headers alone; allocates nothing
/// once it is made.
/// </summary>
internal sealed class SourceAddresses
{
    /// <summary>Bytes of a frame, from its Ethernet header on, that are enough to decide: room for all that is looked at, and some of IPv6's extensions.</summary>
    public const int HeaderBytes = 192;

    private const int EtherTypeOffset = 12, PacketOffset = 14;
    private const ushort ETH_P_IP = 0x0800, ETH_P_ARP = 0x0806, ETH_P_IPV6 = 0x86dd;
    private const int IPv4SourceOffset = 12, IPv4HeaderBytes = 20;
    private const int ArpSenderOffset = 14, ArpBytes = 28;
    private const int IPv6NextHeaderOffset = 6, IPv6SourceOffset = 8, IPv6HeaderBytes = 40, IPv6AddressBytes = 16;
    private const byte HopByHop = 0, Routing = 43, IcmpV6 = 58, DestinationOptions = 60;
    private const byte NeighbourAdvertisement = 136;
    private const int NeighbourTargetOffset = 8;

    // Value and mask in turn.
    private readonly uint[] _ipv4;
    private readonly UInt128[] _ipv6;
    private readonly bool _other;

    /// <param name="addresses">One of each network.</param>
    /// <param name="bits">The length of its prefix.</param>
    /// <param name="other">Whether it may send what is neither IPv4, nor ARP, nor IPv6.</param>
    public SourceAddresses(IPAddress[] addresses, int[] bits, bool other)
    {
        int ipv4 = addresses.Count(a => a.AddressFamily == AddressFamily.InterNetwork);
        _ipv4 = new uint[2 * ipv4];
        _ipv6 = new UInt128[2 * (addresses.Length - ipv4)];
        _other = other;
        Span<byte> bytes = stackalloc byte[IPv6AddressBytes];
        int next4 = 0, next6 = 0;
        for (int i = 0; i < addresses.Length; i++)
        {
            addresses[i].TryWriteBytes(bytes, out _);
            if (addresses[i].AddressFamily == AddressFamily.InterNetwork)
            {
                uint mask = bits[i] == 0 ? 0 : uint.MaxValue << (32 - bits[i]);
                _ipv4[next4++] = BinaryPrimitives.ReadUInt32BigEndian(bytes) & mask;
                _ipv4[next4++] = mask;
            }
            else
            {
                UInt128 mask = bits[i] == 0 ? UInt128.Zero : UInt128.MaxValue << (128 - bits[i]);
                _ipv6[next6++] = BinaryPrimitives.ReadUInt128BigEndian(bytes) & mask;
                _ipv6[next6++] = mask;
            }
        }
    }

    /// <summary>Whether the peer may send this frame.</summary>
    /// <param name="frame">The frame from its Ethernet header on, or its first <see cref="HeaderBytes"/>.</param>
    public bool Permit(ReadOnlySpan<byte> frame)
    {
        if (frame.Length < PacketOffset)
        {
            return false;
        }

        ReadOnlySpan<byte> packet = frame[PacketOffset..];
        return BinaryPrimitives.ReadUInt16BigEndian(frame[EtherTypeOffset..]) switch
        {
            ETH_P_IP => packet.Length >= IPv4HeaderBytes && PermitIPv4(packet[IPv4SourceOffset..], unspecified: false),
            // A probe has no sender yet.
            ETH_P_ARP => packet.Length >= ArpBytes && PermitIPv4(packet[ArpSenderOffset..], unspecified: true),
            ETH_P_IPV6 => packet.Length >= IPv6HeaderBytes && PermitIPv6(packet[IPv6SourceOffset..], unspecified: true) && PermitNeighbour(packet),
            _ => _other,
        };
    }

    private bool PermitIPv4(ReadOnlySpan<byte> bytes, bool unspecified)
    {
        uint address = BinaryPrimitives.ReadUInt32BigEndian(bytes);
        for (int i = 0; i < _ipv4.Length; i += 2)
        {
            if ((address & _ipv4[i + 1]) == _ipv4[i])
            {
                return true;
            }
        }

        return unspecified && address == 0;
    }

    private bool PermitIPv6(ReadOnlySpan<byte> bytes, bool unspecified)
    {
        UInt128 address = BinaryPrimitives.ReadUInt128BigEndian(bytes);
        for (int i = 0; i < _ipv6.Length; i += 2)
        {
            if ((address & _ipv6[i + 1]) == _ipv6[i])
            {
                return true;
            }
        }

        return unspecified && address == UInt128.Zero && _ipv6.Length > 0;
    }

    /// <summary>
    /// Who advertises an address claims it. (Who solicits one asks for another's.) What is so deep behind extensions that it cannot be
    /// told is none that an honest stack sends.
    /// </summary>
    private bool PermitNeighbour(ReadOnlySpan<byte> packet)
    {
        byte next = packet[IPv6NextHeaderOffset];
        ReadOnlySpan<byte> rest = packet[IPv6HeaderBytes..];
        while (next is HopByHop or Routing or DestinationOptions)
        {
            // Its length is in units of eight bytes, the first of which does not count.
            int length = rest.Length < 8 ? int.MaxValue : (rest[1] + 1) * 8;
            if (rest.Length < length)
            {
                return false;
            }

            next = rest[0];
            rest = rest[length..];
        }

        // No stack takes neighbour discovery in fragments (RFC 6980).
        if (next != IcmpV6 || rest.Length == 0 || rest[0] != NeighbourAdvertisement)
        {
            return true;
        }

        return rest.Length >= NeighbourTargetOffset + IPv6AddressBytes && PermitIPv6(rest[NeighbourTargetOffset..], unspecified: false);
    }
}
