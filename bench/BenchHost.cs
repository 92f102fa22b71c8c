using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>A kind of host to measure on, with two guests.</summary>
/// <param name="Key">Its name on the command line and in the CSV.</param>
/// <param name="Description">As printed.</param>
/// <param name="Processors">Of the host. With more than one, Dom0 and each guest have their own most of the time.</param>
/// <param name="Dom0Vcpus">Virtual processors of Dom0.</param>
/// <param name="GuestVcpus">Virtual processors of each guest.</param>
internal sealed record BenchHost(string Key, string Description, int Processors, int Dom0Vcpus, int GuestVcpus)
{
    public static readonly BenchHost One = new("1", "one processor for Dom0 and both guests", 1, 1, 1);

    public static readonly BenchHost Four = new("4", "4 processors, guests of 1 vCPU, Dom0 of 2", 4, 2, 1);

    public static readonly BenchHost Six = new("6", "6 processors, guests of 2 vCPUs, Dom0 of 2", 6, 2, 2);

    public static readonly BenchHost[] All = [One, Four, Six];

    /// <summary>What Dom0 and guests run.</summary>
    public DebianRelease Release { get; init; }

    public int DebianVersion => Release == DebianRelease.Bookworm ? 12 : 13;

    /// <summary>It may take long to boot: others may be measured at the same time, and the processors be busy.</summary>
    public XenHostOptions Options => new() { Release = Release, Processors = Processors, Dom0Vcpus = Dom0Vcpus, BootTimeout = TimeSpan.FromMinutes(20) };
}
