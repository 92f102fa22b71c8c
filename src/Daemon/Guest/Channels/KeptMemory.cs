using XenLoop.Hypervisor;
using XenLoop.Loop;

namespace XenLoop.Guest.Channels;

/// <summary>
/// Pages that were granted to peers, after the session. To end access to what a peer maps would give nothing back: the kernel keeps pages and
/// grants for as long, where nobody counts them, and a peer that comes back again and again without letting go would get all that
/// this guest has. No guest can see what another has mapped, and whatever tells of it is the peer's word: that it says <c>closed</c>, that its
/// kernel clears a byte, that it never said it had mapped anything. So they are kept for the next session with the same peer, which is one set
/// for each of its channels at most, and count as used memory.
/// <para>They are given back when the domain is gone; and on the peer's word where nobody has needed them for a while, or somebody else needs the
/// memory, up to a number of pages for each peer and for all, and little a day after that. Whose word is taken no more has its one set again and
/// again, which harms nobody.</para>
/// </summary>
internal sealed class KeptMemory(IEventChannels events)
{
    /// <summary>Of one peer: four sets of the greatest. And as many again in a month.</summary>
    public const int PagesOnWord = 4 * 513;

    /// <summary>Of all: half of the grants that a guest has by default.</summary>
    public const int PagesOnAnyonesWord = 16384;
    public static readonly TimeSpan PagesOnWordRefill = TimeSpan.FromDays(30);

    /// <summary>Unused for so long: who lies about it gets no second set before.</summary>
    public static readonly TimeSpan Unused = TimeSpan.FromMinutes(15);

    public static readonly TimeSpan FirstLook = TimeSpan.FromMilliseconds(100);
    public static readonly TimeSpan LongestLook = TimeSpan.FromMinutes(5);

    private readonly List<Kept> _sets = [];
    private readonly Allowance _words = new(PagesOnWord, PagesOnWordRefill);
    private readonly Allowance _anyonesWords = new(PagesOnAnyonesWord, PagesOnWordRefill);
    private TimeSpan _distance = FirstLook;

    /// <summary>When to <see cref="Look"/>; never while nothing is kept.</summary>
    public Deadline Due { get; private set; } = Deadline.Never;

    /// <summary>Of rings.</summary>
    public long Bytes
    {
        get
        {
            long bytes = 0;
            foreach (Kept kept in _sets)
            {
                bytes += 2L * kept.Pages.RingBytes;
            }

            return bytes;
        }
    }

    /// <summary>Of rings and control pages.</summary>
    public int Grants => _sets.Sum(s => s.Pages.Count);

    /// <summary>Has it, and keeps it no more: null when there is none.</summary>
    public GrantedPages? Take(ushort peer)
    {
        int i = _sets.FindIndex(s => s.Peer == peer);
        if (i < 0)
        {
            return null;
        }

        GrantedPages pages = _sets[i].Pages;
        _sets.RemoveAt(i);
        return pages;
    }

    /// <summary>There are pages for this peer's next channel.</summary>
    public bool Has(ushort peer) => _sets.Exists(s => s.Peer == peer);

    /// <summary>A session is over.</summary>
    /// <param name="peer">With whom.</param>
    /// <param name="pages">Given back at once or later; whoever had them has them no more. Without a death notice.</param>
    /// <param name="isLetGo">The peer says that it has unmapped them, or never said that it had mapped them.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    public void Return(ushort peer, GrantedPages pages, bool isLetGo, TimeSpan now)
    {
        if (!events.IsDomainAlive(peer))
        {
            pages.Dispose();
            return;
        }

        _sets.Add(new Kept(peer, pages, isLetGo, now));
        _distance = FirstLook;
        Due = Due.Or(Deadline.At(now + _distance));
    }

    /// <summary>As it was before <see cref="Take"/>: nobody was told of it.</summary>
    public void Put(ushort peer, GrantedPages pages, TimeSpan now) => _sets.Add(new Kept(peer, pages, IsLetGo: false, now));

    /// <summary>Gives back what has been let go meanwhile, if it is time to look.</summary>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="giveBack">Called before anything is given back.</param>
    public void Look(TimeSpan now, Action giveBack)
    {
        if (!Due.IsDue(now))
        {
            return;
        }

        GiveBack(kept => !events.IsDomainAlive(kept.Peer) || (now - kept.Since >= Unused && TakesWord(kept, now)), giveBack);
        _distance = _distance * 2 < LongestLook ? _distance * 2 : LongestLook;
        Due = _sets.Count == 0 ? Deadline.Never : Deadline.At(now + _distance);
    }

    /// <summary>Somebody needs the memory: gives back what there is to be had on peers' words.</summary>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="giveBack">Called before anything is given back.</param>
    /// <returns>False when there is nothing.</returns>
    public bool MakeRoom(TimeSpan now, Action giveBack) => GiveBack(kept => TakesWord(kept, now), giveBack);

    /// <summary>Before a suspend, for the pages' references are worth nothing after it.</summary>
    public void Clear()
    {
        foreach (Kept kept in _sets)
        {
            kept.Pages.Dispose();
        }

        _sets.Clear();
        Due = Deadline.Never;
    }

    private bool GiveBack(Predicate<Kept> isFree, Action giveBack)
    {
        bool given = false;
        for (int i = _sets.Count - 1; i >= 0; i--)
        {
            Kept kept = _sets[i];
            if (isFree(kept))
            {
                giveBack();
                kept.Pages.Dispose();
                _sets.RemoveAt(i);
                given = true;
            }
        }

        return given;
    }

    private bool TakesWord(Kept kept, TimeSpan now)
    {
        // Nobody's is taken in vain.
        _ = _anyonesWords.Take(default, 0, now, out double left);
        return (kept.IsLetGo || kept.Pages.IsLetGo) && left >= kept.Pages.Count
            && _words.Take(kept.Peer, kept.Pages.Count, now, out _) && _anyonesWords.Take(default, kept.Pages.Count, now, out _);
    }

    private sealed record Kept(ushort Peer, GrantedPages Pages, bool IsLetGo, TimeSpan Since);
}
