using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>From the TAP's queue into the ring: read(2) straight into it. And the divert is told how far the queue is drained, and stopped while the
/// peer takes nothing.</summary>
internal sealed unsafe class TransmitPath
{
    // More than any ring holds: a drain ends although the other side keeps on producing.
    private const int DrainBursts = (int)(ControlPage.MaxRingBytes / SmallestRecord / Frames.BurstPackets);

    private const uint SmallestRecord = RingRecord.HeaderBytes + Frames.HeaderBytes;

    // A peer that leaves something in its ring for so long is stuck, and traffic goes by netfront until it has caught up.
    private const int StallMilliseconds = 150;

    // Frames that others overtook by netfront so lately are still sent: the lateness is a few milliseconds, as where the whole
    // guest stood still, not its daemon alone.
    private const int LateMilliseconds = 5;

    private const int NanosecondsPerMillisecond = 1_000_000;

    private readonly RingProducer _ring;
    private readonly DivertSlot _slot;
    private readonly PeerEvents _events;
    private readonly int _tap;
    private readonly string _tapName;
    private readonly ulong _ownMac;
    private readonly ulong _peerMac;

    private bool _tapReady = true; // epoll has told of it: it is read until it is empty
    private ulong _drained;   // frames out of the TAP's queue since ever; the slot's word, which this thread writes
    private ulong _overtaken; // frames up to here are older than packets that have gone by netfront
    private DeliveryWatch _delivery; // from the divert to the TAP's queue
    private bool _full;
    private bool _stalled;
    private bool _marked; // records in the ring are marked as stale
    private uint _progressAt;
    private long _progressSince;
    private bool _spaceArmed;
    private bool _emptyArmed;

    public TransmitPath(TapDevice tap, RingProducer ring, DivertSlot slot, PeerEvents events, MacAddress own, MacAddress peer)
    {
        (_tap, _tapName) = (tap.FileDescriptor, tap.Name);
        (_ring, _slot, _events) = (ring, slot, events);
        (_ownMac, _peerMac) = (own.Bits, peer.Bits);
        // The slot counts on from its last channel, and is blocked: nothing is on its way.
        _drained = slot.Queued;
        slot.Drain(_drained);
        _delivery = new DeliveryWatch(slot.Diverted, slot.Queued);
    }

    /// <summary>Written by the data loop's thread in whole words; read with <see cref="Volatile"/>.</summary>
    public ulong Packets;
    public ulong Bytes;
    public ulong Stalls;
    public ulong Discarded;

    /// <summary>For any thread.</summary>
    public bool IsStalled => Volatile.Read(ref _stalled);

    /// <summary>Bytes that the last pump put into the ring.</summary>
    public uint BurstBytes { get; private set; }

    /// <summary>Epoll reported the TAP readable.</summary>
    public void TapReadable() => _tapReady = true;

    /// <summary>Nothing is diverted any more.</summary>
    public void Block()
    {
        _stalled = true;
        _slot.Block();
    }

    /// <summary>
    /// Moves a burst. Looks at the slot, without a system call: what was just written to the TAP may have made the stack answer (acknowledgements) in
    /// this very thread, and while the thread is busy or spins nothing else tells.
    /// </summary>
    /// <returns>True: something moved.</returns>
    public bool Pump()
    {
        BurstBytes = 0;
        return (_tapReady || _slot.Queued != _drained) && Transmit();
    }

    /// <summary>Whether an event that has come tells of what this side asked to be told of: space, or a peer that has caught up. Each counts
    /// once: a peer could take a byte for each event.</summary>
    public bool TakesEvent()
    {
        // With a full ring as well: a peer that takes nothing has no reason to wake us.
        bool empty = !_ring.HasOutstanding();
        bool taken = (_emptyArmed && empty) || (_spaceArmed && _ring.HasRoom);
        _spaceArmed &= !taken;
        _emptyArmed &= !taken;
        return taken;
    }

    /// <summary>Asks the peer for the events needed to sleep. False: there is work, do not sleep.</summary>
    public bool Arm()
    {
        if (_full)
        {
            _spaceArmed = true;
            if (!_ring.ArmSpace())
            {
                _full = false;
                return !_tapReady;
            }
        }
        else if (_tapReady)
        {
            return false;
        }
        else if (_stalled)
        {
            _emptyArmed = true;
            _ring.ArmEmpty();
        }

        return true;
    }

