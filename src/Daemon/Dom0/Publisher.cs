using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;
using XenLoop.Service;

namespace XenLoop.Dom0;

/// <summary>Writes what guests are told, and remembers what stands there: only what differs is written.</summary>
internal sealed class Publisher(XenStore xenStore)
{
    /// <summary>What this daemon introduced before it was restarted.</summary>
    /// <param name="guest">Gets it.</param>
    /// <param name="holds">Whether a request to quiesce still stands.</param>
    public void ReadBack(GuestRecord guest, Func<QuiesceRequest, bool> holds)
    {
        guest.PublishedVifs.Clear();
        guest.PublishedPeers.Clear();
        foreach (string name in xenStore.List(StorePaths.Introductions(guest.Domid)))
        {
            string node = $"{StorePaths.Introductions(guest.Domid)}/{name}";
            if (name == StorePaths.QuiesceRequestName && QuiesceRequest.Parse(xenStore.Read(node)) is { } quiesce && holds(quiesce))
            {
                guest.Quiesce = quiesce;
                continue;
            }

            if (ChannelKey.ParseVif(name) is not { } vif
                || !MacAddress.TryParse(xenStore.Read(node) ?? "", out MacAddress mac))
            {
                xenStore.Remove(node);
                continue;
            }

            guest.PublishedVifs[vif] = mac;
            foreach (string peer in xenStore.List(node))
            {
                if (ChannelKey.Parse(vif, peer) is { } key && Introduction.Parse(xenStore.Read($"{node}/{peer}")) is { } introduction)
                {
                    guest.PublishedPeers[key.Peer] = [.. guest.PublishedPeers.GetValueOrDefault(key.Peer) ?? [], (key, introduction)];
                }
                else
                {
                    xenStore.Remove($"{node}/{peer}");
                }
            }
        }
    }

    /// <summary>Tells a guest which of its vifs take part.</summary>
    public void PublishVifs(GuestRecord guest, Dictionary<int, MacAddress> wanted) => Try(guest, () =>
    {
        foreach (int vif in guest.PublishedVifs.Keys.Where(v => !wanted.ContainsKey(v)).ToArray())
        {
            // Its peers go with it.
            xenStore.Remove(StorePaths.Introductions(guest.Domid, vif));
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
                    xenStore.Remove(StorePaths.Introductions(guest.Domid));
                }

                return;
            }

            MakeArea(guest);
        }

        foreach ((int vif, MacAddress mac) in wanted)
        {
            if (!guest.PublishedVifs.TryGetValue(vif, out MacAddress published) || published != mac)
            {
                xenStore.Write(StorePaths.Introductions(guest.Domid, vif), mac.ToString());
                guest.PublishedVifs[vif] = mac;
            }
        }
    });

    /// <summary>Brings what one guest knows of another up to date.</summary>
    public void PublishPeers(GuestRecord guest, ushort peer, (ChannelKey Key, Introduction Value)[] wanted)
    {
        (ChannelKey Key, Introduction Value)[] published = guest.PublishedPeers.GetValueOrDefault(peer) ?? [];
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
                    xenStore.Remove(StorePaths.Introduction(guest.Domid, key));
                }
            }

            foreach ((ChannelKey key, Introduction value) in wanted)
            {
                if (!published.Contains((key, value)))
                {
                    xenStore.Write(StorePaths.Introduction(guest.Domid, key), value.ToString());
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

    /// <summary>Asks a guest to quiesce.</summary>
    public void PublishQuiesce(GuestRecord guest, QuiesceRequest request) => Try(guest, () =>
    {
        MakeArea(guest);
        xenStore.Write(StorePaths.QuiesceRequest(guest.Domid), request.ToString());
    });

    /// <summary>Takes that back.</summary>
    public void WithdrawQuiesce(GuestRecord guest) => Try(guest, () => xenStore.Remove(StorePaths.QuiesceRequest(guest.Domid)));

    private void MakeArea(GuestRecord guest)
    {
        string area = StorePaths.Introductions(guest.Domid);
        xenStore.MakeDirectory(area);
        xenStore.SetPermissions(area, ((ushort)0, XenStoreAccess.None), (guest.Domid, XenStoreAccess.Read));
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
