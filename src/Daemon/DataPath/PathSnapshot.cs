namespace XenLoop.DataPath;

/// <summary>What other threads see of a path.</summary>
internal readonly struct PathSnapshot(PathCounters counters, bool stalled)
{
    /// <summary>Each whole, though not all of the same instant.</summary>
    public PathCounters Counters { get; } = counters;

    /// <summary>The peer does not empty its ring: traffic goes by netfront until it has.</summary>
    public bool Stalled { get; } = stalled;
}

/// <summary>What passed, in packets and bytes of frame.</summary>
internal struct PathCounters
{
    public ulong SentPackets;
    public ulong SentBytes;
    public ulong ReceivedPackets;
    public ulong ReceivedBytes;
    /// <summary>Frames the local TAP would not take (full queue, interface down).</summary>
    public ulong ReceiveErrors;
    /// <summary>Frames from addresses that Dom0 does not let the peer use.</summary>
    public ulong ForeignSources;
    /// <summary>Events sent to the peer.</summary>
    public ulong Notifications;
    /// <summary>Times the peer was found not to empty the ring.</summary>
    public ulong Stalls;
    /// <summary>Frames thrown away because later ones had gone by netfront meanwhile.</summary>
    public ulong Discarded;
}
