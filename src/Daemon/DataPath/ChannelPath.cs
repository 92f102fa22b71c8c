using System.Buffers.Binary;
using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>
/// The data path of one channel: read(2) from the TAP straight into the send ring, write(2) to the TAP straight from
/// the receive ring. Belongs to the data loop's thread. Allocates nothing, takes no lock, never waits for the peer.
/// </summary>
internal sealed unsafe class ChannelPath
{
    // A burst is published once. Bounded, so that a peer that is awake starts on it early and no channel starves another.
    private const int BurstPackets = 32;
    private const uint BurstBytes = 256 * 1024;

    // A peer that sleeps is woken when there is nothing more to do for it at once, or after so much. Waking it at the first
    // record makes it run a short way and sleep again: see docs/measurements.md, "When to wake the peer".
    private const uint WakeAfterBytes = 512 * 1024;

    // More than any ring holds: a drain ends although the other side keeps on producing.
    private const int DrainBursts = (int)(ControlPage.MaxRingBytes / SmallestRecord / BurstPackets);

    private const int VnetHeaderBytes = TapDevice.VnetHeaderSize;
    private const int HeaderBytes = VnetHeaderBytes + 14; // with the Ethernet header
    private const int DestinationOffset = VnetHeaderBytes;
    private const int SourceOffset = VnetHeaderBytes + 6;
    private const int EtherTypeOffset = VnetHeaderBytes + 12;
    private const ushort ETH_P_8021Q = 0x8100;
    private const ushort ETH_P_8021AD = 0x88a8;
    private const uint SmallestRecord = RingRecord.HeaderBytes + HeaderBytes;

    // A peer that leaves something in its ring for so long is stuck, and traffic goes by netfront until it has caught up.
    private const int StallMilliseconds = 150;

    // Frames that others overtook by netfront so lately are still sent: the lateness is a few milliseconds, as where the whole
    // guest stood still, not its daemon alone.
    private const int LateMilliseconds = 5;

    private const int NanosecondsPerMillisecond = 1_000_000;

    // More events than this in a second without a record behind them is an attack on our CPU.
    private const int MaxIdleEventsPerSecond = 1024;

    // And so are more frames than this that the kernel does not take.
    private const int MaxRefusedPerSecond = 4096;

    // What comes in smaller frames is no bulk, however much of it comes.
    private const uint BulkFrameBytes = 4096;

    private readonly RingProducer _transmit;
    private readonly RingConsumer _receive;
    private readonly DivertSlot _slot;
    private readonly byte* _peerAlive;
    private readonly string _tapName;
    private readonly ulong _ownMac;
    private readonly ulong _peerMac;
    private readonly bool _uso;
    private readonly SourceAddresses? _sources;

    private bool _tapReady = true;
    private ulong _drained;   // frames out of the TAP's queue since ever; the slot's word, which this thread writes
    private ulong _overtaken; // frames up to here are older than packets that have gone by netfront
    private ulong _written;
    private DeliveryWatch _outgoing; // from the divert to the TAP's queue
    private DeliveryWatch _incoming; // from the TAP to the vif
    private bool _full;
    private bool _stalled;
    private bool _marked; // records in the ring are marked as stale
    private uint _progressAt;
    private long _progressSince;
    private bool _owesEvent;
    private uint _bytesSinceOwed;
    private ulong _progressAtEvent;
    private bool _eventTaken;
    private bool _spaceArmed;
    private bool _emptyArmed;
    private int _refused;
    private long _refusedSince = Stopwatch.GetTimestamp();
    private int _idleEvents;
    private long _idleEventsSince = Stopwatch.GetTimestamp();
    private PathCounters _counters;
    private Exception? _fault;

    /// <summary>Bytes that the last pump took from the ring.</summary>
    public uint ReceivedBurstBytes { get; private set; }

    /// <summary>Bytes that the last pump put into the other.</summary>
    public uint SentBurstBytes { get; private set; }

    /// <summary>Of these, bytes of great frames that the kernel took over.</summary>
    public uint BulkBurstBytes { get; private set; }

