using System.Diagnostics.CodeAnalysis;
using System.Globalization;

namespace XenLoop.Interop.Linux;

/// <summary>An Ethernet address. Written as <c>00:16:3e:01:02:03</c>, as the toolstack does.</summary>
internal readonly struct MacAddress : IEquatable<MacAddress>
{
    public const int Length = 6;
    private const int TextLength = 17;

    private MacAddress(ulong bits)
    {
        Bits = bits;
    }

    /// <summary>The six bytes as they lie in a frame, the first one lowest: on the little-endian machines that Xen
    /// runs on, the memory image of this word is the address followed by two zero bytes.</summary>
    public ulong Bits { get; }

    /// <summary>True for group addresses: broadcast and multicast.</summary>
    public bool IsGroup => (Bits & 1) != 0;

    /// <exception cref="ArgumentException"><paramref name="bytes"/> is shorter than six bytes.</exception>
    public static MacAddress Read(ReadOnlySpan<byte> bytes)
    {
        if (bytes.Length < Length)
        {
            throw new ArgumentException("An Ethernet address has six bytes.", nameof(bytes));
        }
        ulong bits = 0;
        for (int i = Length - 1; i >= 0; i--)
        {
            bits = (bits << 8) | bytes[i];
        }
        return new MacAddress(bits);
    }

    /// <exception cref="FormatException">The text is no Ethernet address.</exception>
    public static MacAddress Parse(ReadOnlySpan<char> text) =>
        TryParse(text, out MacAddress mac) ? mac : throw new FormatException($"'{text}' is no Ethernet address");

    /// <summary>Reads exactly six pairs of hexadecimal digits separated by colons; nothing around them.</summary>
    public static bool TryParse(ReadOnlySpan<char> text, out MacAddress mac)
    {
        mac = default;
        if (text.Length != TextLength)
        {
            return false;
        }
        ulong bits = 0;
        for (int i = 0; i < Length; i++)
        {
            if ((i > 0 && text[(i * 3) - 1] != ':') ||
                !byte.TryParse(text.Slice(i * 3, 2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out byte value))
            {
                return false;
            }
            bits |= (ulong)value << (8 * i);
        }
        mac = new MacAddress(bits);
        return true;
    }

    /// <summary>Writes the six bytes in the order of a frame.</summary>
    public void CopyTo(Span<byte> destination)
    {
        for (int i = 0; i < Length; i++)
        {
            destination[i] = (byte)(Bits >> (8 * i));
        }
    }

    public override string ToString() => string.Create(TextLength, Bits, static (text, bits) =>
    {
        for (int i = 0; i < Length; i++)
        {
            ((byte)(bits >> (8 * i))).TryFormat(text[(i * 3)..], out _, "x2", CultureInfo.InvariantCulture);
            if (i < Length - 1)
            {
                text[(i * 3) + 2] = ':';
            }
        }
    });

    public bool Equals(MacAddress other) => Bits == other.Bits;

    public override bool Equals([NotNullWhen(true)] object? obj) => obj is MacAddress other && Equals(other);

    public override int GetHashCode() => Bits.GetHashCode();

    public static bool operator ==(MacAddress left, MacAddress right) => left.Equals(right);

    public static bool operator !=(MacAddress left, MacAddress right) => !left.Equals(right);
}
