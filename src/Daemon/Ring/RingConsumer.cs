namespace XenLoop.Ring;

/// <summary>
/// The receiving end of a ring. One thread. Nothing in shared memory is believed: index and record length are read
/// once into locals and checked there, and the own index is private.
/// <para>Use: <see cref="TryPeek"/>, take the payload, <see cref="Advance"/>, again for the burst, then
/// <see cref="Publish"/> once.</para>
/// </summary>
internal sealed unsafe class RingConsumer
{
    private readonly byte* _data;
    private readonly uint _ringBytes;
    private readonly RingLine* _own;
    private readonly RingLine* _peer;

    private uint _index;      // next byte to take; private
    private uint _published;  // what the peer has been told is free
    private uint _produced;   // the peer's index when last looked at
    private uint _current;    // bytes of the record last peeked at

    public RingConsumer(byte* data, uint ringBytes, RingLine* own, RingLine* peer)
    {
        _data = data;
        _ringBytes = ringBytes;
        _own = own;
        _peer = peer;
    }

    /// <summary>Bytes taken and not yet given back to the producer.</summary>
    public uint Unpublished => _index - _published;

    /// <summary>The oldest record, if there is one; it stays until <see cref="Advance"/>.</summary>
    /// <exception cref="PeerViolationException">Index or record length is one that no honest peer writes.</exception>
    public bool TryPeek(out RingSegments payload)
    {
        if (_index == _produced && !ReadProduced())
        {
            payload = default;
            return false;
        }

        uint available = _produced - _index;
        // One read: the peer may change the word between two.
        uint length = Volatile.Read(ref *(uint*)(_data + (_index & (_ringBytes - 1))));
        if (length is 0 or > RingRecord.MaxPayload || RingRecord.BytesFor(length) > available)
        {
            throw new PeerViolationException($"record of {length} bytes where {available} are available");
        }

        _current = RingRecord.BytesFor(length);
        payload = RingSegments.At(_data, _ringBytes, (_index + RingRecord.HeaderBytes) & (_ringBytes - 1), length);
        return true;
    }

    /// <summary>Done with the record that <see cref="TryPeek"/> gave.</summary>
    public void Advance()
    {
        _index += _current;
        _current = 0;
    }

    /// <summary>Gives the space of everything taken back to the peer. True: it waits for space; notify it.</summary>
    public bool Publish()
    {
        uint old = _published;
        if (_index == old)
        {
            return false;
        }

        // Release: our reads of the records are over before the producer may write there.
        Volatile.Write(ref _own->Index, _index);
        _published = _index;
        Interlocked.MemoryBarrier(); // store to load: see RingProducer.Publish (tests/model: publish, notify if crossed)
        uint wakeAt = Volatile.Read(ref _peer->WakeAt);
        return _index - wakeAt < _index - old;
    }

    /// <summary>
    /// Asks for an event at the next record. False: one is there already; do not sleep. After <see cref="Publish"/>:
    /// the peer may be waiting for the space.
    /// </summary>
    public bool ArmData()
    {
        Volatile.Write(ref _own->WakeAt, _index + 1);
        Interlocked.MemoryBarrier(); // see RingProducer.Publish (tests/model: arm, re-check)
        return !HasData();
    }

    /// <summary>Awake again: no event is needed for the next record. A hint; an event too many does no harm.</summary>
    public void Disarm() => Volatile.Write(ref _own->WakeAt, _index);

    /// <summary>
    /// True when the oldest record is one that the producer has marked as stale: take it (<see cref="TryPeek"/>, <see cref="Advance"/>)
    /// and throw it away. A mark that no honest peer writes costs that peer its own records and nothing else: what
    /// is beyond what it has published is never believed.
    /// </summary>
    public bool IsStale()
    {
        uint mark = Volatile.Read(ref _peer->Stale);
        if ((mark & RingLine.StaleFlag) == 0)
        {
            return false;
        }

        // The mark first: what it covers was published before.
        ReadProduced();
        return (mark & ~7u) - _index - 1 < _produced - _index;
    }

    /// <summary>Looks at the peer's index. Cheap enough to spin on.</summary>
    public bool HasData() => _index != _produced || ReadProduced();

    /// <summary>The peer's index as it is now.</summary>
    /// <exception cref="PeerViolationException">No honest peer can have it.</exception>
    public uint Produced()
    {
        ReadProduced();
        return _produced;
    }

    /// <summary>Not everything before this index, which was once the peer's, is taken.</summary>
    public bool IsBefore(uint index) => (int)(index - _index) > 0;

    private bool ReadProduced()
    {
        // Acquire: records are read after the index that covers them.
        uint produced = Volatile.Read(ref _peer->Index);
        uint available = produced - _index;
        // What was taken but not yet given back still occupies the ring. (Unpublished never exceeds the ring: no wrap here.)
        if (available > _ringBytes - Unpublished || available % 8 != 0)
        {
            throw new PeerViolationException($"producer index {produced} with consumer index {_index} in a ring of {_ringBytes} bytes");
        }

        _produced = produced;
        return available != 0;
    }
}
