namespace XenLoop.Loop;

/// <summary>
/// When the control thread collects: when there is as much garbage as memory in use, so that collecting never is the greater part
/// of its work, and within limits, for the sake of minimal guests. The data path allocates nothing.
/// </summary>
internal sealed class GarbagePolicy
{
    // Bytes.
    private const long Least = 256 << 10;
    private const long Most = 2 << 20;

    private long _collectAt;

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
}