    public ChannelPath(TapDevice tap, EventChannel events, RingProducer transmit, RingConsumer receive, byte* peerAlive,
        DivertSlot slot, MacAddress own, MacAddress peer, bool uso, SourceAddresses? sources = null)
    {
        TapDescriptor = tap.FileDescriptor;
        _tapName = tap.Name;
        Events = events;
        _transmit = transmit;
        _receive = receive;
        _peerAlive = peerAlive;
        _slot = slot;
        _ownMac = own.Bits;
        _peerMac = peer.Bits;
        _uso = uso;
        _sources = sources;
        // The slot counts on from its last channel, and is blocked: nothing is on its way.
        _drained = slot.Queued;
        slot.Drain(_drained);
        _outgoing = new DeliveryWatch(slot.Diverted, slot.Queued);
        _incoming = new DeliveryWatch(_written, slot.Arrived);
    }

    public EventChannel Events { get; }

    public int TapDescriptor { get; }

    /// <summary>Why the data loop stopped serving this channel; null while it does. For any thread.</summary>
    public Exception? Fault => Volatile.Read(ref _fault);

    /// <summary>Stops diverting to this channel at once; the control plane closes it when it gets to it.</summary>
    public void GiveUp(Exception reason)
    {
        _stalled = true;
        _slot.Block();
        Volatile.Write(ref _fault, reason);
    }

    /// <summary>The peer's daemon died: the kernel cleared its liveness byte. A hint; the answer is to close.</summary>
    public bool PeerDied => Volatile.Read(ref *_peerAlive) == 0;

    /// <summary>For any thread. The data thread, the one writer, pays nothing for it: it writes whole words, and they are read so.</summary>
    public PathSnapshot Snapshot() => new(
        new PathCounters
        {
            SentPackets = Volatile.Read(ref _counters.SentPackets),
            SentBytes = Volatile.Read(ref _counters.SentBytes),
            ReceivedPackets = Volatile.Read(ref _counters.ReceivedPackets),
            ReceivedBytes = Volatile.Read(ref _counters.ReceivedBytes),
            ReceiveErrors = Volatile.Read(ref _counters.ReceiveErrors),
            ForeignSources = Volatile.Read(ref _counters.ForeignSources),
            Notifications = Volatile.Read(ref _counters.Notifications),
            Stalls = Volatile.Read(ref _counters.Stalls),
            Discarded = Volatile.Read(ref _counters.Discarded),
        },
        Volatile.Read(ref _stalled));

    /// <summary>Epoll reported the TAP readable.</summary>
    public void TapReadable() => _tapReady = true;

    /// <summary>
    /// An event arrived. It is acknowledged before the next sleep and not now: until then none is needed, and what it announces need not
    /// wait for the two system calls. Events without records are counted, and bounded.
    /// </summary>
    public void EventArrived()
    {
        if (_eventTaken)
        {
            return;
        }

        _eventTaken = true;
        // Behind an honest event there is a record or space, though it may have been found before the event came. With a
        // full ring as well: a peer that takes nothing has no reason to wake us.
        // What it takes counts only where this side has asked to be told of it, and once: it could take a byte for each event.
        bool empty = !_transmit.HasOutstanding();
        bool taken = (_emptyArmed && empty) || (_spaceArmed && _transmit.HasRoom);
        ulong progress = _counters.ReceivedPackets + _counters.ReceiveErrors + _counters.ForeignSources;
        if (_receive.HasData() || progress != _progressAtEvent || taken)
        {
            _spaceArmed &= !taken;
            _emptyArmed &= !taken;
            _progressAtEvent = progress;
            return;
        }

        if (++_idleEvents == MaxIdleEventsPerSecond)
        {
            long now = Stopwatch.GetTimestamp();
            if (now - _idleEventsSince < Stopwatch.Frequency)
            {
                throw new PeerViolationException($"more than {MaxIdleEventsPerSecond} events a second with nothing in the ring");
            }

            _idleEvents = 0;
            _idleEventsSince = now;
        }
    }

    /// <summary>Moves a burst in each direction. True: something moved.</summary>
    public bool Pump()
    {
        bool received = Receive();
        // The slot tells, without a system call: what was just written to the TAP may have made the stack answer (acknowledgements) in
        // this very thread, and while another channel keeps the thread busy nothing else tells.
        _tapReady |= _slot.Queued != _drained;
        SentBurstBytes = 0;
        bool sent = _tapReady && Transmit();
        if (received | sent)
        {
            return true;
        }

        PayEvent();
        return false;
    }

