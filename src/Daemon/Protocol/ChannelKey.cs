using System.Globalization;

namespace XenLoop.Protocol;

/// <summary>Names a channel within this guest: its vif, and the peer's domid and vif.</summary>
internal readonly record struct ChannelKey(int Vif, ushort Peer, int PeerVif)
{
    /// <summary>A vif's number; null for anything else.</summary>
    public static int? ParseVif(ReadOnlySpan<char> name) =>
        int.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out int vif) ? vif : null;

    /// <summary>Null unless the parts are a vif's number, and the domid and vif of a peer ("5-0").</summary>
    public static ChannelKey? Parse(int vif, ReadOnlySpan<char> peer)
    {
        int dash = peer.IndexOf('-');
        return dash > 0
            && ushort.TryParse(peer[..dash], NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid)
            && ParseVif(peer[(dash + 1)..]) is { } peerVif
            ? new ChannelKey(vif, domid, peerVif)
            : null;
    }

    /// <summary>The name of a channel's node ("0-5-0"); null for any other.</summary>
    public static ChannelKey? ParseNode(ReadOnlySpan<char> name)
    {
        int dash = name.IndexOf('-');
        return dash > 0 && ParseVif(name[..dash]) is { } vif
            ? Parse(vif, name[(dash + 1)..])
            : null;
    }

    /// <summary>The name of the channel's node.</summary>
    public string NodeName => $"{Vif}-{Peer}-{PeerVif}";

    /// <summary>The name of the peer below an introduction's vif.</summary>
    public string PeerName => $"{Peer}-{PeerVif}";

    /// <summary>The name of the channel's TAP: xl&lt;domid&gt;.&lt;vif&gt; of the peer; at most 15 characters.</summary>
    public string TapName => Vif == 0 ? $"xl{Peer}.{PeerVif}" : $"xl{Peer}.{PeerVif}.{Vif}";

    public override string ToString() => $"vif {Vif} to domain {Peer} vif {PeerVif}";
}
