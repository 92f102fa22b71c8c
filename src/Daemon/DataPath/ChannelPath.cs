using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop.Linux;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>
/// The data path of one channel: both directions and the events. Belongs to the data loop's thread. Allocates nothing, takes no lock, never
/// waits for the peer.
/// </summary>
internal sealed unsafe class ChannelPath
{
    private readonly PeerEvents _events;
    private readonly TransmitPath _transmit;
    private readonly ReceivePath _receive;
    private readonly byte* _peerAlive;
    private Exception? _fault;

    public ChannelPath(TapDevice tap, EventChannel events, RingProducer transmit, RingConsumer receive, byte* peerAlive,
        DivertSlot slot, MacAddress own, MacAddress peer, bool uso, SourceAddresses? sources = null)
    {
        TapDescriptor = tap.FileDescriptor;
        _events = new PeerEvents(events);
        _transmit = new TransmitPath(tap, transmit, slot, _events, own, peer);
        _receive = new ReceivePath(tap.FileDescriptor, tap.Name, receive, slot, _events, own, peer, uso, sources);
        _peerAlive = peerAlive;
    }

    public int EventDescriptor => _events.FileDescriptor;

    public int TapDescriptor { get; }

    /// <summary>Of the last pump, see there.</summary>
    public int ReceivedBurstPackets => _receive.BurstPackets;

    /// <summary>Of the last pump, see there.</summary>
    public uint ReceivedBurstBytes => _receive.BurstBytes;

    /// <summary>Of the last pump, see there.</summary>
    public uint BulkBurstBytes => _receive.BulkBurstBytes;

    /// <summary>Of the last pump, see there.</summary>
    public uint SentBurstBytes => _transmit.BurstBytes;

    /// <summary>Why the data loop stopped serving this channel; null while it does. For any thread.</summary>
    public Exception? Fault => Volatile.Read(ref _fault);

    /// <summary>The peer's daemon died: the kernel cleared its liveness byte. A hint; the answer is to close.</summary>
    public bool PeerDied => Volatile.Read(ref *_peerAlive) == 0;

    /// <summary>Stops diverting to this channel at once; the control plane closes it when it gets to it.</summary>
    public void GiveUp(Exception reason)
    {
        _transmit.Block();
        Volatile.Write(ref _fault, reason);
    }

    /// <summary>For any thread. The data thread, the one writer, pays nothing for it: it writes whole words, and they are read so.</summary>
    public PathSnapshot Snapshot() => new(
        new PathCounters
        {
            SentPackets = Volatile.Read(ref _transmit.Packets),
            SentBytes = Volatile.Read(ref _transmit.Bytes),
            ReceivedPackets = Volatile.Read(ref _receive.Packets),
            ReceivedBytes = Volatile.Read(ref _receive.Bytes),
            ReceiveErrors = Volatile.Read(ref _receive.Errors),
            ForeignSources = Volatile.Read(ref _receive.ForeignSources),
            Notifications = Volatile.Read(ref _events.Sent),
            Stalls = Volatile.Read(ref _transmit.Stalls),
            Discarded = Volatile.Read(ref _transmit.Discarded) + Volatile.Read(ref _receive.Discarded),
        },
        _transmit.IsStalled);

    /// <summary>Epoll reported the TAP readable.</summary>
    public void TapReadable() => _transmit.TapReadable();

    /// <summary>An event arrived. Those without a reason are counted, and bounded.</summary>
    /// <exception cref="PeerViolationException">There are too many of them.</exception>
    public void EventArrived()
    {
        if (_events.Take() && !(_receive.TakesEvent() | _transmit.TakesEvent()))
        {
            _events.CountIdle();
        }
    }

    /// <summary>Moves a burst in each direction. True: something moved.</summary>
    /// <param name="tellAtOnce">The peer is to know now what it has asked to be told of, and not when nothing moves any more.</param>
    public bool Pump(bool tellAtOnce)
    {
        bool received = _receive.Pump();
        bool moved = _transmit.Pump() | received;
        if (tellAtOnce || !moved)
        {
            _events.Pay();
        }

        return moved;
    }

    /// <summary>Asks the peer for the events needed to sleep. False: there is work, do not sleep.</summary>
    /// <exception cref="PeerGoneException">The peer's daemon died.</exception>
    public bool Arm()
    {
        // Before arming: an event that comes between the two would be taken with the one before (tests/model: acknowledge, arm). The
        // notice of its death may have been taken with the event, too.
        if (_events.Acknowledge() && PeerDied)
        {
            throw new PeerGoneException();
        }

        return _transmit.Arm() && _receive.Arm();
    }

    /// <summary>Awake again.</summary>
    public void Disarm() => _receive.Disarm();

    /// <summary>Before a sleep: true while it must be bounded, for the peer has not taken all, or something that went into the TAP has not come out of it.</summary>
    /// <exception cref="DeliveryException">It will not come any more.</exception>
    public bool AwaitsAnything() => _transmit.AwaitsPeer() | _transmit.AwaitsDelivery() | _receive.AwaitsDelivery();

    /// <summary>Closing: empties the TAP into the ring. True when it is empty; false: no room yet.</summary>
    public bool DrainTap()
    {
        bool empty = _transmit.Drain();
        _events.Pay();
        return empty;
    }

    /// <summary>Closing, when the data loop has let go: takes what is in the receive ring now, and not what a peer adds meanwhile.</summary>
    /// <param name="patience">For all of it, but one burst.</param>
    public void DrainRing(TimeSpan patience)
    {
        _receive.Drain(patience);
        _events.Pay();
    }
}
