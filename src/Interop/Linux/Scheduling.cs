using System.Runtime.InteropServices;

namespace XenLoop.Interop.Linux;

internal static unsafe partial class Scheduling
{
    private const int SCHED_BATCH = 3;

    // int sched_setscheduler(pid_t pid, int policy, const struct sched_param *param);
    [LibraryImport("libc")]
    private static partial int sched_setscheduler(int pid, int policy, int* param);

    // int setpriority(int which, id_t who, int prio);
    [LibraryImport("libc")]
    private static partial int setpriority(int which, uint who, int prio);

    /// <summary>
    /// For a thread that moves packets beside the application: neither preempts the other at every packet, so that bursts
    /// form. SCHED_BATCH keeps this thread's wake-ups from preempting the sender; a weight three times that of others keeps
    /// the receiver's wake-ups from preempting this thread. (docs/measurements.md, "Scheduling"; failure costs only that.)
    /// </summary>
    public static void PreferThroughput()
    {
        const int PRIO_PROCESS = 0; // on Linux, the calling thread
        const int Niceness = -5;
        int noPriority = 0;
        _ = sched_setscheduler(0, SCHED_BATCH, &noPriority);
        _ = setpriority(PRIO_PROCESS, 0, Niceness);
    }
}