    /// <summary>Looks without a system call: the slot tells that a frame is in the TAP's queue. The next <see cref="Pump"/> takes it.</summary>
    public void Glance()
    {
        if (_slot.Queued != _drained)
        {
            _tapReady = true;
        }
    }

    /// <summary>Asks the peer for the events needed to sleep. False: there is work, do not sleep.</summary>
    /// <exception cref="PeerGoneException">The peer's daemon died.</exception>
    public bool Arm()
    {
        if (_eventTaken)
        {
            _eventTaken = false;
            Events.Acknowledge();
            // The notice of its death may have been taken with this one.
            if (PeerDied)
            {
                throw new PeerGoneException();
            }
        }

        if (_full)
        {
            _spaceArmed = true;
            if (!_transmit.ArmSpace())
            {
                _full = false;
                return !_tapReady && _receive.ArmData();
            }
        }
        else if (_tapReady)
        {
            return false;
        }
        else if (_stalled)
        {
            _emptyArmed = true;
            _transmit.ArmEmpty();
        }

        return _receive.ArmData();
    }

    /// <summary>Awake again.</summary>
    public void Disarm() => _receive.Disarm();

    /// <summary>
    /// Before a sleep: true while the peer has records it has not taken, so that the sleep must be bounded. Diverts
    /// stop while the peer takes nothing at all for <see cref="StallMilliseconds"/>, and resume when it has caught up.
    /// </summary>
    public bool AwaitsPeer()
    {
        if (!_transmit.HasOutstanding())
        {
            _progressSince = 0;
            Resume();
            return false;
        }

        // Precise enough, and no system call (IdleClock).
        long now = Environment.TickCount64;
        if (_progressSince == 0 || _transmit.Consumed != _progressAt)
        {
            _progressAt = _transmit.Consumed;
            _progressSince = now;
            Resume();
        }
        else if (!_stalled && now - _progressSince > StallMilliseconds)
        {
            _stalled = true;
            _slot.Block();
            _counters.Stalls++;
            // Bounded once more: the next turn asks for the event that wakes us when the peer has taken everything.
            return true;
        }

        // Only what has been overtaken is stale: a peer that stands still while nobody sends to it loses nothing.
        if (_stalled && !(_marked && _transmit.IsAllStale) && _slot.OvertakenAt / NanosecondsPerMillisecond > _progressSince)
        {
            _transmit.MarkStale();
            _marked = true;
        }

        return !_stalled;
    }

    /// <summary>
    /// Before a sleep: true while something that went into the TAP has not come out of it, so that the sleep must be bounded.
    /// </summary>
    /// <exception cref="DeliveryException">It will not come any more.</exception>
    public bool AwaitsDelivery()
    {
        ulong queued = _slot.Queued; // before what was diverted: see DeliveryWatch.IsEven
        if (_outgoing.HasLost(_slot.Diverted, queued))
        {
            throw new DeliveryException(
                $"packets diverted to the TAP {_tapName} do not come to its queue: somebody has set it down, moved it, or put a filter or a qdisc on it");
        }

        CheckArrivals();
        return _outgoing.IsMissing | _incoming.IsMissing;
    }

    /// <summary>Closing: empties the TAP into the ring. True when it is empty; false: no room yet.</summary>
    public bool DrainTap()
    {
        _tapReady = true;
        for (int i = 0; i < DrainBursts && Transmit(); i++)
        {
        }

        PayEvent();
        return !_tapReady;
    }

    /// <summary>Closing, when the data loop has let go: takes what is in the receive ring now, and not what a peer adds meanwhile.</summary>
    /// <param name="patience">For all of it, but one burst.</param>
    public void DrainRing(TimeSpan patience)
    {
        uint end = _receive.Produced();
        long start = Stopwatch.GetTimestamp();
        while (_receive.IsBefore(end) && Receive() && Stopwatch.GetElapsedTime(start) < patience)
        {
        }

        PayEvent();
    }

