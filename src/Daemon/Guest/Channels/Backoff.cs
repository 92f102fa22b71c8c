using XenLoop.Loop;

namespace XenLoop.Guest.Channels;

/// <summary>How a channel ended, as far as the distance to the next attempt is concerned.</summary>
internal enum ChannelEnd
{
    /// <summary>In good order.</summary>
    Quiet,

    /// <summary>In good order, but soon, and by the peer: it may be a daemon under repair, or a guest that wants our time.</summary>
    Restless,

    Failed,
}

/// <summary>The distance that a channel's next attempt keeps to the last one: it doubles while attempts fail.</summary>
internal sealed class Backoff
{
    public static readonly TimeSpan First = TimeSpan.FromMilliseconds(250);
    public static readonly TimeSpan Longest = TimeSpan.FromSeconds(30);
    public static readonly TimeSpan LongestRestless = TimeSpan.FromSeconds(4);

    /// <summary>The divert reports packets to a peer once a second: what is forgotten sooner would start at the first distance each time.</summary>
    public static readonly TimeSpan ShortestMemory = TimeSpan.FromSeconds(2);

    private TimeSpan _distance = First;

    /// <summary>Not before this.</summary>
    public Deadline Retry { get; private set; }

    /// <summary>From here on a new channel may begin as if nothing had been.</summary>
    public Deadline Forgotten { get; private set; }

    /// <summary>The channel was no failure, whatever ended it: the next attempt starts at the first distance.</summary>
    public void Prove() => _distance = First;

    public void Ended(ChannelEnd how, TimeSpan now)
    {
        Retry = Deadline.At(now + _distance);
        TimeSpan longest = how switch
        {
            ChannelEnd.Failed => Longest,
            ChannelEnd.Restless => LongestRestless,
            _ => TimeSpan.Zero,
        };
        TimeSpan doubled = Min(_distance * 2, longest);
        _distance = Max(_distance, doubled);
        Forgotten = how == ChannelEnd.Quiet ? Retry : Retry.Plus(Max(_distance, ShortestMemory));
    }

    private static TimeSpan Min(TimeSpan one, TimeSpan other) => one < other ? one : other;

    private static TimeSpan Max(TimeSpan one, TimeSpan other) => one > other ? one : other;
}
