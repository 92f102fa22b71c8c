namespace XenLoop.Rig;

/// <summary>What a rig's clock means.</summary>
public enum RigTiming
{
    /// <summary>As fast as the machine runs. Times mean nothing.</summary>
    Functional,

    /// <summary>
    /// One instruction takes one nanosecond, whatever else this machine does, and while all domains wait the clock leaps
    /// to the next timer. Times are exact and repeatable. Joined hosts (<see cref="XenHost.StartJoinedAsync"/>): eight
    /// nanoseconds, and while all domains wait the clock goes on with ours. Then what a host does by itself is exact, and
    /// what it waits for the other is not.
    /// </summary>
    Exact,
}

/// <summary>The release of Debian whose hypervisor, kernel and programs Dom0 and the guests run, whatever this machine runs.</summary>
public enum DebianRelease
{
    /// <summary>Debian 13: Xen 4.20, Linux 6.12.</summary>
    Trixie,

    /// <summary>Debian 12: Xen 4.17, Linux 6.1.</summary>
    Bookworm,
}

/// <summary>How to boot a <see cref="XenHost"/>.</summary>
public sealed record XenHostOptions
{
    /// <summary>What it runs.</summary>
    public DebianRelease Release { get; init; }

    /// <summary>What the host's clock means. Both take as long; with exact timing a busy machine breaks no time limit.</summary>
    public RigTiming Timing { get; init; } = RigTiming.Exact;

    /// <summary>Memory of Dom0.</summary>
    public int Dom0MemoryMiB { get; init; } = 2048;

    /// <summary>Memory for all guests together. This machine gives only what is really used.</summary>
    public int GuestMemoryMiB { get; init; } = 6144;

    /// <summary>
    /// Processors of the host. More than one run at the same time, at an instruction a nanosecond each, and see each other's doings up to
    /// a microsecond late. That needs the rig's own QEMU (<see cref="XenHost.HasOwnQemu"/>), and PVH guests alone.
    /// </summary>
    public int Processors { get; init; } = 1;

    /// <summary>Virtual processors of Dom0.</summary>
    public int Dom0Vcpus { get; init; } = 1;

    /// <summary>More arguments for Dom0's kernel.</summary>
    public string Dom0KernelArguments { get; init; } = "";

    /// <summary>More arguments for the hypervisor.</summary>
    public string XenArguments { get; init; } = "";

    /// <summary>
    /// The guests that it has from the start. A host that has booted with them is kept on disk: the next of the same options goes on from there, within seconds.
    /// </summary>
    public IReadOnlyList<GuestOptions> Guests { get; init; } = [];

    /// <summary>How long Dom0 may take until it answers.</summary>
    public TimeSpan BootTimeout { get; init; } = TimeSpan.FromMinutes(5);

    /// <summary>
    /// Counts the instructions of the whole host by address from the start, for <see cref="XenHost.ProfileAsync"/>. That needs the rig's own QEMU, too, and
    /// changes no time in the host.
    /// </summary>
    public bool Profile { get; init; }

    /// <summary>The wire to another host.</summary>
    internal HostNetwork? Network { get; init; }

    /// <summary>Which of two joined hosts it is, 1 or 2.</summary>
    internal int Number { get; init; } = 1;
}