    private void Resume()
    {
        if (_stalled)
        {
            _stalled = false;
            _slot.Open();
        }
    }

    private bool Transmit()
    {
        iovec* vectors = stackalloc iovec[2];
        Span<byte> header = stackalloc byte[HeaderBytes];
        ulong queued = _slot.Queued; // before the reads: frames that are read, or were refused by the queue after all, when it is empty
        ulong overtaken = Overtaken();
        _marked = _marked && !_transmit.TryClearStale();
        int packets = 0;
        uint bytes = 0;
        for (; packets < BurstPackets && bytes < BurstBytes; packets++)
        {
            if (!_transmit.TryReserve(out RingSegments room))
            {
                _full = true;
                break;
            }

            _full = false;
            long length = VectorIo.readv(TapDescriptor, vectors, Vectors(room, vectors));
            if (length < 0)
            {
                int error = Marshal.GetLastSystemError();
                if (error == Errno.EAGAIN)
                {
                    _tapReady = false;
                    break;
                }

                throw new NativeException("readv", _tapName, error);
            }

            if ((ulong)packets < overtaken)
            {
                _counters.Discarded++;
                continue;
            }

            // The TAP's filter lets nothing else in; it runs in a place that is not ours alone.
            if (length < HeaderBytes)
            {
                continue;
            }

            room.CopyTo(header);
            if (Mac(header, DestinationOffset) != _peerMac || Mac(header, SourceOffset) != _ownMac)
            {
                continue;
            }

            _transmit.Commit((uint)length);
            bytes += (uint)length;
            _counters.SentPackets++;
            _counters.SentBytes += (ulong)length - VnetHeaderBytes;
        }

        Drained((uint)packets, queued);
        SentBurstBytes = bytes;
        Owe(_transmit.Publish(), bytes);
        return packets > 0;
    }

    /// <summary>Frames at the head of the TAP's queue that are to be thrown away: packets that came after them have gone by netfront,
    /// and order counts more than they do.</summary>
    private ulong Overtaken()
    {
        ulong overtaken = _slot.Overtaken;
        if ((long)(overtaken - _overtaken) > 0 && Environment.TickCount64 - (_slot.OvertakenAt / NanosecondsPerMillisecond) > LateMilliseconds)
        {
            _overtaken = overtaken;
        }

        return (ulong)Math.Max(0, (long)(_overtaken - _drained));
    }

    /// <summary>Tells the divert how far the queue is drained. With no room in the ring it is not, and packets pass in the end.</summary>
    private void Drained(uint frames, ulong queued)
    {
        ulong drained = _drained + frames;
        // Empty: what was counted and is not there was lost on the last inches (no memory). One that was counted and not yet there
        // is read later, one too many, which the next time sets right.
        if (!_tapReady && ((long)(queued - drained) > 0 || _slot.Queued == queued))
        {
            drained = queued;
        }

        if (drained != _drained)
        {
            _drained = drained;
            _slot.Drain(drained);
        }
        else if (frames != 0)
        {
            // It was one ahead. The divert must see that somebody drains all the same.
            _slot.StartClock();
        }
    }

