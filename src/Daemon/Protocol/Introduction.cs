using System.Globalization;
using XenLoop.Interop.Linux;

namespace XenLoop.Protocol;

/// <summary>What Dom0 tells a guest of a peer: the value of an introduction (docs/protocol.md).</summary>
/// <param name="Mac">Of the peer's vif, as the toolstack gave it.</param>
/// <param name="Offer">The peer's own words.</param>
/// <param name="Call">The session with which the peer's side asks for a channel; 0 while it does not.</param>
/// <param name="Sources">The addresses that the peer's vif may use, see <see cref="AddressList"/>; null for all.</param>
/// <param name="Mtu">Bytes of the longest packet that Dom0 lets through to the peer's vif, unless that is a super-packet.</param>
internal readonly record struct Introduction(MacAddress Mac, Offer Offer, ulong Call = 0, string? Sources = null, int Mtu = Introduction.UsualMtu)
{
    /// <summary>What is not told.</summary>
    public const int UsualMtu = 1500;

    /// <summary>Nothing is known to stop longer ones.</summary>
    public const int AnyMtu = ushort.MaxValue;

    private const string From = "from=";
    private const string To = "to=";

    // Where there is a restriction there are always five fields or more: a daemon that does not know of it takes it for malformed, and stays on netfront.
    public override string ToString()
    {
        string sources = Sources is null ? "" : $" {From}{Sources}";
        string mtu = Mtu == UsualMtu ? "" : string.Create(CultureInfo.InvariantCulture, $" {To}{Mtu}");
        return Call == 0 && sources + mtu == "" ? $"{Mac} {Offer}" : string.Create(CultureInfo.InvariantCulture, $"{Mac} {Offer} {Call:x16}{sources}{mtu}");
    }

    /// <summary>Null for anything malformed or absent.</summary>
    public static Introduction? Parse(string? value)
    {
        string[] fields = value?.Split(' ') ?? [];
        int next = 4;
        string? sources = next < fields.Length && fields[next].StartsWith(From, StringComparison.Ordinal) ? fields[next++][From.Length..] : null;
        int mtu = UsualMtu;
        if (next < fields.Length && fields[next].StartsWith(To, StringComparison.Ordinal)
            && int.TryParse(fields[next].AsSpan(To.Length), NumberStyles.None, CultureInfo.InvariantCulture, out mtu))
        {
            next++;
        }

        ulong call = 0;
        return fields.Length >= 3 && fields.Length <= next
            && MacAddress.TryParse(fields[0], out MacAddress mac)
            && !mac.IsGroup
            && Offer.Parse($"{fields[1]} {fields[2]}") is { } offer
            && (fields.Length == 3 || ulong.TryParse(fields[3], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out call))
            && (sources is null || AddressList.Parse(sources) is not null)
            ? new Introduction(mac, offer, call, sources, mtu)
            : null;
    }
}
