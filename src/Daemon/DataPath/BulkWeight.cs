using XenLoop.Interop.Linux;

namespace XenLoop.DataPath;

/// <summary>
/// The data thread's weight against the application that receives, on a CPU both share. While bulk data come, three times
/// the usual: otherwise the application preempts the thread at each super-packet, takes it, and sleeps again. While only
/// small packets come, the usual: then the application shall preempt, for its answer is what everybody waits for, and
/// the thread finds it in the TAP without having slept. (docs/measurements.md, "Scheduling")
/// </summary>
internal sealed class BulkWeight
{
    private const int BulkNiceness = -5;

    // Two super-packets in one burst begin it; so many small bursts on end are its end, not a gap.
    private const uint BulkBytes = 128 * 1024;
    private const int SmallBursts = 64;

    private bool _bulk;
    private int _small;

    /// <summary>A pump took so many bytes from a ring; 0 counts for nothing.</summary>
    public void Received(uint bytes)
    {
        if (bytes >= BulkBytes)
        {
            _small = 0;
            Set(bulk: true);
        }
        else if (bytes != 0 && _bulk && ++_small == SmallBursts)
        {
            Set(bulk: false);
        }
    }

    private void Set(bool bulk)
    {
        if (bulk != _bulk)
        {
            _bulk = bulk;
            _small = 0;
            Scheduling.SetNiceness(bulk ? BulkNiceness : 0);
        }
    }
}
