using System.Globalization;
using System.Text.Json;
using XenLoop.Hypervisor;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;
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
    // Between two looks at what an administrator asks, which comes first: a few milliseconds' worth.
    private const int EventsPerTurn = 1024;
    private const int RequestsPerTurn = 64;

    private readonly TimeProvider _clock;
    private readonly XenStore _xenStore;
    private readonly WatchSet _watches;
    private readonly Publisher _publisher;
    private readonly GuestDirectory _directory;
    private readonly Suspends _suspends;
    private Policy _policy;
    private int _nextGuest;

    public Dom0Role(IHypervisor hypervisor, Configuration configuration, TimeProvider clock)
    {
        _clock = clock;
        _policy = configuration.Policy;
        _xenStore = hypervisor.OpenXenStore();
        _watches = new WatchSet(_xenStore);
        _publisher = new Publisher(_xenStore);
        _directory = new GuestDirectory(_xenStore, _watches, _publisher, clock);
        _suspends = new Suspends(_xenStore, _publisher, Publish);
        Descriptors = [_xenStore.FileDescriptor, .. _directory.Descriptors];
        Log.Info("Dom0: introducing guests on the same segment to each other");
    }

    public string Activity => "introducing guests";

    public IReadOnlyList<int> Descriptors { get; }

    public void AwaitThreads()
    {
        // There is none.
    }

    public void Register(ControlSocket control)
    {
        control.Register("quiesce DOMID HOLDER", (json, arguments) =>
        {
            if (FindGuest(arguments[0], json) is { } guest && ParseHolder(arguments[1], json) is { } holder)
            {
                json.WriteString("state", _suspends.Begin(guest, holder));
            }
        });
        control.Register("resume DOMID", (json, arguments) =>
        {
            if (FindGuest(arguments[0], json) is { } guest)
            {
                _suspends.End(guest, "on request");
                json.WriteString("state", "resumed");
            }
        });
    }

    public void Configure(Configuration configuration)
    {
        _policy = configuration.Policy;
        foreach (GuestRecord guest in _directory.Guests)
        {
            PublishPeers(guest);
        }
    }

    public Deadline Turn()
    {
        _watches.Drain(EventsPerTurn);
        List<GuestRecord> gone = [];
        HashSet<GuestRecord> changed = _directory.Follow(gone);
        foreach (GuestRecord guest in _directory.Guests)
        {
            foreach (GuestRecord former in gone)
            {
                PublishPair(guest, former.Domid);
            }
        }

        foreach (GuestRecord guest in changed)
        {
            Publish(guest);
        }

        Deadline due = FollowNodes().Or(_directory.Due);
        return _suspends.FollowHolders(_directory.Guests) ? due.Or(Deadline.At(_clock.Now() + Suspends.HolderPoll)) : due;
    }

    public void WriteStatus(Utf8JsonWriter json)
    {
        json.WriteString("role", "dom0");
        json.WriteStartArray("guests");
        foreach (GuestRecord guest in _directory.Guests)
        {
            json.WriteStartObject();
            json.WriteNumber("domid", guest.Domid);
            json.WriteString("name", guest.Identity.Name);
            json.WriteString("uuid", guest.Identity.Uuid);
            json.WriteBoolean("willing", guest.Offer is not null);
            json.WriteBoolean("quiesced", guest.Quiesce is not null);
            json.WriteString("daemon", guest.Offer is not null ? "willing" : guest.IsOff ? "off" : "none");
            json.WriteString("apart", Introducer.WhyApart(guest));
            WriteDenied(json, guest);
            json.WriteStartArray("vifs");
            for (int i = 0; i < guest.Vifs.Length; i++)
            {
                VifRecord vif = guest.Vifs[i];
                json.WriteStartObject();
                json.WriteNumber("vif", vif.Vif);
                json.WriteString("mac", vif.Mac.ToString());
                json.WriteString("interface", vif.Interface);
                json.WriteString("segment", guest.Standings[i].Segment);
                WriteRestriction(json, guest, i);
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

    private void WriteDenied(Utf8JsonWriter json, GuestRecord guest)
    {
        json.WriteStartObject("denied");
        foreach ((string rule, List<ushort> peers) in Introducer.Denied(_policy, guest, _directory.Guests))
        {
            json.WriteStartArray(rule);
            peers.ForEach(p => json.WriteNumberValue(p));
            json.WriteEndArray();
        }

        json.WriteEndObject();
    }

    /// <summary>The introductions stay: a restart of this daemon must not cost a channel.</summary>
    public void Dispose()
    {
        _xenStore.Dispose();
        _directory.Dispose();
    }

    /// <summary>Reads what guests have changed of their own nodes, and has their peers know. Each in its turn, and as far as its budget allows.</summary>
    /// <returns>When there is more to do: at once, or when a guest that was busy may be listened to again.</returns>
    private Deadline FollowNodes()
    {
        Deadline due = Deadline.Never;
        TimeSpan now = _clock.Now();
        GuestRecord[] busy = [.. _directory.Guests.Where(g => g.HasNews || g.IsMuted)];
        int left = RequestsPerTurn;
        for (int i = 0; i < busy.Length; i++)
        {
            GuestRecord guest = busy[(_nextGuest + i) % busy.Length];
            Deadline allowed = guest.Budget.Due(now);
            if (!allowed.IsDue(now))
            {
                due = due.Or(allowed);
                continue;
            }

            if (left <= 0)
            {
                _nextGuest = (_nextGuest + i) % busy.Length;
                return Deadline.Now;
            }

            long before = _xenStore.Requests;
            if (guest.IsMuted)
            {
                _directory.Unmute(guest);
            }

            long free = FollowNodes(guest, left);
            int requests = (int)(_xenStore.Requests - before);
            guest.Budget.Charge(requests - free);
            left -= requests;
            if (guest.HasNews)
            {
                due = Deadline.Now;
            }
        }

        return due;
    }

    /// <returns>Requests that the guest does not pay for: those for its arrival.</returns>
    private long FollowNodes(GuestRecord guest, int most)
    {
        Offer? offer = guest.Offer;
        HashSet<ushort> called = _directory.ReadNodes(guest, most);
        if (guest.Offer == offer)
        {
            if (called.Count > 0)
            {
                _directory.LookAgain();
            }

            foreach (ushort peer in called)
            {
                if (_directory.Find(peer) is { } callee)
                {
                    PublishPair(callee, guest.Domid);
                }
            }

            return 0;
        }

        long before = _xenStore.Requests;
        Publish(guest);
        bool arrives = !guest.HasArrived && guest.Offer is not null;
        guest.HasArrived |= arrives;
        return arrives ? _xenStore.Requests - before : 0;
    }

    private void WriteRestriction(Utf8JsonWriter json, GuestRecord guest, int vif)
    {
        VifStanding standing = guest.Standings[vif];
        json.WriteString("restricted", standing.Restriction);
        if (standing is { Segment: not null, Restriction: not null } && standing.Ambiguity is null)
        {
            json.WriteBoolean("restriction_ignored", _policy.IgnoresRestrictions(guest.Identity, guest.Vifs[vif].Interface, standing.Segment));
        }

        if (guest.Vifs[vif].Sources is { } sources)
        {
            json.WriteString("sources", sources);
        }
    }

    /// <summary>Brings what the guest and its neighbours know of each other up to date.</summary>
    private void Publish(GuestRecord guest)
    {
        _publisher.PublishVifs(guest, Introducer.Vifs(guest));
        PublishPeers(guest);
        foreach (GuestRecord peer in _directory.Guests)
        {
            PublishPair(peer, guest.Domid);
        }
    }

    /// <summary>Of every peer: those on the host, and those that went while this daemon was away.</summary>
    private void PublishPeers(GuestRecord guest)
    {
        foreach (ushort peer in _directory.Guests.Select(g => g.Domid).Union(guest.PublishedPeers.Keys).ToArray())
        {
            PublishPair(guest, peer);
        }
    }

    private void PublishPair(GuestRecord guest, ushort peer) =>
        _publisher.PublishPeers(guest, peer, Introducer.Peers(_policy, guest, _directory.Find(peer)));

    /// <summary>Says so where there is none.</summary>
    private GuestRecord? FindGuest(string domid, Utf8JsonWriter json)
    {
        if (ushort.TryParse(domid, NumberStyles.None, CultureInfo.InvariantCulture, out ushort number) && _directory.Find(number) is { } guest)
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
}
