namespace XenLoop.Guest;

/// <summary>Names a channel within this guest: its vif, and the peer's domid and vif.</summary>
internal readonly record struct ChannelKey(int Vif, ushort Peer, int PeerVif)
{
    /// <summary>Where this guest says the state of its side; relative to its home.</summary>
    public string OwnNode => $"{Offer.Directory}/{Vif}-{Peer}-{PeerVif}";

    /// <summary>Where the peer says the state of its side.</summary>
    public string PeerNode(ushort self) => $"/local/domain/{Peer}/{Offer.Directory}/{PeerVif}-{self}-{Vif}";

    /// <summary>The name of the channel's TAP: xl&lt;domid&gt;.&lt;vif&gt; of the peer; at most 15 characters.</summary>
    public string TapName => Vif == 0 ? $"xl{Peer}.{PeerVif}" : $"xl{Peer}.{PeerVif}.{Vif}";

    public override string ToString() => $"vif {Vif} to domain {Peer} vif {PeerVif}";
}
