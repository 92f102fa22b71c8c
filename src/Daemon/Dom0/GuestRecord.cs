using XenLoop.Guest;
using XenLoop.Interop.Linux;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>A guest as Dom0 knows it.</summary>
internal sealed class GuestRecord(ushort domid)
{
    public ushort Domid { get; } = domid;

    public string Home { get; } = $"/local/domain/{domid}";

    /// <summary>Below the guest's home, where it cannot write.</summary>
    public string Introductions { get; } = $"/local/domain/{domid}/xenloop";

    public GuestIdentity Identity { get; set; }

    /// <summary>Null while the guest has no daemon, or one that says nothing sensible.</summary>
    public Offer? Offer { get; set; }

    public VifRecord[] Vifs { get; set; } = [];

    /// <summary>Of each of <see cref="Vifs"/>: its segment, or null.</summary>
    public string?[] Segments { get; set; } = [];

    /// <summary>Backends of its vifs besides Dom0, each watched.</summary>
    public HashSet<ushort> Backends { get; } = [];

    /// <summary>The channels for which this guest's side waits for the peer's, each with its session.</summary>
    public Dictionary<ChannelKey, ulong> Calls { get; } = [];

    /// <summary>Null while the guest may have channels.</summary>
    public Quiesce? Quiesce { get; set; }

    /// <summary>What stands in XenStore: the MAC addresses of its vifs.</summary>
    public Dictionary<int, MacAddress> PublishedVifs { get; } = [];

    /// <summary>What stands in XenStore: its peers' vifs, by the peer's domid. There are hundreds of hundreds of these.</summary>
    public Dictionary<ushort, (ChannelKey Key, Introduction Value)[]> PublishedPeers { get; } = [];

    /// <summary>Nodes of the guest that changed and were not looked at yet: "offer", a channel's, or "" for all.</summary>
    public HashSet<string> Unread { get; } = [];

    /// <summary>How much work the guest may cause.</summary>
    public WorkBudget Budget { get; } = new();
}
