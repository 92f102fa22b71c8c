using System.Globalization;
using XenLoop.Interop.Linux;

namespace XenLoop.Protocol;

/// <summary>What Dom0 tells a guest of a peer: the value of an introduction (docs/protocol.md).</summary>
/// <param name="Mac">Of the peer's vif, as the toolstack gave it.</param>
/// <param name="Offer">The peer's own words.</param>
/// <param name="Call">The session with which the peer's side asks for a channel; 0 while it does not.</param>
/// <param name="Sources">The addresses that the peer's vif may use, see <see cref="AddressList"/>; null for all.</param>
internal readonly record struct Introduction(MacAddress Mac, Offer Offer, ulong Call = 0, string? Sources = null)
{
    private const string From = "from=";

    // With addresses there are always five fields: a daemon that does not know of them takes it for malformed, and stays on netfront.
    public override string ToString() => Sources is not null
        ? string.Create(CultureInfo.InvariantCulture, $"{Mac} {Offer} {Call:x16} {From}{Sources}")
        : Call == 0 ? $"{Mac} {Offer}"
        : string.Create(CultureInfo.InvariantCulture, $"{Mac} {Offer} {Call:x16}");

    /// <summary>Null for anything malformed or absent.</summary>
    public static Introduction? Parse(string? value)
    {
        string[] fields = value?.Split(' ') ?? [];
        ulong call = 0;
        string? sources = null;
        if (fields.Length == 5)
        {
            if (!fields[4].StartsWith(From, StringComparison.Ordinal) || AddressList.Parse(fields[4][From.Length..]) is null)
            {
                return null;
            }

            sources = fields[4][From.Length..];
        }

        return fields.Length is 3 or 4 or 5
            && MacAddress.TryParse(fields[0], out MacAddress mac)
            && !mac.IsGroup
            && Offer.Parse($"{fields[1]} {fields[2]}") is { } offer
            && (fields.Length == 3 || ulong.TryParse(fields[3], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out call))
            ? new Introduction(mac, offer, call, sources)
            : null;
    }
}
