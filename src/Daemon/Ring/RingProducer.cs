namespace XenLoop.Ring;

/// <summary>
/// The sending end of a ring. One thread. The peer can change every shared byte at any time: this side keeps its own
/// index private, reads the peer's once into a local, and believes it only inside the range an honest peer can reach.
/// <para>Use: <see cref="TryReserve"/>, fill, <see cref="Commit"/>, again for the burst, then <see cref="Publish"/> once.</para>
/// </summary>
internal sealed unsafe class RingProducer
{
    private readonly byte* _data;
    private readonly uint _ringBytes;
    private readonly RingLine* _own;
    private readonly RingLine* _peer;

    private uint _index;      // next byte to fill; private, never read back from shared memory
    private uint _published;  // what the peer has been shown
    private uint _consumed;   // the peer's index when last looked at
    private uint _stale;      // marked as stale up to here

    public RingProducer(byte* data, uint ringBytes, RingLine* own, RingLine* peer)
    {
        _data = data;
        _ringBytes = ringBytes;
        _own = own;
        _peer = peer;
    }

    /// <summary>Room for one record of the greatest size. False: full; see <see cref="ArmSpace"/>.</summary>
    /// <exception cref="PeerViolationException">The peer's index is one that no honest peer can have.</exception>
    public bool TryReserve(out RingSegments payload)
    {
        // The cached index first: the peer's cache line is touched only when the ring looks full.
        if (Free < RingRecord.MaxBytes)
        {
            ReadConsumed();
            if (Free < RingRecord.MaxBytes)
            {
                payload = default;
                return false;
            }
        }

        uint offset = (_index + RingRecord.HeaderBytes) & (_ringBytes - 1);
        payload = RingSegments.At(_data, _ringBytes, offset, RingRecord.MaxPayload);
        return true;
    }

    /// <summary>Makes what was filled a record of <paramref name="length"/> bytes, 1 to <see cref="RingRecord.MaxPayload"/>.</summary>
    public void Commit(uint length)
    {
        *(ulong*)(_data + (_index & (_ringBytes - 1))) = length;
        _index += RingRecord.BytesFor(length);
    }

    /// <summary>Shows the peer everything committed. True: the peer sleeps and asked for an event; notify it.</summary>
    public bool Publish()
    {
        uint old = _published;
        if (_index == old)
        {
            return false;
        }

        // Release: the records are in memory before the index that covers them.
        Volatile.Write(ref _own->Index, _index);
        _published = _index;
        // Store to load: the peer fences between its WakeAt and its look at our index, we between our index and its
        // WakeAt. One of the two must see the other's store, or a wake-up would be lost. (tests/model: publish, notify if crossed)
        Interlocked.MemoryBarrier();
        uint wakeAt = Volatile.Read(ref _peer->WakeAt);
        return _index - wakeAt < _index - old;
    }

    /// <summary>
    /// Asks for an event when half of the ring is free. False: there is room already; do not sleep. After
    /// <see cref="Publish"/>: the peer cannot take what it was not shown. One request at a time: this one or
    /// <see cref="ArmEmpty"/>.
    /// </summary>
    public bool ArmSpace()
    {
        uint wanted = Math.Max(_ringBytes / 2, RingRecord.MaxBytes);
        Volatile.Write(ref _own->WakeAt, _index + wanted - _ringBytes);
        Interlocked.MemoryBarrier(); // see Publish (tests/model: arm, re-check)
        ReadConsumed();
        return Free < RingRecord.MaxBytes;
    }

    /// <summary>Asks for an event when the peer has taken everything published. False: it has already.</summary>
    public bool ArmEmpty()
    {
        Volatile.Write(ref _own->WakeAt, _published);
        Interlocked.MemoryBarrier(); // see Publish (tests/model: arm, re-check)
        return HasOutstanding();
    }

    /// <summary>Looks at the peer's index: has it not yet taken something that was published?</summary>
    public bool HasOutstanding()
    {
        ReadConsumed();
        return _consumed != _published;
    }

    /// <summary>What is published and not yet taken is not to be taken any more: newer packets go another way from here on.</summary>
    public void MarkStale()
    {
        _stale = _published;
        Volatile.Write(ref _own->Stale, _published | RingLine.StaleFlag);
    }

    /// <summary>The last mark covers all that is published.</summary>
    public bool IsAllStale => _stale == _published;

    /// <summary>
    /// Takes the mark back if all that it covers has been taken or thrown away. To be called now and then after <see cref="MarkStale"/>
    /// until that is so: when the index has come round to the mark, it would cover other records.
    /// </summary>
    public bool TryClearStale()
    {
        if ((int)(_stale - _consumed) > 0)
        {
            return false;
        }

        Volatile.Write(ref _own->Stale, 0);
        return true;
    }

    /// <summary>The peer's index when last looked at; only differences mean anything.</summary>
    public uint Consumed => _consumed;

    /// <summary>As of when the peer's index was last looked at: half of the ring is free, as <see cref="ArmSpace"/> asks for, or room for a record if that is more.</summary>
    public bool HasRoom => Free >= Math.Max(_ringBytes / 2, RingRecord.MaxBytes);

    private uint Free => _ringBytes - (_index - _consumed);

    private void ReadConsumed()
    {
        // Acquire: the peer is done with the bytes before we write over them.
        uint consumed = Volatile.Read(ref _peer->Index);
        if (consumed - _consumed > _published - _consumed)
        {
            throw new PeerViolationException($"consumer index {consumed} outside {_consumed}..{_published}");
        }

        _consumed = consumed;
    }
}
