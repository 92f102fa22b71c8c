using System.Globalization;
using XenLoop.Interop.Linux;

namespace XenLoop.Protocol;

/// <summary>What Dom0 tells a guest of a peer: the value of an introduction (docs/protocol.md).</summary>
/// <param name="Mac">Of the peer's vif, as the toolstack gave it.</param>
/// <param name="Offer">The peer's own words.</param>
/// <param name="Call">The session with which the peer's side asks for a channel; 0 while it does not.</param>
internal readonly record struct Introduction(MacAddress Mac, Offer Offer, ulong Call = 0)
{
    public override string ToString() => Call == 0
        ? $"{Mac} {Offer}"
        : string.Create(CultureInfo.InvariantCulture, $"{Mac} {Offer} {Call:x16}");

    /// <summary>Null for anything malformed or absent.</summary>
    public static Introduction? Parse(string? value)
    {
        string[] fields = value?.Split(' ') ?? [];
        ulong call = 0;
        return fields.Length is 3 or 4
            && MacAddress.TryParse(fields[0], out MacAddress mac)
            && !mac.IsGroup
            && Offer.Parse($"{fields[1]} {fields[2]}") is { } offer
            && (fields.Length == 3 || ulong.TryParse(fields[3], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out call))
            ? new Introduction(mac, offer, call)
            : null;
    }
}
