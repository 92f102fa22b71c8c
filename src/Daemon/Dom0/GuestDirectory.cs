using System.Globalization;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>
/// The guests of this host and what is known of them: who they are, their vifs and on which segments these are, and what they
/// say of themselves. Watches note what has changed; <see cref="Follow"/> reads it.
/// </summary>
internal sealed class GuestDirectory : IDisposable
{
    private static readonly TimeSpan _tellDistance = TimeSpan.FromSeconds(10);

    private readonly XenStore _xenStore;
    private readonly WatchSet _watches;
    private readonly Publisher _publisher;
    private readonly TimeProvider _clock;
    private readonly NetworkReader _network = new();
    private readonly BridgeFdb _fdb = new();
    private readonly LearnedPlaces _places;
    private readonly SortedDictionary<ushort, GuestRecord> _guests = [];
    private readonly HashSet<GuestRecord> _renamed = [];
    private readonly HashSet<GuestRecord> _rewired = [];
    private bool _domainsChanged;
    private bool _look;

    /// <param name="xenStore">Dom0's.</param>
    /// <param name="watches">Of the same connection.</param>
    /// <param name="publisher">Knows what guests were told.</param>
    /// <param name="clock">The monotonic clock.</param>
    public GuestDirectory(XenStore xenStore, WatchSet watches, Publisher publisher, TimeProvider clock)
    {
        (_xenStore, _watches, _publisher, _clock) = (xenStore, watches, publisher, clock);
        _places = new LearnedPlaces(_fdb.Find, _fdb.Follow);
        watches.Add(StorePaths.IntroduceDomain, _ => _domainsChanged = true);
        watches.Add(StorePaths.ReleaseDomain, _ => _domainsChanged = true);
        watches.Add(StorePaths.Xapi, RewireXapi);
    }

    /// <summary>Readable when something in Dom0's network may have changed.</summary>
    public IReadOnlyList<int> Descriptors => [.. _network.Descriptors, _fdb.FileDescriptor];

    /// <summary>When <see cref="Follow"/> is due though nothing fires.</summary>
    public Deadline Due => _look ? Deadline.Now : _places.Due.Or(_network.Due(IsSomebodyIntroduced));

    /// <summary>By domid.</summary>
    public IReadOnlyCollection<GuestRecord> Guests => _guests.Values;

    private bool IsSomebodyIntroduced => _guests.Values.Any(g => g.PublishedPeers.Count > 0);

    public GuestRecord? Find(ushort domid) => _guests.GetValueOrDefault(domid);

