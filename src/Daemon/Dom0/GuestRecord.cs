using XenLoop.Interop.Linux;
using XenLoop.Protocol;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>A guest as Dom0 knows it.</summary>
internal sealed class GuestRecord(ushort domid, TimeSpan now)
{
    // Different names of nodes that one guest can make us remember; beyond that all its nodes are read.
    private const int MaxUnread = 256;

    public ushort Domid { get; } = domid;

    public GuestIdentity Identity { get; set; }

    /// <summary>Whom Dom0 cannot name it does not introduce: a denial might miss the guest.</summary>
    public bool IsNamed => Identity is { Name.Length: > 0, Uuid.Length: > 0 };

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
    public QuiesceRequest? Quiesce { get; set; }

    /// <summary>What stands in XenStore: the MAC addresses of its vifs.</summary>
    public Dictionary<int, MacAddress> PublishedVifs { get; } = [];

    /// <summary>What stands in XenStore: its peers' vifs, by the peer's domid. There are hundreds of hundreds of these.</summary>
    public Dictionary<ushort, (ChannelKey Key, Introduction Value)[]> PublishedPeers { get; } = [];

    /// <summary>Nodes of the guest that changed and were not looked at yet: "offer", a channel's, or "" for all.</summary>
    public HashSet<string> Unread { get; } = [];

    /// <summary>How much work the guest may cause.</summary>
    public WorkBudget Budget { get; } = new(now);

    /// <summary>A node of the guest's own has changed: to be read when its budget allows.</summary>
    public void Remember(string path)
    {
        string area = StorePaths.Area(Domid);
        if (Unread.Count >= MaxUnread)
        {
            Unread.Clear();
            Unread.Add("");
        }
        else if (!Unread.Contains(""))
        {
            Unread.Add(path.Length > area.Length ? path[(area.Length + 1)..] : "");
        }
    }
}
