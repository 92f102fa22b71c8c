using System.Globalization;
using System.Text.Json;
using XenLoop.Guest;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>
/// The daemon in Dom0: introduces willing guests on the same segment to each other as far as the policy allows, tells each
/// of the other's calls, and withdraws what no longer holds. It holds nothing that XenStore does not: after a restart it
/// reads its own introductions back.
/// </summary>
internal sealed class Dom0Role : IRole
{
    private const string DomainsToken = "domains";
    // Tokens that name a guest: a word and its domid.
    private const string NodesToken = "nodes";
    private const string VifsToken = "vifs";
    private const string NameToken = "name";

    // Between two looks whether the process that suspends a guest is still there; only while there is one.
    private const int HolderPollMilliseconds = 250;

    // Different names of nodes that one guest can make us remember; beyond that all its nodes are read.
    private const int MaxUnread = 256;

    private readonly XenStore _xenStore;
    private readonly RtNetlink _rtnetlink = new();
    private readonly LinkMonitor _links = new();
    private readonly SortedDictionary<ushort, GuestRecord> _guests = [];
    private Dictionary<string, LinkMaster> _masters;
    private Policy _policy;
    private int _requests;

    public Dom0Role(IHypervisor hypervisor, Configuration configuration)
    {
        _policy = configuration.Policy;
        _masters = _rtnetlink.ListMasters();
        _xenStore = hypervisor.OpenXenStore();
        Descriptors = [_xenStore.FileDescriptor, _links.FileDescriptor];
        _xenStore.Watch("@introduceDomain", DomainsToken);
        _xenStore.Watch("@releaseDomain", DomainsToken);
        Log.Info("Dom0: introducing guests on the same segment to each other");
    }

    public string Activity => "introducing guests";

    public IReadOnlyList<int> Descriptors { get; }

    public void Register(ControlSocket control)
    {
        control.Register("quiesce DOMID HOLDER", (json, arguments) =>
        {
            if (FindGuest(arguments[0], json) is { } guest && ParseHolder(arguments[1], json) is { } holder)
            {
                json.WriteString("state", BeginQuiesce(guest, holder));
            }
        });
        control.Register("resume DOMID", (json, arguments) =>
        {
            if (FindGuest(arguments[0], json) is { } guest)
            {
                EndQuiesce(guest, "on request");
                json.WriteString("state", "resumed");
            }
        });
    }

    public void Configure(Configuration configuration)
    {
        _policy = configuration.Policy;
        foreach (GuestRecord guest in _guests.Values)
        {
            PublishPeers(guest);
        }
    }

    public int Turn()
    {
        bool domains = false;
        HashSet<GuestRecord> changed = [], rewired = [];
        while (_xenStore.TryTakeWatch(out string path, out string token))
        {
            string[] words = token.Split(' ');
            if (words[0] == DomainsToken)
            {
                domains = true;
            }
            else if (_guests.TryGetValue(ushort.Parse(words[1], CultureInfo.InvariantCulture), out GuestRecord? guest))
            {
                switch (words[0])
                {
                    case NodesToken:
                        Remember(guest, path);
                        break;
                    // A guest makes its backend change state as often as it likes, and that says nothing of the vif.
                    case VifsToken when path.EndsWith("/state", StringComparison.Ordinal):
                        break;
                    case VifsToken:
                        rewired.Add(guest);
                        break;
                    default:
                        ReadIdentity(guest);
                        changed.Add(guest);
                        break;
                }
            }
        }

        if (domains)
        {
            FollowDomains(changed);
        }

        if (_links.TakeChanges())
        {
            _masters = _rtnetlink.ListMasters();
            // Open vSwitch's ports are told apart by what XenStore says, which may have changed without a watch of ours.
            rewired.UnionWith(_guests.Values.Where(g => g.Vifs.Any(v => v.Backend == 0 && _masters.TryGetValue(v.Interface, out LinkMaster m) && !m.IsBridge)));
            changed.UnionWith(_guests.Values.Where(FindSegments));
        }

        foreach (GuestRecord guest in rewired)
        {
            if (ReadVifs(guest))
            {
                changed.Add(guest);
            }
        }

        foreach (GuestRecord guest in changed)
        {
            Publish(guest);
        }

        int due = FollowNodes();
        return FollowHolders() ? (due < 0 ? HolderPollMilliseconds : Math.Min(due, HolderPollMilliseconds)) : due;
    }

