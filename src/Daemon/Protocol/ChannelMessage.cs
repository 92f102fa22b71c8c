using System.Globalization;
using System.Text;

namespace XenLoop.Protocol;

/// <summary>What a side of a channel tells its peer (docs/protocol.md).</summary>
internal enum ChannelPhase
{
    /// <summary>The connector asks the listener to listen.</summary>
    Calling,
    Listening,
    Connected,
    Closing,
    Closed,

    /// <summary>No channel for now, and why not: the side that says this takes it back when there may be one again.</summary>
    Declined,
}

/// <summary>
/// The value of a channel node. Grant reference and port are the listener's, in <see cref="ChannelPhase.Listening"/>;
/// version and features come with the first word of each side.
/// </summary>
internal readonly record struct ChannelMessage(
    ChannelPhase Phase, ulong Session, Offer Offer = default, uint GrantReference = 0, uint Port = 0, string Reason = "")
{
    /// <summary>Characters of a peer's words that are taken: they go into this side's log, status and node.</summary>
    public const int LongestReason = 80;

    /// <summary>True while the side that says this waits for the other to notice.</summary>
    public bool IsCall => Phase is ChannelPhase.Calling or ChannelPhase.Listening;

    public override string ToString()
    {
        string head = string.Create(CultureInfo.InvariantCulture, $"{Word(Phase)} {Session:x16}");
        return Phase switch
        {
            ChannelPhase.Listening => string.Create(CultureInfo.InvariantCulture, $"{head} {Offer} {GrantReference} {Port}"),
            ChannelPhase.Connected when Offer.Version != 0 => $"{head} {Offer}",
            ChannelPhase.Closed or ChannelPhase.Declined => $"{head} {Reason}",
            _ => head,
        };
    }

    /// <summary>Null for anything malformed or absent: it is another domain's writing.</summary>
    public static ChannelMessage? Parse(string? value)
    {
        string[] fields = value?.Split(' ') ?? [];
        if (fields.Length < 2
            || fields[1].Length != 16
            || !ulong.TryParse(fields[1], NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out ulong session))
        {
            return null;
        }

        Offer? offer = fields.Length >= 4 ? Offer.Parse($"{fields[2]} {fields[3]}") : null;
        switch (fields[0])
        {
            case "listening" when offer is not null
                && fields.Length >= 6
                && uint.TryParse(fields[4], NumberStyles.None, CultureInfo.InvariantCulture, out uint reference)
                && uint.TryParse(fields[5], NumberStyles.None, CultureInfo.InvariantCulture, out uint port):
                return new ChannelMessage(ChannelPhase.Listening, session, offer.Value, reference, port);
            case "connected":
                return new ChannelMessage(ChannelPhase.Connected, session, offer ?? default);
            case "calling":
                return new ChannelMessage(ChannelPhase.Calling, session);
            case "closing":
                return new ChannelMessage(ChannelPhase.Closing, session);
            case "closed":
                return new ChannelMessage(ChannelPhase.Closed, session, Reason: Legible(fields.AsSpan(2)));
            case "declined":
                return new ChannelMessage(ChannelPhase.Declined, session, Reason: Legible(fields.AsSpan(2)));
            default:
                return null;
        }
    }

    /// <summary>Cut, and with nothing in it but printable ASCII.</summary>
    private static string Legible(ReadOnlySpan<string> words)
    {
        StringBuilder reason = new(LongestReason);
        foreach (string word in words)
        {
            if (reason.Length > 0)
            {
                reason.Append(' ');
            }

            foreach (char c in word.AsSpan(0, Math.Min(word.Length, LongestReason + 1)))
            {
                reason.Append(c is > ' ' and <= '~' ? c : '?');
            }

            if (reason.Length > LongestReason)
            {
                return $"{reason.ToString(0, LongestReason - 3)}...";
            }
        }

        return reason.ToString();
    }

    private static string Word(ChannelPhase phase) => phase switch
    {
        ChannelPhase.Listening => "listening",
        ChannelPhase.Connected => "connected",
        ChannelPhase.Closing => "closing",
        ChannelPhase.Calling => "calling",
        ChannelPhase.Declined => "declined",
        _ => "closed",
    };
}
