using XenLoop.Interop.Linux;
using XenLoop.Protocol;
using XenLoop.Settings;

namespace XenLoop.Dom0;

/// <summary>Who is to meet whom: what should stand in XenStore, of what is known of the guests. Does nothing.</summary>
internal static class Introducer
{
    /// <summary>The vifs of a guest that take part: those that are on a segment, of a guest that is willing.</summary>
    public static Dictionary<int, MacAddress> Vifs(GuestRecord guest)
    {
        Dictionary<int, MacAddress> vifs = [];
        for (int i = 0; guest.Offer is not null && i < guest.Vifs.Length; i++)
        {
            if (guest.Standings[i].Segment is not null)
            {
                vifs[guest.Vifs[i].Vif] = guest.Vifs[i].Mac;
            }
        }

        return vifs;
    }

    /// <summary>
    /// What a guest is to know of another: an introduction for each pair of vifs on one segment between which Dom0 would forward everything, with the
    /// other's call for this guest, if there is one.
    /// </summary>
    /// <param name="policy">Dom0's.</param>
    /// <param name="guest">Who is told.</param>
    /// <param name="peer">Of whom; null when there is no such guest any more.</param>
    public static (ChannelKey Key, Introduction Value)[] Peers(Policy policy, GuestRecord guest, GuestRecord? peer)
    {
        if (peer is null || guest == peer || !MayMeetAnyone(guest) || !MayMeetAnyone(peer) || !policy.MayMeet(guest.Identity, peer.Identity))
        {
            return [];
        }

        List<(ChannelKey, Introduction)>? peers = null;
        for (int i = 0; i < guest.Vifs.Length; i++)
        {
            for (int j = 0; guest.Standings[i].Segment is { } segment && j < peer.Vifs.Length; j++)
            {
                if (peer.Standings[j].Segment == segment && IsFree(policy, guest, i, peer, j))
                {
                    ChannelKey key = new(guest.Vifs[i].Vif, peer.Domid, peer.Vifs[j].Vif);
                    ulong call = peer.Calls.GetValueOrDefault(new ChannelKey(peer.Vifs[j].Vif, guest.Domid, guest.Vifs[i].Vif));
                    (peers ??= []).Add((key, new Introduction(peer.Vifs[j].Mac, peer.Offer!.Value, call, peer.Vifs[j].Sources, peer.Standings[j].Mtu)));
                }
            }
        }

        return peers?.ToArray() ?? [];
    }

    /// <summary>How many vifs there are with one MAC address on one segment: of two, nobody can tell whom a frame is meant for.</summary>
    /// <param name="guests">All, the unwilling as well.</param>
    /// <param name="ports">Dom0's.</param>
    /// <returns>By <see cref="VifRecord.Label"/>.</returns>
    public static Dictionary<string, int> CountTwins(IReadOnlyCollection<GuestRecord> guests, Dictionary<string, SwitchPort> ports)
    {
        Dictionary<string, int> counts = [];
        foreach (GuestRecord guest in guests)
        {
            foreach (VifRecord vif in guest.Vifs)
            {
                if (vif.Label(ports) is { } label)
                {
                    counts[label] = counts.GetValueOrDefault(label) + 1;
                }
            }
        }

        return counts;
    }

    /// <summary>Why a guest is introduced to nobody, whoever the others are; null when nothing of its own is in the way.</summary>
    public static string? WhyApart(GuestRecord guest) =>
        guest.IsOff ? "switched off in its configuration"
        : guest.Offer is null ? "no daemon runs in it"
        : guest.Quiesce is { Holder: not 0 } suspend ? $"it is being suspended, by process {suspend.Holder}"
        : guest.Quiesce is not null ? "it is quiesced, until \"xenloop resume\""
        : !guest.IsNamed ? "the toolstack has not told its name and UUID"
        : null;

    /// <summary>Whom the policy alone keeps from a guest, by rule. Of each pair the one with the lower domid has it: there are hundreds of hundreds of pairs.</summary>
    public static SortedDictionary<string, List<ushort>> Denied(Policy policy, GuestRecord guest, IEnumerable<GuestRecord> guests)
    {
        SortedDictionary<string, List<ushort>> denied = new(StringComparer.Ordinal);
        foreach (GuestRecord peer in guests)
        {
            if (guest.Domid < peer.Domid && MayMeetAnyone(guest) && MayMeetAnyone(peer) && policy.WhyNot(guest.Identity, peer.Identity) is { } rule)
            {
                if (!denied.TryGetValue(rule, out List<ushort>? peers))
                {
                    denied[rule] = peers = [];
                }

                peers.Add(peer.Domid);
            }
        }

        return denied;
    }

    private static bool MayMeetAnyone(GuestRecord guest) => guest.Offer is not null && guest.Quiesce is null && guest.IsNamed;

    /// <summary>Nothing in Dom0 is in the way between two vifs on one segment, or the policy says that it does not matter.</summary>
    private static bool IsFree(Policy policy, GuestRecord guest, int i, GuestRecord peer, int j)
    {
        VifStanding one = guest.Standings[i], other = peer.Standings[j];
        return one.Ambiguity is null && other.Ambiguity is null
            && (one.Barrier is null || Ignores(guest, i))
            && (other.Barrier is null || Ignores(peer, j))
            && (!one.IsIsolated || !other.IsIsolated || (Ignores(guest, i) && Ignores(peer, j)));

        bool Ignores(GuestRecord whose, int vif) => policy.IgnoresRestrictions(whose.Identity, whose.Vifs[vif].Interface, whose.Standings[vif].Segment!);
    }
}