    /// <summary>
    /// Before a sleep: true while the peer has records it has not taken, so that the sleep must be bounded. Diverts
    /// stop while the peer takes nothing at all for <see cref="StallMilliseconds"/>, and resume when it has caught up.
    /// </summary>
    public bool AwaitsPeer()
    {
        if (!_ring.HasOutstanding())
        {
            _progressSince = 0;
            Resume();
            return false;
        }

        // Precise enough, and no system call (IdleClock).
        long now = Environment.TickCount64;
        if (_progressSince == 0 || _ring.Consumed != _progressAt)
        {
            _progressAt = _ring.Consumed;
            _progressSince = now;
            Resume();
        }
        else if (!_stalled && now - _progressSince > StallMilliseconds)
        {
            Block();
            Stalls++;
            // Bounded: the next turn asks for the event that wakes us when the peer has taken everything.
            return true;
        }

        // Only what has been overtaken is stale: a peer that stands still while nobody sends to it loses nothing. Nothing tells of the packet
        // that overtakes: it is looked for until it has come.
        if (_stalled && !IsMarked && _slot.OvertakenAt / NanosecondsPerMillisecond > _progressSince)
        {
            _ring.MarkStale();
            _marked = true;
        }

        return !_stalled || !IsMarked;
    }

    /// <summary>Before a sleep: true while something that went into the TAP has not come out of it, so that the sleep must be bounded.</summary>
    /// <exception cref="DeliveryException">It will not come any more.</exception>
    public bool AwaitsDelivery()
    {
        ulong queued = _slot.Queued; // before what was diverted: see DeliveryWatch.IsEven
        return _delivery.HasLost(_slot.Diverted, queued)
            ? throw new DeliveryException(
                $"packets diverted to the TAP {_tapName} do not come to its queue: somebody has set it down, moved it, or put a filter or a qdisc on it")
            : _delivery.IsMissing;
    }

    /// <summary>Closing: empties the TAP into the ring. True when it is empty; false: no room yet.</summary>
    public bool Drain()
    {
        _tapReady = true;
        for (int i = 0; i < DrainBursts && Transmit(); i++)
        {
        }

        return !_tapReady;
    }

    private bool IsMarked => _marked && _ring.IsAllStale;

    private void Resume()
    {
        if (_stalled)
        {
            _stalled = false;
            _slot.Open();
        }
    }

    // Nothing is read of the copy that was not written: it needs no zeros first, at each look.
    [SkipLocalsInit]
    private bool Transmit()
    {
        iovec* vectors = stackalloc iovec[2];
        Span<byte> copy = stackalloc byte[OffloadHeader.MostBytes];
        Span<byte> header = copy[..Frames.HeaderBytes];
        ulong queued = _slot.Queued; // before the reads: frames that are read, or were refused by the queue after all, when it is empty
        // Where the count alone tells of frames, they are read and no look is spent on whether there are more: what comes later is counted, too.
        // What was not counted as expected (the filter runs before the queue) is found at epoll's word.
        ulong known = _tapReady ? ulong.MaxValue : queued - _drained;
        ulong overtaken = Overtaken();
        _marked = _marked && !_ring.TryClearStale();
        bool empty = false;
        int packets = 0;
        uint bytes = 0;
        for (; packets < Frames.BurstPackets && bytes < Frames.BurstBytes && (ulong)packets < known; packets++)
        {
            if (!_ring.TryReserve(out RingSegments room))
            {
                _full = true;
                _tapReady = true; // whoever told of it: it is not empty
                break;
            }

            _full = false;
            long length = VectorIo.readv(_tap, vectors, Frames.Vectors(room, vectors));
            if (length < 0)
            {
                int error = Marshal.GetLastSystemError();
                if (error == Errno.EAGAIN)
                {
                    _tapReady = false;
                    empty = true;
                    break;
                }

                throw new NativeException("readv", _tapName, error);
            }

            if ((ulong)packets < overtaken)
            {
                Discarded++;
                continue;
            }

            // The TAP's filter lets nothing else in; it runs in a place that is not ours alone.
            if (length < Frames.HeaderBytes)
            {
                continue;
            }

            room.CopyTo(header);
            if (Frames.Destination(header) != _peerMac || Frames.Source(header) != _ownMac)
            {
                continue;
            }

            if ((header[0] & OffloadHeader.VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0)
            {
                RingSegments record = room.Take((uint)length);
                Span<byte> head = copy[..(int)Math.Min(length, OffloadHeader.MostBytes)];
                record.CopyTo(head);
                InnerChecksum.Complete(record, head);
            }

            _ring.Commit((uint)length);
            bytes += (uint)length;
            Packets++;
            Bytes += (ulong)length - Frames.VnetHeaderBytes;
        }

        Drained((uint)packets, queued, empty);
        BurstBytes = bytes;
        _events.Owe(_ring.Publish(), bytes);
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
    private void Drained(uint frames, ulong queued, bool empty)
    {
        ulong drained = _drained + frames;
        // Empty: what was counted and is not there was lost on the last inches (no memory). One that was counted and not yet there
        // is read later, one too many, which the next time sets right.
        if (empty && ((long)(queued - drained) > 0 || _slot.Queued == queued))
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
}
