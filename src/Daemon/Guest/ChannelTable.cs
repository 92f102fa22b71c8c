using XenLoop.Divert;
using XenLoop.Guest.Channels;
using XenLoop.Interop.Linux;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Guest;

/// <summary>The channels that there are, and whether there is room for one more.</summary>
internal sealed class ChannelTable(ChannelContext context)
{
    // A channel in use makes room for a peer with so many times its traffic.
    private const double RivalFactor = 2;

    private readonly Dictionary<ChannelKey, Channel> _channels = [];
    // Those that the present turn goes through.
    private readonly List<Channel> _turn = [];
    private int _maxChannels;
    private Deadline _closeBy = Deadline.Never;
    private bool _crowded;

    public int Count => _channels.Count;

    public IEnumerable<Channel> All => _channels.Values.OrderBy(c => c.Key.Peer).ThenBy(c => c.Key.PeerVif);

    /// <summary>Bytes that the rings of all channels take, or will, and those that peers have not let go of.</summary>
    public long Memory => _channels.Values.Sum(c => c.MemoryBytes) + context.Kept.Bytes;

    /// <summary>Bytes that they may take.</summary>
    public long MemoryLimit { get; private set; }

    /// <summary>Some channel has something that a suspend would break.</summary>
    public bool HoldsAnything => context.Kept.Bytes > 0 || _channels.Values.Any(c => !c.IsWaiting);

    /// <summary>When one of them needs a turn though nothing has changed.</summary>
    public Deadline Due
    {
        get
        {
            Deadline due = Deadline.Never;
            foreach (Channel channel in _channels.Values)
            {
                due = due.Or(channel.Due);
            }

            return due;
        }
    }

    /// <summary>All channels are to be closed by then, those with hostile peers as well; never while nobody asks.</summary>
    public Deadline CloseBy
    {
        get => _closeBy;
        set
        {
            _closeBy = value;
            foreach (Channel channel in _channels.Values)
            {
                channel.CloseBy = value;
            }
        }
    }

    public bool Contains(ChannelKey key) => _channels.ContainsKey(key);

    public bool Uses(int vif) => _channels.Keys.Any(k => k.Vif == vif);

    /// <summary>Takes other limits over: the least useful go first, until the rest is within them.</summary>
    public void Configure(GuestSettings settings, TimeSpan now)
    {
        _maxChannels = settings.MaxChannels;
        MemoryLimit = settings.MaxMemoryMiB * 1024L * 1024 ?? Math.Min(GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 8, 128L << 20);
        _crowded = false;
        foreach (Channel channel in _channels.Values)
        {
            channel.IdleTimeChanged(now);
        }

        foreach (Channel channel in _channels.Values.Where(c => c.IsRunning).OrderBy(c => c.TakeRate(now)).Take(Excess()).ToArray())
        {
            channel.Drop("over the limit that the configuration sets");
            channel.Turn(now);
        }
    }

    /// <summary>
    /// To be called when addresses may have changed: takes those of TAPs away. The routes that come with them would draw the
    /// guest's traffic to where only frames to the peer get through.
    /// </summary>
    /// <param name="changed">Indices of the interfaces that did, and <see cref="NetlinkMonitor.Any"/>.</param>
    public void RemoveAddresses(IReadOnlySet<int> changed)
    {
        HashSet<int> taps = [.. _channels.Values.Select(c => c.TapIndex)
            .Where(i => i != 0 && (changed.Contains(i) || changed.Contains(NetlinkMonitor.Any)))];
        if (taps.Count == 0)
        {
            return;
        }

        using Addresses addresses = new();
        HashSet<int> had = addresses.Remove(taps);
        foreach (Channel channel in _channels.Values.Where(c => had.Contains(c.TapIndex)))
        {
            channel.AddressRemoved();
        }
    }

