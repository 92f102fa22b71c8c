using XenLoop.Interop.Linux;

namespace XenLoop.Loop;

/// <summary>
/// What the control thread does for memory. It collects when there is as much garbage as memory in use, so that collecting never is the greater part
/// of its work, and within limits, for the sake of minimal guests. The data path allocates nothing.
/// </summary>
internal sealed class GarbagePolicy
{
    // Bytes.
    private const long Least = 256 << 10;
    private const long Most = 2 << 20;

    private static readonly TimeSpan _longSleep = TimeSpan.FromSeconds(2);

    private long _collectAt;
    private long _releasedAt;

    /// <summary>To be called after each turn. The start, a burst of work (two hundred guests introduced), and many questions for the
    /// status leave garbage that a daemon which then sleeps would keep for ever.</summary>
    public void AfterTurn()
    {
        if (GC.GetTotalAllocatedBytes() > _collectAt)
        {
            GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
            _collectAt = GC.GetTotalAllocatedBytes() + Math.Clamp(GC.GetTotalMemory(forceFullCollection: false), Least, Most);
        }
    }

    /// <summary>To be called before each sleep. The start, and the making of a channel, run through most of the program, of which a daemon that then
    /// sleeps needs little. While packets flow, no sleep is long.</summary>
    public void BeforeSleep(TimeSpan sleep)
    {
        // To map again what runs next takes a tenth of a millisecond: not after a turn that did nothing. What does something allocates.
        if (sleep >= _longSleep && GC.GetAllocatedBytesForCurrentThread() > _releasedAt)
        {
            OwnProcess.ReleaseCode();
            _releasedAt = GC.GetAllocatedBytesForCurrentThread();
        }
    }
}
