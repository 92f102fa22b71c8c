using System.Buffers.Text;
using System.Runtime.InteropServices;
using Microsoft.Win32.SafeHandles;

namespace XenLoop.Interop.Linux;

internal static unsafe partial class Scheduling
{
    private const int SCHED_BATCH = 3;

    // Kept, for it is read while packets flow. Null where there is none.
    private static readonly SafeFileHandle? _loadAverage = OpenLoadAverage();

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

    /// <summary>How many threads of the whole machine run or want to, the calling one included; 0 where the kernel does not tell. Allocates nothing.</summary>
    public static int Runnable()
    {
        if (_loadAverage is null)
        {
            return 0;
        }

        Span<byte> text = stackalloc byte[64];
        try
        {
            return ParseRunnable(text[..RandomAccess.Read(_loadAverage, text, 0)]);
        }
        catch (IOException)
        {
            return 0;
        }
    }

    /// <summary>Of /proc/loadavg (proc(5)): <c>0.20 0.18 0.12 1/80 11206</c>, the number before the slash; 0 if there is none.</summary>
    public static int ParseRunnable(ReadOnlySpan<byte> text)
    {
        ReadOnlySpan<byte> before = text[..Math.Max(0, text.IndexOf((byte)'/'))];
        return Utf8Parser.TryParse(before[(before.LastIndexOf((byte)' ') + 1)..], out int running, out _) ? running : 0;
    }

    private static SafeFileHandle? OpenLoadAverage()
    {
        try
        {
            return File.OpenHandle("/proc/loadavg");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