    // Nothing is read of the copy that was not written: it needs no zeros first, at each look.
    [SkipLocalsInit]
    private bool Receive()
    {
        iovec* vectors = stackalloc iovec[3];
        Span<byte> copy = stackalloc byte[OffloadHeader.MostBytes];
        int packets = 0;
        uint bytes = 0;
        uint bulk = 0;
        while (_receive.IsStale() && _receive.TryPeek(out _))
        {
            _receive.Advance();
            _counters.Discarded++;
        }

        for (; packets < BurstPackets && bytes < BurstBytes && _receive.TryPeek(out RingSegments frame); packets++)
        {
            uint length = frame.Length;
            if (length < HeaderBytes)
            {
                throw new PeerViolationException($"frame of {length} bytes");
            }

            // The headers are copied out, checked, and written from the copy: the peer can change the ring meanwhile.
            Span<byte> header = copy[..(int)Math.Min(length, OffloadHeader.MostBytes)];
            frame.CopyTo(header);
            if (Mac(header, SourceOffset) != _peerMac || Mac(header, DestinationOffset) != _ownMac)
            {
                throw new PeerViolationException("frame with a foreign source or destination MAC address");
            }

            // The sender's divert leaves them to the bridge, which knows who may be on which VLAN.
            ushort etherType = BinaryPrimitives.ReadUInt16BigEndian(header[EtherTypeOffset..]);
            if (etherType is ETH_P_8021Q or ETH_P_8021AD)
            {
                throw new PeerViolationException("frame with a VLAN tag");
            }

            // Dom0's filter would have dropped it, and the peer need not be hostile for that: a guest may forward for others.
            if (_sources is not null && !_sources.Permit(header[VnetHeaderBytes..]))
            {
                _counters.ForeignSources++;
                _receive.Advance();
                bytes += length;
                continue;
            }

            fixed (byte* first = header)
            {
                vectors[0].iov_base = first;
                vectors[0].iov_len = (uint)header.Length;
                int count = header.Length == length ? 1 : 1 + Vectors(frame.Skip((uint)header.Length), vectors + 1);
                if (!OffloadHeader.TryRebuild(header, (int)length - VnetHeaderBytes, _uso) || !TryWrite(vectors, count))
                {
                    // The local stack's refusal (no memory) loses this frame only, and so does a header that does not fit it.
                    _counters.ReceiveErrors++;
                    BoundRefused();
                }
                else
                {
                    _written++;
                    _counters.ReceivedPackets++;
                    _counters.ReceivedBytes += length - VnetHeaderBytes;
                    bulk += length >= BulkFrameBytes ? length : 0;
                }
            }

            _receive.Advance();
            bytes += length;
        }

        if (!_incoming.IsEven(_written, _slot.Arrived))
        {
            CheckArrivals();
        }

        ReceivedBurstBytes = bytes;
        BulkBurstBytes = bulk;
        Owe(_receive.Publish(), bytes);
        return packets > 0;
    }

    private bool TryWrite(iovec* vectors, int count)
    {
        if (VectorIo.writev(TapDescriptor, vectors, count) >= 0)
        {
            return true;
        }

        int error = Marshal.GetLastSystemError();
        return error is Errno.EIO or Errno.EBADFD or Errno.ENODEV
            ? throw new NativeException("writev", _tapName, error, "Somebody has set the TAP down, or removed it")
            : false;
    }

    /// <summary>A write runs the receive path of the TAP before it returns, unless packets are spread over CPUs (RPS): then they arrive a little later.</summary>
    private void CheckArrivals()
    {
        if (_incoming.HasLost(_written, _slot.Arrived))
        {
            throw new DeliveryException(
                $"frames written to the TAP {_tapName} do not arrive at the vif: somebody has removed its filter at ingress, or put a filter or a program before it");
        }
    }

    private void BoundRefused()
    {
        if (++_refused == MaxRefusedPerSecond)
        {
            long now = Stopwatch.GetTimestamp();
            if (now - _refusedSince < Stopwatch.Frequency)
            {
                throw new PeerViolationException($"more than {MaxRefusedPerSecond} frames a second that the kernel refuses");
            }

            _refused = 0;
            _refusedSince = now;
        }
    }

    private void Owe(bool peerWaits, uint bytes)
    {
        _owesEvent |= peerWaits;
        _bytesSinceOwed += bytes;
        if (_bytesSinceOwed >= WakeAfterBytes)
        {
            PayEvent();
        }
    }

    private void PayEvent()
    {
        _bytesSinceOwed = 0;
        if (_owesEvent)
        {
            _owesEvent = false;
            _counters.Notifications++;
            Events.Notify();
        }
    }

    private static int Vectors(in RingSegments segments, iovec* vectors)
    {
        vectors[0].iov_base = segments.First;
        vectors[0].iov_len = segments.FirstLength;
        vectors[1].iov_base = segments.Second;
        vectors[1].iov_len = segments.SecondLength;
        return segments.SecondLength == 0 ? 1 : 2;
    }

    private static ulong Mac(ReadOnlySpan<byte> header, int offset) =>
        BinaryPrimitives.ReadUInt64LittleEndian(header[offset..]) & 0xffff_ffff_ffff;
}
