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
            if (guest.Segments[i] is not null)
            {
                vifs[guest.Vifs[i].Vif] = guest.Vifs[i].Mac;
            }
        }

        return vifs;
    }

    /// <summary>What a guest is to know of another: an introduction for each pair of vifs on one segment, with the other's call for this guest, if there is one.</summary>
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
            for (int j = 0; guest.Segments[i] is { } segment && j < peer.Vifs.Length; j++)
            {
                if (peer.Segments[j] == segment)
                {
                    ChannelKey key = new(guest.Vifs[i].Vif, peer.Domid, peer.Vifs[j].Vif);
                    ulong call = peer.Calls.GetValueOrDefault(new ChannelKey(peer.Vifs[j].Vif, guest.Domid, guest.Vifs[i].Vif));
                    (peers ??= []).Add((key, new Introduction(peer.Vifs[j].Mac, peer.Offer!.Value, call)));
                }
            }
        }

        return peers?.ToArray() ?? [];
    }

    private static bool MayMeetAnyone(GuestRecord guest) => guest.Offer is not null && guest.Quiesce is null && guest.IsNamed;
}
