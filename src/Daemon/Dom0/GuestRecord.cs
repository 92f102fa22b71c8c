using XenLoop.Interop.Linux;
using XenLoop.Protocol;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>A guest as Dom0 knows it.</summary>
internal sealed class GuestRecord(ushort domid, TimeSpan now)
{
    public ushort Domid { get; } = domid;

    public GuestIdentity Identity { get; set; }

    /// <summary>Whom Dom0 cannot name it does not introduce: a denial might miss the guest.</summary>
    public bool IsNamed => Identity is { Name.Length: > 0, Uuid.Length: > 0 };

    /// <summary>Null while the guest has no daemon, or one that says nothing sensible.</summary>
    public Offer? Offer { get; set; }

    /// <summary>It has a daemon, and its configuration keeps it apart.</summary>
    public bool IsOff { get; set; }

    public VifRecord[] Vifs { get; set; } = [];

    /// <summary>Of each of <see cref="Vifs"/>.</summary>
    public VifStanding[] Standings { get; set; } = [];

    /// <summary>Backends of its vifs besides Dom0, each watched.</summary>
    public HashSet<ushort> Backends { get; } = [];

    /// <summary>The channels for which this guest's side waits for the peer's, each with its session.</summary>
    public Dictionary<ChannelKey, ulong> Calls { get; } = [];

    /// <summary>When the administrator was last told what restricts its vifs.</summary>
    public TimeSpan ToldAt { get; set; } = TimeSpan.MinValue / 2;

    /// <summary>Null while the guest may have channels.</summary>
    public QuiesceRequest? Quiesce { get; set; }

    /// <summary>What stands in XenStore: the MAC addresses of its vifs.</summary>
    public Dictionary<int, MacAddress> PublishedVifs { get; } = [];

    /// <summary>What stands in XenStore: its peers' vifs, by the peer's domid. There are hundreds of hundreds of these.</summary>
    public Dictionary<ushort, (ChannelKey Key, Introduction Value)[]> PublishedPeers { get; } = [];

    /// <summary>Nodes of the guest that changed and were not looked at yet: "offer", a channel's, or "" for the area that holds them.</summary>
    public HashSet<string> Unread { get; } = [];

    /// <summary>Some of these may be looked at: without an offer nothing else of the guest counts.</summary>
    public bool HasNews => Unread.Count > 0 && (Offer is not null || Unread.Contains("") || Unread.Contains(StorePaths.OfferName));

    /// <summary>It was introduced once already: from then on it pays for being introduced.</summary>
    public bool HasArrived { get; set; }

    /// <summary>Its nodes are not watched, for it has changed them far more often than its budget allows.</summary>
    public bool IsMuted { get; set; }

    /// <summary>How much work the guest may cause.</summary>
    public WorkBudget Budget { get; } = new(now);

    /// <summary>A node of the guest's own has changed: to be read when its budget allows.</summary>
    /// <param name="path">The node.</param>
    /// <param name="mayMeet">Whether there are these two vifs. What else a guest writes is neither read nor remembered.</param>
    public void Remember(string path, Func<ChannelKey, bool> mayMeet)
    {
        string area = StorePaths.Area(Domid);
        string node = path.Length > area.Length ? path[(area.Length + 1)..] : "";
        if (node is "" or StorePaths.OfferName || (ChannelKey.ParseNode(node) is { } key && key.NodeName == node && mayMeet(key)))
        {
            Unread.Add(node);
        }
    }

    /// <summary>All that Dom0 has a use for is to be read: what changed meanwhile nobody has told. The guest's nodes are never listed:
    /// it can have more of them than oxenstored can answer, which then ends the connection.</summary>
    public void RememberAll()
    {
        Unread.Add("");
        foreach ((ChannelKey Key, Introduction Value)[] peers in PublishedPeers.Values)
        {
            foreach ((ChannelKey key, _) in peers)
            {
                Unread.Add(key.NodeName);
            }
        }
    }
}
