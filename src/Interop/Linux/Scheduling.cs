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

    /// <summary>SCHED_BATCH for the calling thread: its wake-ups do not preempt others. Failure costs only that.</summary>
    public static void SetBatch()
    {
        int noPriority = 0;
        _ = sched_setscheduler(0, SCHED_BATCH, &noPriority);
    }

    /// <summary>The calling thread's nice value, -20 (the greatest weight) to 19. Failure (no CAP_SYS_NICE) costs only that.</summary>
    public static void SetNiceness(int value)
    {
        const int PRIO_PROCESS = 0; // on Linux, the calling thread
        _ = setpriority(PRIO_PROCESS, 0, value);
    }
}