    public void WriteStatus(Utf8JsonWriter json)
    {
        json.WriteString("role", "dom0");
        json.WriteStartArray("guests");
        foreach (GuestRecord guest in _guests.Values)
        {
            json.WriteStartObject();
            json.WriteNumber("domid", guest.Domid);
            json.WriteString("name", guest.Identity.Name);
            json.WriteString("uuid", guest.Identity.Uuid);
            json.WriteBoolean("willing", guest.Offer is not null);
            json.WriteBoolean("quiesced", guest.Quiesce is not null);
            json.WriteStartArray("vifs");
            for (int i = 0; i < guest.Vifs.Length; i++)
            {
                VifRecord vif = guest.Vifs[i];
                json.WriteStartObject();
                json.WriteNumber("vif", vif.Vif);
                json.WriteString("mac", vif.Mac.ToString());
                json.WriteString("segment", guest.Segments[i]);
                json.WriteStartArray("introduced");
                foreach ((ChannelKey key, _) in guest.PublishedPeers.OrderBy(p => p.Key).SelectMany(p => p.Value).Where(p => p.Key.Vif == vif.Vif))
                {
                    json.WriteStringValue(key.PeerName);
                }

                json.WriteEndArray();
                json.WriteEndObject();
            }

            json.WriteEndArray();
            json.WriteEndObject();
        }

        json.WriteEndArray();
    }

    /// <summary>The introductions stay: a restart of this daemon must not cost a channel.</summary>
    public void Dispose()
    {
        _xenStore.Dispose();
        _links.Dispose();
        _rtnetlink.Dispose();
    }

