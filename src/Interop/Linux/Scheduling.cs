using System.Runtime.InteropServices;

namespace XenLoop.Interop.Linux;

internal static unsafe partial class Scheduling
{
    private const int SCHED_BATCH = 3;

    // int sched_setscheduler(pid_t pid, int policy, const struct sched_param *param);
    [LibraryImport("libc")]
    private static partial int sched_setscheduler(int pid, int policy, int* param);

    /// <summary>
    /// SCHED_BATCH for the calling thread: it no longer preempts the application at every packet, so that bursts form
    /// (measured: loss of paced UDP at 300 Mb/s fell from 15 % to 5 %). Failure costs only that.
    /// </summary>
    public static void PreferThroughput()
    {
        int priority = 0;
        _ = sched_setscheduler(0, SCHED_BATCH, &priority);
    }
}