    /// <summary>Every domain but Dom0 that has a home in XenStore, ghosts included.</summary>
    public static IEnumerable<ushort> List(XenStore xenStore)
    {
        foreach (string name in xenStore.List(StorePaths.Homes))
        {
            if (ushort.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid) && domid != 0)
            {
                yield return domid;
            }
        }
    }

    /// <summary>A guest may end while something is written for it: the write makes its home anew, and nobody else removes that.</summary>
    public static void RemoveGhost(XenStore xenStore, ushort domid)
    {
        string home = StorePaths.Home(domid);
        if (xenStore.List(home) is [] or [StorePaths.OwnIntroductions])
        {
            xenStore.Remove(home);
        }
    }

    /// <summary>Reads what the toolstack and the kernel have changed. What guests have, see <see cref="ReadNodes"/>.</summary>
    /// <param name="gone">Gets the guests that are no more.</param>
    /// <returns>The guests that are new, or others than before.</returns>
    public HashSet<GuestRecord> Follow(List<GuestRecord> gone)
    {
        HashSet<GuestRecord> changed = [];
        bool moved = FollowNetwork();
        // Not before the first reading: of ports that nobody knows all introductions would be withdrawn.
        if (_domainsChanged && _network.IsKnown)
        {
            _domainsChanged = false;
            FollowDomains(gone, changed);
        }

        foreach (GuestRecord guest in _renamed)
        {
            ReadIdentity(guest);
            changed.Add(guest);
        }

        foreach (GuestRecord guest in _rewired)
        {
            if (ReadVifs(guest))
            {
                changed.Add(guest);
            }
        }

        if (moved || changed.Count > 0 || gone.Count > 0)
        {
            FindStandings(changed);
        }

        _renamed.Clear();
        _rewired.Clear();
        return changed;
    }

    /// <summary>A guest calls: what nobody tells of is to be looked at by the next <see cref="Follow"/>.</summary>
    public void LookAgain() => _look = true;

    /// <summary>Reads of the guest's own nodes what has changed: the offer, and without one nothing else.</summary>
    /// <param name="guest">One of <see cref="Guests"/>.</param>
    /// <param name="most">Channels' nodes at most; the rest stays unread.</param>
    /// <returns>The peers that are called now and were not, or the other way round.</returns>
    public HashSet<ushort> ReadNodes(GuestRecord guest, int most)
    {
        HashSet<ushort> peers = [];
        if (guest.Unread.Remove(""))
        {
            guest.Unread.Add(StorePaths.OfferName);
            foreach (ChannelKey key in guest.Calls.Keys)
            {
                guest.Unread.Add(key.NodeName);
            }
        }

        if (guest.Unread.Remove(StorePaths.OfferName))
        {
            string? value = _xenStore.Read(StorePaths.Offer(guest.Domid));
            guest.Offer = Offer.Parse(value);
            guest.IsOff = value == Offer.Off;
        }

        if (guest.Offer is null)
        {
            foreach (ChannelKey key in guest.Calls.Keys)
            {
                peers.Add(key.Peer);
                guest.Unread.Add(key.NodeName);
            }

            guest.Calls.Clear();
            return peers;
        }

        foreach (string node in (string[])[.. guest.Unread])
        {
            if (most-- <= 0)
            {
                break;
            }

            guest.Unread.Remove(node);
            ChannelKey key = ChannelKey.ParseNode(node)!.Value;
            ulong session = ChannelMessage.Parse(_xenStore.Read($"{StorePaths.Area(guest.Domid)}/{node}")) is { IsCall: true } call ? call.Session : 0;
            if (session != 0 ? (guest.Calls.GetValueOrDefault(key) != session) : guest.Calls.Remove(key))
            {
                peers.Add(key.Peer);
            }

            if (session != 0)
            {
                guest.Calls[key] = session;
            }
        }

        return peers;
    }

    /// <summary>Hears of the guest's nodes again, and reads what may have changed.</summary>
    public void Unmute(GuestRecord guest)
    {
        guest.IsMuted = false;
        guest.RememberAll();
        // It may have called whom it was not introduced to when it was heard last.
        foreach (GuestRecord peer in _guests.Values)
        {
            foreach (VifRecord own in guest.Vifs)
            {
                foreach (VifRecord other in peer.Vifs)
                {
                    guest.Unread.Add(new ChannelKey(own.Vif, peer.Domid, other.Vif).NodeName);
                }
            }
        }

        _watches.Add(StorePaths.Area(guest.Domid), path => Note(guest, path));
    }

    public void Dispose()
    {
        _fdb.Dispose();
        _network.Dispose();
    }

    private void FollowDomains(List<GuestRecord> gone, HashSet<GuestRecord> changed)
    {
        HashSet<ushort> present = [];
        foreach (ushort domid in List(_xenStore))
        {
            if (_xenStore.Read(StorePaths.Domid(domid)) is not null)
            {
                present.Add(domid);
            }
            else
            {
                RemoveGhost(_xenStore, domid);
            }
        }

        foreach (GuestRecord guest in _guests.Values.Where(g => !present.Contains(g.Domid)).ToArray())
        {
            gone.Add(guest);
            _guests.Remove(guest.Domid);
            _renamed.Remove(guest);
            _rewired.Remove(guest);
            foreach (string path in (string[])[StorePaths.Area(guest.Domid), StorePaths.GuestName(guest.Domid), StorePaths.LibxlVifs(guest.Domid), .. guest.Backends.Append((ushort)0).Select(b => StorePaths.BackendVifs(b, guest.Domid))])
            {
                _watches.Remove(path);
            }
        }

        foreach (ushort domid in present.Where(d => !_guests.ContainsKey(d)))
        {
            GuestRecord guest = new(domid, _clock.Now());
            _guests.Add(domid, guest);
            _watches.Add(StorePaths.Area(domid), path => Note(guest, path));
            _watches.Add(StorePaths.GuestName(domid), _ => _renamed.Add(guest));
            _watches.Add(StorePaths.LibxlVifs(domid), path => Rewire(guest, path));
            _watches.Add(StorePaths.BackendVifs(0, domid), path => Rewire(guest, path));
            // The watches fire at once, but later than this turn, which would withdraw what was published for want of an offer.
            _publisher.ReadBack(guest, Suspends.Holds);
            ReadIdentity(guest);
            // The offer at once; who calls whom when it is the guest's turn.
            guest.RememberAll();
            ReadNodes(guest, 0);
            ReadVifs(guest);
            changed.Add(guest);
        }
    }

    /// <summary>A node of the guest's own has changed. A guest that does nothing else is not listened to for a while.</summary>
    private void Note(GuestRecord guest, string path)
    {
        // A call that is known may end though a vif is away.
        guest.Remember(path, key => guest.Calls.ContainsKey(key) || (Array.Exists(guest.Vifs, v => v.Vif == key.Vif) && Find(key.Peer) is { } peer && Array.Exists(peer.Vifs, v => v.Vif == key.PeerVif)));
        guest.Budget.ChargeEvent();
        if (guest.Budget.IsOverdrawn)
        {
            guest.IsMuted = true;
            _watches.Remove(StorePaths.Area(guest.Domid));
        }
    }

    private void Rewire(GuestRecord guest, string path)
    {
        // A guest makes its backend change state as often as it likes, and that says nothing of the vif.
        if (!path.EndsWith("/state", StringComparison.Ordinal))
        {
            _rewired.Add(guest);
        }
    }

    /// <summary>Of what XAPI keeps for itself, its vifs matter.</summary>
    private void RewireXapi(string path)
    {
        if (path.Split('/') is [_, _, string uuid, "private", "vif", ..])
        {
            _rewired.UnionWith(_guests.Values.Where(g => g.Identity.Uuid == uuid));
        }
    }

    private void ReadIdentity(GuestRecord guest)
    {
        string uuid = _xenStore.Read(StorePaths.Vm(guest.Domid))?.Split('/')[^1] ?? "";
        if (guest.Identity.Uuid is { } before && before != uuid)
        {
            // Another guest with the same domid, and its home is a new one; and XAPI files what it knows of vifs by it.
            _publisher.ReadBack(guest, Suspends.Holds);
            _rewired.Add(guest);
        }

        if (uuid.Length == 0)
        {
            // Its home is gone, and its offer with it, whichever watch tells first.
            guest.Offer = null;
        }

        guest.Identity = new GuestIdentity(_xenStore.Read(StorePaths.GuestName(guest.Domid)) ?? "", uuid);
    }

    /// <returns>True when they have changed.</returns>
    private bool ReadVifs(GuestRecord guest)
    {
        HashSet<ushort> backends = [];
        VifRecord[] vifs = VifRecord.ReadAll(_xenStore, guest.Domid, guest.Identity.Uuid, backends);
        foreach (ushort backend in backends.Where(guest.Backends.Add))
        {
            _watches.Add(StorePaths.BackendVifs(backend, guest.Domid), path => Rewire(guest, path));
        }

        bool changed = !vifs.AsSpan().SequenceEqual(guest.Vifs);
        guest.Vifs = vifs;
        return changed;
    }

    /// <summary>Reads what the kernel has changed of Dom0's network.</summary>
    /// <returns>True when vifs may stand otherwise than before.</returns>
    private bool FollowNetwork()
    {
        TimeSpan now = _clock.Now();
        bool read = _network.Follow(now, IsSomebodyIntroduced, _look);
        _look = false;
        if (read)
        {
            // Open vSwitch's ports are told apart by what XenStore says, which may have changed without a watch of ours.
            _rewired.UnionWith(_guests.Values.Where(g =>
                g.Vifs.Any(v => v.Backend == 0 && _network.Facts.Ports.TryGetValue(v.Interface, out SwitchPort? port) && !port.IsBridge)));
        }

        bool moved = false;
        if (!_fdb.TakeChanges((key, entry) => moved |= _places.Changed(key, entry, now)))
        {
            moved |= _places.LookAtAll(now);
        }

        return _places.Turn(now) | moved | read;
    }

    /// <summary>Finds how each vif stands, which depends on all others.</summary>
    /// <param name="changed">Gets the guests of which one stands otherwise than before.</param>
    private void FindStandings(HashSet<GuestRecord> changed)
    {
        List<VifPlace> places = [];
        foreach (GuestRecord guest in _guests.Values)
        {
            foreach (VifRecord vif in guest.Vifs)
            {
                if (Place(vif) is { } place)
                {
                    places.Add(place);
                }
            }
        }

        _places.Follow(places);
        Dictionary<string, int> twins = Introducer.CountTwins(_guests.Values, _network.Facts.Ports);
        foreach (GuestRecord guest in _guests.Values)
        {
            VifStanding[] standings = Array.ConvertAll(guest.Vifs, vif => VifStanding.Of(
                vif,
                _network.Facts,
                isTwin: vif.Label(_network.Facts.Ports) is { } label && twins[label] > 1,
                isElsewhere: Place(vif) is { } place && _places.IsElsewhere(place.Key)));
            if (!standings.AsSpan().SequenceEqual(guest.Standings))
            {
                Tell(guest, standings);
                guest.Standings = standings;
                changed.Add(guest);
            }
        }
    }

    /// <summary>Where the vif's MAC address belongs; null where there is no bridge of Dom0's.</summary>
    private VifPlace? Place(VifRecord vif) =>
        vif.Backend == 0 && _network.Facts.Ports.TryGetValue(vif.Interface, out SwitchPort? port) && port.IsBridge
            ? new VifPlace(new FdbKey(port.MasterIndex, port.FdbVlan, vif.Mac), port.Index, port.Floods)
            : null;

    /// <summary>Tells the administrator, who would else look for the reason in vain. Not of an address each time that it moves.</summary>
    private void Tell(GuestRecord guest, VifStanding[] standings)
    {
        for (int i = 0; i < standings.Length; i++)
        {
            // Where they are as many as before they are the same, mostly.
            string? before = guest.Standings.Length == standings.Length ? guest.Standings[i].Restriction : null;
            if (standings[i].Restriction is { } restriction && restriction != before && _clock.Now() >= guest.ToldAt + _tellDistance)
            {
                guest.ToldAt = _clock.Now();
                Log.Info($"domain {guest.Domid} ({guest.Identity.Name}) vif {guest.Vifs[i].Vif} is kept to netfront: {restriction}");
            }
        }
    }
}
