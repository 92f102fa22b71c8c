using System.Globalization;
using System.Text.Json;
using XenLoop.Control;
using XenLoop.Guest;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>
/// The daemon in Dom0: introduces willing guests on the same segment to each other, and withdraws what no longer
/// holds. It holds nothing that XenStore does not: after a restart it reads its own introductions back.
/// </summary>
internal sealed class Dom0Role : IRole
{
    private const string DomainsToken = "domains";
    private const string OfferToken = "offer ";
    private const string VifsToken = "vifs ";
    private const string IntroductionsNode = "xenloop";

    private readonly XenStore _xenStore;
    private readonly SortedDictionary<ushort, GuestRecord> _guests = [];
    private Policy _policy;

    public Dom0Role(IHypervisor hypervisor, Configuration configuration)
    {
        _policy = configuration.Policy;
        _xenStore = hypervisor.OpenXenStore();
        Descriptors = [_xenStore.FileDescriptor];
        _xenStore.Watch("@introduceDomain", DomainsToken);
        _xenStore.Watch("@releaseDomain", DomainsToken);
        Log.Info("Dom0: introducing guests on the same bridge to each other");
    }

    public IReadOnlyList<int> Descriptors { get; }

    public int Turn()
    {
        HashSet<string> fired = [];
        while (_xenStore.TryTakeWatch(out _, out string token))
        {
            fired.Add(token);
        }

        if (fired.Contains(DomainsToken))
        {
            FollowDomains();
        }

        foreach (GuestRecord guest in _guests.Values)
        {
            if (fired.Contains(OfferToken + guest.Domid))
            {
                ReadOffer(guest);
            }

            if (fired.Contains(VifsToken + guest.Domid))
            {
                ReadVifs(guest);
            }
        }

        if (fired.Count > 0)
        {
            foreach (GuestRecord guest in _guests.Values)
            {
                Publish(guest);
            }
        }

        return -1;
    }

    public void Configure(Configuration configuration) => _policy = configuration.Policy;

    public void WriteStatus(Utf8JsonWriter json)
    {
        json.WriteString("role", "dom0");
        json.WriteStartArray("guests");
        foreach (GuestRecord guest in _guests.Values)
        {
            json.WriteStartObject();
            json.WriteNumber("domid", guest.Domid);
            json.WriteString("name", _xenStore.Read($"{Home(guest)}/name") ?? "");
            json.WriteBoolean("willing", guest.Offer is not null);
            json.WriteStartArray("vifs");
            foreach (VifRecord vif in guest.Vifs)
            {
                json.WriteStartObject();
                json.WriteNumber("vif", vif.Vif);
                json.WriteString("mac", vif.Mac.ToString());
                json.WriteString("segment", vif.Segment);
                json.WriteStartArray("introduced");
                foreach (string peer in guest.Published.Keys.Where(p => p.StartsWith($"{vif.Vif}/", StringComparison.Ordinal)).Order(StringComparer.Ordinal))
                {
                    json.WriteStringValue(peer[(peer.IndexOf('/') + 1)..]);
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
    public void Dispose() => _xenStore.Dispose();

    private static string Home(GuestRecord guest) => $"/local/domain/{guest.Domid}";

    private void ReadOffer(GuestRecord guest) => guest.Offer = Offer.Parse(_xenStore.Read($"{Home(guest)}/{Offer.Node}"));

    private void ReadVifs(GuestRecord guest) => guest.Vifs = VifRecord.ReadAll(_xenStore, guest.Domid);

    private void FollowDomains()
    {
        HashSet<ushort> present = [];
        foreach (string name in _xenStore.List("/local/domain"))
        {
            if (ushort.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid) && domid != 0)
            {
                present.Add(domid);
            }
        }

        foreach (ushort gone in _guests.Keys.Where(d => !present.Contains(d)).ToArray())
        {
            _guests.Remove(gone);
            _xenStore.Unwatch($"/local/domain/{gone}/{Offer.Node}", OfferToken + gone);
            _xenStore.Unwatch($"/local/domain/0/backend/vif/{gone}", VifsToken + gone);
        }

        foreach (ushort domid in present.Where(d => !_guests.ContainsKey(d)))
        {
            GuestRecord guest = new(domid);
            ReadPublished(guest);
            _guests.Add(domid, guest);
            _xenStore.Watch($"{Home(guest)}/{Offer.Node}", OfferToken + domid);
            _xenStore.Watch($"/local/domain/0/backend/vif/{domid}", VifsToken + domid);
            // Both fire at once, but later than this turn, which would withdraw what was published for want of an offer.
            ReadOffer(guest);
            ReadVifs(guest);
        }
    }

    /// <summary>What this daemon introduced before it was restarted.</summary>
    private void ReadPublished(GuestRecord guest)
    {
        string root = $"{Home(guest)}/{IntroductionsNode}";
        foreach (string vif in _xenStore.List(root))
        {
            guest.Published[vif] = _xenStore.Read($"{root}/{vif}") ?? "";
            foreach (string peer in _xenStore.List($"{root}/{vif}"))
            {
                guest.Published[$"{vif}/{peer}"] = _xenStore.Read($"{root}/{vif}/{peer}") ?? "";
            }
        }
    }

    /// <summary>Whom the guest should know, by node below its introductions.</summary>
    private Dictionary<string, string> Wanted(GuestRecord guest)
    {
        Dictionary<string, string> wanted = [];
        if (guest.Offer is null)
        {
            return wanted;
        }

        foreach (VifRecord vif in guest.Vifs)
        {
            wanted[$"{vif.Vif}"] = vif.Mac.ToString();
            foreach (GuestRecord peer in _guests.Values)
            {
                if (peer == guest || peer.Offer is null)
                {
                    continue;
                }

                foreach (VifRecord peerVif in peer.Vifs)
                {
                    if (peerVif.Segment == vif.Segment)
                    {
                        wanted[$"{vif.Vif}/{peer.Domid}-{peerVif.Vif}"] = $"{peerVif.Mac} {peer.Offer}";
                    }
                }
            }
        }

        return wanted;
    }

    private void Publish(GuestRecord guest)
    {
        Dictionary<string, string> wanted = Wanted(guest);
        string root = $"{Home(guest)}/{IntroductionsNode}";
        try
        {
            // Vifs before their peers when they come, peers before their vifs when they go.
            foreach (string node in guest.Published.Keys.Where(n => !wanted.ContainsKey(n)).OrderByDescending(n => n, StringComparer.Ordinal).ToArray())
            {
                _xenStore.Remove($"{root}/{node}");
                guest.Published.Remove(node);
            }

            if (wanted.Count > 0 && guest.Published.Count == 0)
            {
                _xenStore.MakeDirectory(root);
                _xenStore.SetPermissions(root, ((ushort)0, XenStoreAccess.None), (guest.Domid, XenStoreAccess.Read));
            }

            foreach ((string node, string value) in wanted.OrderBy(n => n.Key, StringComparer.Ordinal))
            {
                if (!guest.Published.TryGetValue(node, out string? published) || published != value)
                {
                    _xenStore.Write($"{root}/{node}", value);
                    guest.Published[node] = value;
                }
            }
        }
        catch (NativeException e)
        {
            // A guest that is just going away takes its nodes with it; @releaseDomain follows.
            Log.Warning($"domain {guest.Domid}: {e.Message}");
        }
    }
}
