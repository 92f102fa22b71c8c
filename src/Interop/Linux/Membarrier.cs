using System.Runtime.InteropServices;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>membarrier(2).</summary>
internal static class Membarrier
{
    private const int MEMBARRIER_CMD_GLOBAL = 1;

    private static int SYS_membarrier => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 283 : 324;

    /// <summary>Waits for an RCU grace period of the kernel: whatever ran inside an RCU section on some CPU has ended. Some milliseconds.</summary>
    /// <returns>False where the kernel refuses: on machines with nohz_full CPUs.</returns>
    public static bool TryWaitForAll() => (int)LibC.syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0) == 0;
}
