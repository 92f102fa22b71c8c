using XenLoop.Hypervisor;
using XenLoop.Loop;

namespace XenLoop.Guest.Channels;

/// <summary>What a peer's words mean for the memory of a session that is over.</summary>
internal enum LetGo
{
    /// <summary>Nothing.</summary>
    Unsaid,

    /// <summary>It never said that it had mapped it.</summary>
    NeverConnected,

    /// <summary>It said that it has unmapped it.</summary>
    Closed,
}

/// <summary>
/// Pages granted to peers that have not let go of them. To end access would give nothing back: the kernel keeps pages and grants for as
/// long as a peer maps them, where nobody counts them, and a peer that comes back again and again without letting go would get all that
/// this guest has. So they are kept for the next session with the same peer, which is one set for each of its channels at most, and
/// count as used memory, until the peer's kernel says that they are unmapped, or the domain is gone.
/// <para>A peer that has closed a channel as the protocol has it is believed. What else there is to tell that it has let go of everything,
/// a byte that its kernel clears or that it never said it had mapped anything, counts up to a number of pages, and little a day after
/// that: whose word is taken no more gets its one set again and again, which harms nobody.</para>
/// </summary>
internal sealed class KeptMemory(IEventChannels events)
{
    // Of the 32,768 grants that a guest has by default: 47 sets of the greatest, and as many again in a month.
    public const int PagesOnWord = 24576;
    public static readonly TimeSpan PagesOnWordRefill = TimeSpan.FromDays(30);

    public static readonly TimeSpan FirstLook = TimeSpan.FromMilliseconds(100);
    public static readonly TimeSpan LongestLook = TimeSpan.FromMinutes(5);

    private readonly List<Kept> _sets = [];
    private readonly Allowance _words = new(PagesOnWord, PagesOnWordRefill);
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
    /// <param name="said">The peer's word for it.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    public void Return(ushort peer, GrantedPages pages, LetGo said, TimeSpan now)
    {
        if (said == LetGo.Closed || ((said == LetGo.NeverConnected || pages.IsLetGo) && TakesWord(peer, pages, now)) || !events.IsDomainAlive(peer))
        {
            pages.Dispose();
            return;
        }

        Put(peer, pages);
        _distance = FirstLook;
        Due = Due.Or(Deadline.At(now + _distance));
    }

    /// <summary>As it was before <see cref="Take"/>.</summary>
    public void Put(ushort peer, GrantedPages pages) => _sets.Add(new Kept(peer, pages));

    /// <summary>Gives back what has been let go meanwhile, if it is time to look.</summary>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="giveBack">Called before anything is given back.</param>
    public void Look(TimeSpan now, Action giveBack)
    {
        if (!Due.IsDue(now))
        {
            return;
        }

        for (int i = _sets.Count - 1; i >= 0; i--)
        {
            (ushort peer, GrantedPages pages) = _sets[i];
            if ((pages.IsLetGo && TakesWord(peer, pages, now)) || !events.IsDomainAlive(peer))
            {
                giveBack();
                pages.Dispose();
                _sets.RemoveAt(i);
            }
        }

        _distance = _distance * 2 < LongestLook ? _distance * 2 : LongestLook;
        Due = _sets.Count == 0 ? Deadline.Never : Deadline.At(now + _distance);
    }

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

    private bool TakesWord(ushort peer, GrantedPages pages, TimeSpan now) => _words.Take(peer, pages.Count, now, out _);

    private sealed record Kept(ushort Peer, GrantedPages Pages);
}
