namespace XenLoop.Rig;

/// <summary>What a rig's clock means.</summary>
public enum RigTiming
{
    /// <summary>As fast as the machine runs, on several processors. Times mean nothing.</summary>
    Functional,

    /// <summary>One processor on which one instruction takes one nanosecond. Times are exact and repeatable.</summary>
    Exact,
}

/// <summary>How to boot a <see cref="XenHost"/>.</summary>
public sealed record XenHostOptions
{
    /// <summary>What the host's clock means.</summary>
    public RigTiming Timing { get; init; } = RigTiming.Functional;

    /// <summary>Memory of Dom0.</summary>
    public int Dom0MemoryMiB { get; init; } = 1024;

    /// <summary>Memory left to the guests.</summary>
    public int GuestMemoryMiB { get; init; } = 3072;

    /// <summary>Virtual processors of Dom0.</summary>
    public int Dom0Vcpus { get; init; } = 1;

    /// <summary>More arguments for the hypervisor.</summary>
    public string XenArguments { get; init; } = "";

    /// <summary>How long Dom0 may take until it answers; five times what a busy machine was seen to take.</summary>
    public TimeSpan BootTimeout { get; init; } = TimeSpan.FromMinutes(3);
}