    /// <summary>The channel to a peer, to be given a turn; null when there is no room for one more, at least not yet.</summary>
    /// <param name="key">Of the channel.</param>
    /// <param name="peer">As introduced.</param>
    /// <param name="port">This side's vif; null while it may have none.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <param name="packetsPerSecond">To the peer, as far as this side knows.</param>
    public Channel? Open(ChannelKey key, in Introduction peer, VifPort? port, TimeSpan now, double packetsPerSecond = 0)
    {
        if (_channels.TryGetValue(key, out Channel? channel))
        {
            return channel;
        }

        // Two peers with one address: the divert knows only one of them.
        MacAddress mac = peer.Mac;
        bool ambiguous = _channels.Values.Any(c => c.Key.Vif == key.Vif && c.PeerMac == mac);
        if (port is null || ambiguous || !HasRoom(key.Peer, packetsPerSecond, now))
        {
            return null;
        }

        channel = new Channel(context, key, port, peer) { CloseBy = _closeBy };
        _channels[key] = channel;
        return channel;
    }

    /// <summary>Gives a turn to each that needs one; retires those that nobody needs.</summary>
    /// <param name="isWanted">Whether it is still introduced, on a vif that may have channels.</param>
    /// <param name="now">See <see cref="Deadline"/>.</param>
    /// <returns>True when one is retired: what it was in the way of may go on.</returns>
    public bool Turn(Func<Channel, bool> isWanted, TimeSpan now)
    {
        bool retired = false;
        if (_closeBy.IsDue(now))
        {
            // All together: what a peer pours into its ring keeps the data thread from the next command, and this one from its time.
            context.Loop.RemoveAll();
        }

        _turn.Clear();
        _turn.AddRange(_channels.Values);
        bool stopped = false;
        foreach (Channel channel in _turn)
        {
            if (channel.IsRunning && !isWanted(channel))
            {
                channel.BeginToStop();
                stopped = true;
            }
        }

        if (stopped)
        {
            VifDivert.WaitForPackets();
        }

        foreach (Channel channel in _turn)
        {
            if (channel.NeedsTurn(isWanted(channel), now))
            {
                channel.Turn(now);
            }

            if (channel.IsFinished(now))
            {
                channel.Retire(now);
                _channels.Remove(channel.Key);
                retired = true;
            }
        }

        return retired;
    }

    /// <summary>Closes those to a peer, at the next turn.</summary>
    public void Drop(MacAddress peer, string reason)
    {
        foreach (Channel channel in _channels.Values)
        {
            if (channel.PeerMac == peer)
            {
                channel.Drop(reason);
            }
        }
    }

    public void RetireAll(TimeSpan now)
    {
        foreach (Channel channel in _channels.Values)
        {
            channel.Retire(now);
        }

        _channels.Clear();
    }

    /// <summary>
    /// Room for one more channel. If there is none, the least useful one begins to make some when the newcomer has clearly
    /// more traffic: the newcomer's next packets, at most a second later, find it.
    /// </summary>
    private bool HasRoom(ushort peer, double packetsPerSecond, TimeSpan now)
    {
        if (_channels.Count < _maxChannels && (context.Kept.Has(peer) || Fits() || (context.Kept.MakeRoom(now, context.CheckNotResumed) && Fits())))
        {
            return true;
        }

        // One that holds nothing, because it failed, makes room at once.
        if (_channels.Values.FirstOrDefault(c => c.IsWaiting) is { } failed)
        {
            failed.Retire(now);
            _channels.Remove(failed.Key);
            return HasRoom(peer, packetsPerSecond, now);
        }

        if (!_crowded)
        {
            _crowded = true;
            Log.Warning($"{_channels.Count} channels are as many as max-channels ({_maxChannels}) and max-memory-mib ({MemoryLimit >> 20}) allow"
                + $"{(context.Kept.Bytes > 0 ? $" ({context.Kept.Bytes >> 10} KiB are kept for peers that may not have unmapped them)" : "")}: "
                + "the least used make room for peers with more traffic, which stays on netfront meanwhile");
        }

        Channel? least = _channels.Values.Where(c => c.IsProven(now)).MinBy(c => c.TakeRate(now));
        if (least is not null && least.TakeRate(now) * RivalFactor < packetsPerSecond)
        {
            least.Drop("makes room for a peer with more traffic");
            least.Turn(now);
        }

        return false;

        bool Fits() => Memory + (2L * context.RingBytes) <= MemoryLimit;
    }

    /// <summary>How many channels there are too many.</summary>
    private int Excess()
    {
        int excess = Math.Max(0, _channels.Count - _maxChannels);
        long memory = Memory - MemoryLimit;
        return Math.Max(excess, (int)Math.Ceiling(Math.Max(0, memory) / (2.0 * context.RingBytes)));
    }
}
