namespace XenLoop.Ring;

/// <summary>
/// A record in a ring: an 8-byte header (32-bit length, 32 bits zero), the payload (virtio_net_hdr and frame), padding
/// to 8 bytes. Headers never straddle the end of the ring, payloads may: then they lie in two segments.
/// </summary>
internal static class RingRecord
{
    public const uint HeaderBytes = 8;

    /// <summary>Longest payload: virtio_net_hdr (10), a 64 KiB GSO packet, Ethernet header with two VLAN tags, rounded up.</summary>
    public const uint MaxPayload = 65600;

    public const uint MaxBytes = HeaderBytes + MaxPayload;

    /// <summary>Bytes a payload takes up in the ring.</summary>
    public static uint BytesFor(uint payload) => (HeaderBytes + payload + 7) & ~7u;
}

/// <summary>One or two runs of ring memory. The second is empty unless the payload wraps.</summary>
internal unsafe struct RingSegments
{
    public byte* First;
    public uint FirstLength;
    public byte* Second;
    public uint SecondLength;

    public readonly uint Length => FirstLength + SecondLength;

    /// <summary>Lays <paramref name="length"/> bytes from <paramref name="offset"/> on, wrapping at the end of the ring.</summary>
    public static RingSegments At(byte* data, uint ringBytes, uint offset, uint length)
    {
        uint first = Math.Min(length, ringBytes - offset);
        return new RingSegments { First = data + offset, FirstLength = first, Second = data, SecondLength = length - first };
    }

    /// <summary>Copies the first bytes out, so that what is checked is what is used.</summary>
    /// <exception cref="PeerViolationException">There are fewer: the length is the peer's word.</exception>
    public readonly void CopyTo(Span<byte> destination)
    {
        Require((uint)destination.Length);
        int first = (int)Math.Min((uint)destination.Length, FirstLength);
        new ReadOnlySpan<byte>(First, first).CopyTo(destination);
        new ReadOnlySpan<byte>(Second, destination.Length - first).CopyTo(destination[first..]);
    }

    /// <summary>What remains after the first <paramref name="count"/> bytes.</summary>
    /// <exception cref="PeerViolationException">There are fewer.</exception>
    public readonly RingSegments Skip(uint count)
    {
        Require(count);
        if (count < FirstLength)
        {
            return new RingSegments { First = First + count, FirstLength = FirstLength - count, Second = Second, SecondLength = SecondLength };
        }

        uint rest = count - FirstLength;
        return new RingSegments { First = Second + rest, FirstLength = SecondLength - rest };
    }

    /// <summary>The first <paramref name="count"/> bytes.</summary>
    /// <exception cref="PeerViolationException">There are fewer.</exception>
    public readonly RingSegments Take(uint count)
    {
        Require(count);
        uint first = Math.Min(count, FirstLength);
        return new RingSegments { First = First, FirstLength = first, Second = Second, SecondLength = count - first };
    }

    // Here and not only at the callers: a record that is too short would turn into a segment of nearly 4 GiB.
    private readonly void Require(uint count)
    {
        if (count > Length)
        {
            throw new PeerViolationException($"record of {Length} bytes, too short for {count}");
        }
    }
}

/// <summary>The peer wrote into shared memory what no honest peer writes. The channel is closed; netfront takes over.</summary>
internal sealed class PeerViolationException(string message) : Exception(message);