    /// <summary>Every domain but Dom0 that has a home in XenStore, ghosts included.</summary>
    internal static IEnumerable<ushort> ListGuests(XenStore xenStore)
    {
        foreach (string name in xenStore.List("/local/domain"))
        {
            if (ushort.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid) && domid != 0)
            {
                yield return domid;
            }
        }
    }

    /// <summary>A guest may end while something is written for it: the write makes its home anew, and nobody else removes that.</summary>
    internal static void RemoveGhost(XenStore xenStore, ushort domid)
    {
        string home = $"/local/domain/{domid}";
        if (xenStore.List(home) is [] or ["xenloop"])
        {
            xenStore.Remove(home);
        }
    }

    private void FollowDomains(HashSet<GuestRecord> changed)
    {
        HashSet<ushort> present = [];
        foreach (ushort domid in ListGuests(_xenStore))
        {
            if (_xenStore.Read($"/local/domain/{domid}/domid") is not null)
            {
                present.Add(domid);
            }
            else
            {
                RemoveGhost(_xenStore, domid);
            }
        }

        foreach (GuestRecord gone in _guests.Values.Where(g => !present.Contains(g.Domid)).ToArray())
        {
            _guests.Remove(gone.Domid);
            changed.Remove(gone);
            _xenStore.Unwatch($"{gone.Home}/{Offer.Directory}", $"{NodesToken} {gone.Domid}");
            _xenStore.Unwatch($"{gone.Home}/name", $"{NameToken} {gone.Domid}");
            _xenStore.Unwatch(VifRecord.Libxl(gone.Domid), $"{VifsToken} {gone.Domid}");
            foreach (ushort backend in gone.Backends.Append((ushort)0))
            {
                _xenStore.Unwatch(VifRecord.BackendArea(backend, gone.Domid), $"{VifsToken} {gone.Domid}");
            }

            foreach (GuestRecord peer in _guests.Values)
            {
                PublishPair(peer, gone.Domid);
            }
        }

        foreach (ushort domid in present.Where(d => !_guests.ContainsKey(d)))
        {
            GuestRecord guest = new(domid);
            _guests.Add(domid, guest);
            _xenStore.Watch($"{guest.Home}/{Offer.Directory}", $"{NodesToken} {domid}");
            _xenStore.Watch($"{guest.Home}/name", $"{NameToken} {domid}");
            _xenStore.Watch(VifRecord.Libxl(domid), $"{VifsToken} {domid}");
            _xenStore.Watch(VifRecord.BackendArea(0, domid), $"{VifsToken} {domid}");
            // The watches fire at once, but later than this turn, which would withdraw what was published for want of an offer.
            ReadPublished(guest);
            ReadIdentity(guest);
            ReadNodes(guest, "");
            ReadVifs(guest);
            changed.Add(guest);
        }
    }

    private void ReadIdentity(GuestRecord guest)
    {
        string uuid = _xenStore.Read($"{guest.Home}/vm")?.Split('/')[^1] ?? "";
        if (guest.Identity.Uuid is { } before && before != uuid)
        {
            // Another guest with the same domid, and its home is a new one.
            guest.PublishedVifs.Clear();
            guest.PublishedPeers.Clear();
            ReadPublished(guest);
        }

        if (uuid.Length == 0)
        {
            // Its home is gone, and its offer with it, whichever watch tells first.
            guest.Offer = null;
        }

        guest.Identity = new GuestIdentity(_xenStore.Read($"{guest.Home}/name") ?? "", uuid);
    }

    /// <returns>True when they have changed.</returns>
    private bool ReadVifs(GuestRecord guest)
    {
        HashSet<ushort> backends = [];
        VifRecord[] vifs = VifRecord.ReadAll(_xenStore, guest.Domid, guest.Identity.Uuid, backends);
        foreach (ushort backend in backends.Where(guest.Backends.Add))
        {
            _xenStore.Watch(VifRecord.BackendArea(backend, guest.Domid), $"{VifsToken} {guest.Domid}");
        }

        bool changed = !vifs.AsSpan().SequenceEqual(guest.Vifs);
        guest.Vifs = vifs;
        return FindSegments(guest) | changed;
    }

    /// <returns>True when one is another than before.</returns>
    private bool FindSegments(GuestRecord guest)
    {
        string?[] segments = [.. guest.Vifs.Select(v => v.Segment(_masters))];
        bool changed = !segments.AsSpan().SequenceEqual(guest.Segments);
        guest.Segments = segments;
        return changed;
    }

    /// <summary>What this daemon introduced before it was restarted.</summary>
    private void ReadPublished(GuestRecord guest)
    {
        foreach (string name in _xenStore.List(guest.Introductions))
        {
            string node = $"{guest.Introductions}/{name}";
            if (name == Offer.QuiesceRequest && Quiesce.Parse(_xenStore.Read(node)) is { Holds: true } quiesce)
            {
                guest.Quiesce = quiesce;
                continue;
            }

            if (ChannelKey.ParseVif(name) is not { } vif
                || !MacAddress.TryParse(_xenStore.Read(node) ?? "", out MacAddress mac))
            {
                _xenStore.Remove(node);
                continue;
            }

            guest.PublishedVifs[vif] = mac;
            foreach (string peer in _xenStore.List(node))
            {
                if (ChannelKey.Parse(vif, peer) is { } key && Introduction.Parse(_xenStore.Read($"{node}/{peer}")) is { } introduction)
                {
                    guest.PublishedPeers[key.Peer] = [.. guest.PublishedPeers.GetValueOrDefault(key.Peer) ?? [], (key, introduction)];
                }
                else
                {
                    _xenStore.Remove($"{node}/{peer}");
                }
            }
        }
    }

    /// <summary>A node of the guest's own has changed: to be read when its budget allows.</summary>
    private static void Remember(GuestRecord guest, string path)
    {
        string directory = $"{guest.Home}/{Offer.Directory}";
        if (guest.Unread.Count >= MaxUnread)
        {
            guest.Unread.Clear();
            guest.Unread.Add("");
        }
        else if (!guest.Unread.Contains(""))
        {
            guest.Unread.Add(path.Length > directory.Length ? path[(directory.Length + 1)..] : "");
        }
    }

    /// <summary>Reads what guests have changed of their own nodes, and has their peers know.</summary>
    /// <returns>Milliseconds until a guest that was busy may be listened to again; -1 when all were.</returns>
    private int FollowNodes()
    {
        long due = -1;
        long now = Environment.TickCount64;
        foreach (GuestRecord guest in _guests.Values)
        {
            if (guest.Unread.Count == 0)
            {
                continue;
            }

            long wait = guest.Budget.DueIn(now);
            if (wait > 0)
            {
                due = due < 0 ? wait : Math.Min(due, wait);
                continue;
            }

            _requests = 0;
            string[] nodes = [.. guest.Unread];
            guest.Unread.Clear();
            Offer? offer = guest.Offer;
            HashSet<ushort> called = [];
            foreach (string node in nodes)
            {
                called.UnionWith(ReadNodes(guest, node));
            }

            if (guest.Offer != offer)
            {
                Publish(guest);
            }
            else
            {
                foreach (ushort peer in called)
                {
                    if (_guests.TryGetValue(peer, out GuestRecord? callee))
                    {
                        PublishPair(callee, guest.Domid);
                    }
                }
            }

            guest.Budget.Charge(_requests + nodes.Length);
        }

        return (int)due;
    }

    /// <summary>Reads one of the guest's own nodes, or all of them.</summary>
    /// <returns>The peers that are called now and were not, or the other way round.</returns>
    private HashSet<ushort> ReadNodes(GuestRecord guest, string name)
    {
        HashSet<ushort> peers = [];
        string directory = $"{guest.Home}/{Offer.Directory}";
        string[] names = [name];
        if (name.Length == 0)
        {
            peers.UnionWith(guest.Calls.Keys.Select(k => k.Peer));
            guest.Calls.Clear();
            names = [.. _xenStore.List(directory).Append("offer")];
        }

        foreach (string node in names)
        {
            string? value = _xenStore.Read($"{directory}/{node}");
            if (node == "offer")
            {
                guest.Offer = Offer.Parse(value);
            }
            else if (ChannelKey.ParseNode(node) is { } key)
            {
                ulong session = ChannelState.Parse(value) is { IsCall: true } call ? call.Session : 0;
                if (session != 0 ? (guest.Calls.GetValueOrDefault(key) != session) : guest.Calls.Remove(key))
                {
                    peers.Add(key.Peer);
                }

                if (session != 0)
                {
                    guest.Calls[key] = session;
                }
            }
        }

        return peers;
    }

    /// <summary>Brings what the guest and its neighbours know of each other up to date.</summary>
    private void Publish(GuestRecord guest)
    {
        PublishVifs(guest);
        PublishPeers(guest);
        foreach (GuestRecord peer in _guests.Values)
        {
            PublishPair(peer, guest.Domid);
        }
    }

    /// <summary>Of every peer: those on the host, and those that went while this daemon was away.</summary>
    private void PublishPeers(GuestRecord guest)
    {
        foreach (ushort peer in _guests.Keys.Union(guest.PublishedPeers.Keys).ToArray())
        {
            PublishPair(guest, peer);
        }
    }

    private void PublishVifs(GuestRecord guest)
    {
        Dictionary<int, MacAddress> wanted = [];
        for (int i = 0; guest.Offer is not null && i < guest.Vifs.Length; i++)
        {
            if (guest.Segments[i] is not null)
            {
                wanted[guest.Vifs[i].Vif] = guest.Vifs[i].Mac;
            }
        }

        Try(guest, () =>
        {
            foreach (int vif in guest.PublishedVifs.Keys.Where(v => !wanted.ContainsKey(v)).ToArray())
            {
                // Its peers go with it.
                Remove($"{guest.Introductions}/{vif}");
                guest.PublishedVifs.Remove(vif);
                foreach (ushort peer in guest.PublishedPeers.Keys.ToArray())
                {
                    guest.PublishedPeers[peer] = [.. guest.PublishedPeers[peer].Where(p => p.Key.Vif != vif)];
                }
            }

            if (guest.PublishedVifs.Count == 0)
            {
                if (wanted.Count == 0)
                {
                    if (guest.Quiesce is null)
                    {
                        Remove(guest.Introductions);
                    }

                    return;
                }

                MakeIntroductions(guest);
            }

            foreach ((int vif, MacAddress mac) in wanted)
            {
                if (!guest.PublishedVifs.TryGetValue(vif, out MacAddress published) || published != mac)
                {
                    Write($"{guest.Introductions}/{vif}", mac.ToString());
                    guest.PublishedVifs[vif] = mac;
                }
            }
        });
    }

    /// <summary>Brings what one guest knows of another up to date.</summary>
    private void PublishPair(GuestRecord guest, ushort peer)
    {
        (ChannelKey Key, Introduction Value)[] published = guest.PublishedPeers.GetValueOrDefault(peer) ?? [];
        (ChannelKey Key, Introduction Value)[] wanted = Wanted(guest, _guests.GetValueOrDefault(peer));
        if (published.AsSpan().SequenceEqual(wanted))
        {
            return;
        }

        Try(guest, () =>
        {
            foreach ((ChannelKey key, _) in published)
            {
                if (!Array.Exists(wanted, w => w.Key == key))
                {
                    Remove($"{guest.Introductions}/{key.Vif}/{key.PeerName}");
                }
            }

            foreach ((ChannelKey key, Introduction value) in wanted)
            {
                if (!published.Contains((key, value)))
                {
                    Write($"{guest.Introductions}/{key.Vif}/{key.PeerName}", value.ToString());
                }
            }

            if (wanted.Length > 0)
            {
                guest.PublishedPeers[peer] = wanted;
            }
            else
            {
                guest.PublishedPeers.Remove(peer);
            }
        });
    }

    private (ChannelKey Key, Introduction Value)[] Wanted(GuestRecord guest, GuestRecord? peer)
    {
        // Whom Dom0 cannot name it does not introduce: a denial might miss the guest.
        if (guest == peer || guest.Offer is null || peer?.Offer is null || guest.Quiesce is not null || peer.Quiesce is not null || !IsNamed(guest) || !IsNamed(peer) || !_policy.MayMeet(guest.Identity, peer.Identity))
        {
            return [];
        }

        List<(ChannelKey, Introduction)>? wanted = null;
        for (int i = 0; i < guest.Vifs.Length; i++)
        {
            for (int j = 0; guest.Segments[i] is { } segment && j < peer.Vifs.Length; j++)
            {
                if (peer.Segments[j] == segment)
                {
                    ChannelKey key = new(guest.Vifs[i].Vif, peer.Domid, peer.Vifs[j].Vif);
                    ulong call = peer.Calls.GetValueOrDefault(new ChannelKey(peer.Vifs[j].Vif, guest.Domid, guest.Vifs[i].Vif));
                    (wanted ??= []).Add((key, new Introduction(peer.Vifs[j].Mac, peer.Offer.Value, call)));
                }
            }
        }

        return wanted?.ToArray() ?? [];
    }

    private void MakeIntroductions(GuestRecord guest)
    {
        _xenStore.MakeDirectory(guest.Introductions);
        _xenStore.SetPermissions(guest.Introductions, ((ushort)0, XenStoreAccess.None), (guest.Domid, XenStoreAccess.Read));
    }

    /// <summary>Says so where there is none.</summary>
    private GuestRecord? FindGuest(string domid, Utf8JsonWriter json)
    {
        if (ushort.TryParse(domid, NumberStyles.None, CultureInfo.InvariantCulture, out ushort number) && _guests.TryGetValue(number, out GuestRecord? guest))
        {
            return guest;
        }

        json.WriteString("error", $"there is no domain {domid}");
        return null;
    }

    private static int? ParseHolder(string text, Utf8JsonWriter json)
    {
        if (int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int holder))
        {
            return holder;
        }

        json.WriteString("error", $"\"{text}\" is no process; give its number, or 0 for none");
        return null;
    }

    /// <summary>Begins, or asks how far it is.</summary>
    /// <returns>"absent": there is no daemon, and so nothing to fear; "pending"; "quiesced".</returns>
    private string BeginQuiesce(GuestRecord guest, int holder)
    {
        bool absent = Offer.Parse(_xenStore.Read($"{guest.Home}/{Offer.Node}")) is null;
        // Its daemon may come while it is being suspended, and then has to know. Without a holder nobody would end that.
        if (guest.Quiesce is null or { Holds: false } && !(absent && holder == 0))
        {
            guest.Quiesce = Quiesce.Begin(holder);
            Log.Info($"domain {guest.Domid} ({guest.Identity.Name}) is to be suspended{(holder == 0 ? "" : $" by process {holder}")}{(absent ? "" : ": its channels are closed")}");
            Try(guest, () =>
            {
                MakeIntroductions(guest);
                Write($"{guest.Introductions}/{Offer.QuiesceRequest}", guest.Quiesce.ToString());
            });
            Publish(guest);
        }

        if (absent)
        {
            return "absent";
        }

        return _xenStore.Read($"{guest.Home}/{Offer.Quiesced}") == guest.Quiesce!.ToString() ? "quiesced" : "pending";
    }

    private void EndQuiesce(GuestRecord guest, string why)
    {
        if (guest.Quiesce is not null)
        {
            guest.Quiesce = null;
            Log.Info($"domain {guest.Domid} ({guest.Identity.Name}) may have channels again: {why}");
            Try(guest, () => Remove($"{guest.Introductions}/{Offer.QuiesceRequest}"));
            Publish(guest);
        }
    }

    /// <returns>True while there are some.</returns>
    private bool FollowHolders()
    {
        bool some = false;
        foreach (GuestRecord guest in _guests.Values)
        {
            if (guest.Quiesce is { Holds: false })
            {
                EndQuiesce(guest, $"process {guest.Quiesce.Holder} has ended");
            }

            some |= guest.Quiesce is { Holder: not 0 };
        }

        return some;
    }

    private static bool IsNamed(GuestRecord guest) => guest.Identity is { Name.Length: > 0, Uuid.Length: > 0 };

    private void Write(string path, string value)
    {
        _requests++;
        _xenStore.Write(path, value);
    }

    private void Remove(string path)
    {
        _requests++;
        _xenStore.Remove(path);
    }

    private static void Try(GuestRecord guest, Action publish)
    {
        try
        {
            publish();
        }
        catch (NativeException e)
        {
            // A guest that is just going away takes its nodes with it; @releaseDomain follows.
            Log.Warning($"domain {guest.Domid}: {e.Message}");
        }
    }
}
