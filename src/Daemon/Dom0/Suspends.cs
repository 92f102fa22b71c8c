using System.Globalization;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;
using XenLoop.Service;

namespace XenLoop.Dom0;

/// <summary>
/// Has guests hold nothing that a suspend would break, and lets them have channels again. Nothing is kept here that does not stand
/// in XenStore: a daemon that is restarted finds it there.
/// </summary>
/// <param name="xenStore">Dom0's.</param>
/// <param name="publisher">Tells guests.</param>
/// <param name="changed">Called when a guest may meet others no more, or again.</param>
internal sealed class Suspends(XenStore xenStore, Publisher publisher, Action<GuestRecord> changed)
{
    /// <summary>Between two looks whether the process that suspends a guest is still there; only while there is one.</summary>
    public static readonly TimeSpan HolderPoll = TimeSpan.FromMilliseconds(250);

    /// <summary>False when its holder has ended: nobody suspends the guest any more.</summary>
    public static bool Holds(QuiesceRequest request) =>
        request.Holder == 0 || (request.HolderStart != 0 && StartOf(request.Holder) == request.HolderStart);

    /// <summary>Begins, or asks how far it is.</summary>
    /// <param name="guest">One of the directory's.</param>
    /// <param name="holder">The process that suspends it; 0 for none.</param>
    /// <returns>"absent": there is no daemon, and so nothing to fear; "pending"; "quiesced".</returns>
    public string Begin(GuestRecord guest, int holder)
    {
        bool absent = Offer.Parse(xenStore.Read(StorePaths.Offer(guest.Domid))) is null;
        // Its daemon may come while it is being suspended, and then has to know. Without a holder nobody would end that.
        if ((guest.Quiesce is null || !Holds(guest.Quiesce)) && !(absent && holder == 0))
        {
            guest.Quiesce = new QuiesceRequest((uint)Random.Shared.Next(1, int.MaxValue), holder, StartOf(holder));
            Log.Info($"domain {guest.Domid} ({guest.Identity.Name}) is to be suspended{(holder == 0 ? "" : $" by process {holder}")}{(absent ? "" : ": its channels are closed")}");
            publisher.PublishQuiesce(guest, guest.Quiesce);
            changed(guest);
        }

        if (absent)
        {
            return "absent";
        }

        return xenStore.Read(StorePaths.Quiesced(guest.Domid)) == guest.Quiesce!.ToString() ? "quiesced" : "pending";
    }

    public void End(GuestRecord guest, string why)
    {
        if (guest.Quiesce is not null)
        {
            guest.Quiesce = null;
            Log.Info($"domain {guest.Domid} ({guest.Identity.Name}) may have channels again: {why}");
            publisher.WithdrawQuiesce(guest);
            changed(guest);
        }
    }

    /// <summary>Ends those whose holder has ended.</summary>
    /// <returns>True while there are holders to look after.</returns>
    public bool FollowHolders(IEnumerable<GuestRecord> guests)
    {
        bool some = false;
        foreach (GuestRecord guest in guests)
        {
            if (guest.Quiesce is { } request && !Holds(request))
            {
                End(guest, $"process {request.Holder} has ended");
            }

            some |= guest.Quiesce is { Holder: not 0 };
        }

        return some;
    }

    /// <summary>0 when there is no such process.</summary>
    private static ulong StartOf(int process) =>
        ProcessStat.Read(process.ToString(CultureInfo.InvariantCulture)) is { State: not 'Z' } stat ? stat.StartTime : 0;
}
