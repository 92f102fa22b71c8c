using System.Diagnostics;
using XenLoop.Interop.Linux;

namespace XenLoop.DataPath;

/// <summary>What <see cref="IdleStrategy"/> and <see cref="ApplicationTurn"/> know of time and of who else wants a processor; in their tests time is made by hand.</summary>
internal class IdleClock
{
    /// <summary>
    /// To a few milliseconds, and cheap everywhere: Linux keeps it in memory that it shares with programs. The precise clock is a system
    /// call in guests whose clock source is Xen's.
    /// </summary>
    public virtual long Milliseconds => Environment.TickCount64;

    public virtual long Microseconds => (long)Stopwatch.GetElapsedTime(0).TotalMicroseconds;

    /// <summary>Whether more threads want to run than there are processors, the calling one included.</summary>
    public virtual bool IsCrowded => Scheduling.Runnable() > Environment.ProcessorCount;

    /// <summary>Lets whatever else wants this processor run first, as far as the scheduler finds that fair; returns at once if nothing does.</summary>
    public virtual void GiveWay() => Thread.Yield();
}
