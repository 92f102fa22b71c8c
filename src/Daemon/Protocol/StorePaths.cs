namespace XenLoop.Protocol;

/// <summary>
/// Every path in XenStore that the daemon reads, writes or watches (docs/protocol.md). Those of a guest's own home come in two
/// forms: as the guest names them, relative to the home, and as others do, from a domid on.
/// </summary>
internal static class StorePaths
{
    private const string Name = "xenloop";

    /// <summary>The guest's own area, relative to its home.</summary>
    public const string OwnArea = $"data/{Name}";

    public const string OwnOffer = $"{OwnArea}/{OfferName}";

    /// <summary>The guest's answer to <see cref="OwnQuiesceRequest"/>: its value, when no channel is left.</summary>
    public const string OwnQuiesced = $"{OwnArea}/quiesced";

    /// <summary>What Dom0 tells the guest, relative to the guest's home.</summary>
    public const string OwnIntroductions = Name;

    /// <summary>Dom0 wants the guest to hold nothing that a suspend would break.</summary>
    public const string OwnQuiesceRequest = $"{OwnIntroductions}/{QuiesceRequestName}";

    /// <summary>The guest's domid, relative to its home. Nobody ever writes this node: a watch on it fires when it is set, and after
    /// that at each end of a suspend, save a cancelled one, for the kernel sets all watches again then.</summary>
    public const string OwnDomid = "domid";

    /// <summary>In <see cref="OwnArea"/>.</summary>
    public const string OfferName = "offer";

    /// <summary>Among the introductions.</summary>
    public const string QuiesceRequestName = "quiesce";

    /// <summary>Fires when a domain comes.</summary>
    public const string IntroduceDomain = "@introduceDomain";

    /// <summary>Fires when a domain goes.</summary>
    public const string ReleaseDomain = "@releaseDomain";

    public const string Homes = "/local/domain";

    /// <summary>Where XAPI keeps for itself what it knows of guests.</summary>
    public const string Xapi = "/xapi";

    public static string Home(ushort domid) => $"{Homes}/{domid}";

    public static string Domid(ushort domid) => $"{Home(domid)}/domid";

    /// <summary>The guest's name, the toolstack's word.</summary>
    public static string GuestName(ushort domid) => $"{Home(domid)}/name";

    /// <summary>Names the guest's UUID: <c>/vm/UUID</c>.</summary>
    public static string Vm(ushort domid) => $"{Home(domid)}/vm";

    public static string Area(ushort domid) => $"{Home(domid)}/{OwnArea}";

    public static string Offer(ushort domid) => $"{Home(domid)}/{OwnOffer}";

    public static string Quiesced(ushort domid) => $"{Home(domid)}/{OwnQuiesced}";

    /// <summary>Where this guest says the state of its side of a channel, relative to its home.</summary>
    public static string OwnChannel(ChannelKey key) => $"{OwnArea}/{key.NodeName}";

    /// <summary>Where the peer says the state of its side.</summary>
    public static string PeersChannel(ChannelKey key, ushort self) => $"{Area(key.Peer)}/{key.PeerVif}-{self}-{key.Vif}";

    /// <summary>Where Dom0 tells the guest all that it tells it. The guest cannot write there.</summary>
    public static string Introductions(ushort domid) => $"{Home(domid)}/{OwnIntroductions}";

    /// <summary>That a vif of the guest takes part.</summary>
    public static string Introductions(ushort domid, int vif) => $"{Introductions(domid)}/{vif}";

    /// <summary>That it may meet a peer.</summary>
    public static string Introduction(ushort domid, ChannelKey key) => $"{Introductions(domid, key.Vif)}/{key.PeerName}";

    public static string QuiesceRequest(ushort domid) => $"{Home(domid)}/{OwnQuiesceRequest}";

    /// <summary>That a vif of this guest takes part, relative to its home.</summary>
    public static string OwnIntroductionsOf(int vif) => $"{OwnIntroductions}/{vif}";

    /// <summary>That this guest may meet a peer, relative to its home.</summary>
    public static string OwnIntroduction(ChannelKey key) => $"{OwnIntroductionsOf(key.Vif)}/{key.PeerName}";

    /// <summary>Where libxl keeps for itself what it knows of a guest's vifs.</summary>
    public static string LibxlVifs(ushort domid) => $"/libxl/{domid}/device/vif";

    /// <summary>"pv", "pvh" or "hvm", as libxl tells it.</summary>
    public static string LibxlType(ushort domid) => $"/libxl/{domid}/type";

    /// <summary>There for an HVM guest.</summary>
    public static string DeviceModel(ushort domid) => $"{Home(0)}/device-model/{domid}";

    /// <summary>Where a backend domain and the toolstack talk about a guest's vifs.</summary>
    public static string BackendVifs(ushort backend, ushort domid) => $"{Home(backend)}/backend/vif/{domid}";

    /// <summary>What XAPI keeps for itself of a vif, as its bridge.</summary>
    public static string XapiVif(string uuid, int vif) => $"{Xapi}/{uuid}/private/vif/{vif}";
}
