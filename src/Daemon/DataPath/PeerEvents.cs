using XenLoop.Hypervisor;

namespace XenLoop.DataPath;

/// <summary>Events to and from the peer of one channel: when one is owed, when one is acknowledged, and how many may come for nothing.</summary>
internal sealed class PeerEvents(EventChannel events)
{
    // A peer that sleeps is woken when there is nothing more to do for it at once, or after so much. Waking it at the first
    // record makes it run a short way and sleep again: see docs/measurements.md, "When to wake the peer".
    private const uint WakeAfterBytes = 512 * 1024;

    private bool _owed;
    private uint _bytesSinceOwed;
    private bool _taken;
    private PeerRate _idle = new(1024, "events a second with nothing in the ring");

    /// <summary>Events sent. One thread writes it; any may read it, with <see cref="Volatile"/>.</summary>
    public ulong Sent;

    public int FileDescriptor => events.FileDescriptor;

    /// <summary>Bytes were published, or taken.</summary>
    /// <param name="peerWaits">It asked for an event at this.</param>
    /// <param name="bytes">Of records.</param>
    public void Owe(bool peerWaits, uint bytes)
    {
        _owed |= peerWaits;
        _bytesSinceOwed += bytes;
        if (_bytesSinceOwed >= WakeAfterBytes)
        {
            Pay();
        }
    }

    /// <summary>There is nothing more to do for the peer at once.</summary>
    public void Pay()
    {
        _bytesSinceOwed = 0;
        if (_owed)
        {
            _owed = false;
            Sent++;
            events.Notify();
        }
    }

    /// <summary>An event has come. It is acknowledged before the next sleep and not now: until then none is needed, and what it announces need not
    /// wait for the two system calls.</summary>
    /// <returns>False when one has come since the last that was acknowledged.</returns>
    public bool Take()
    {
        bool first = !_taken;
        _taken = true;
        return first;
    }

    /// <returns>True when there was one to be acknowledged.</returns>
    public bool Acknowledge()
    {
        if (!_taken)
        {
            return false;
        }

        _taken = false;
        events.Acknowledge();
        return true;
    }

    /// <summary>The event announced nothing.</summary>
    /// <exception cref="Ring.PeerViolationException">There are too many.</exception>
    public void CountIdle() => _idle.Count();
}
