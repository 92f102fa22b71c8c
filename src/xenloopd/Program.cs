using XenLoop.Hypervisor;

namespace XenLoop;

/// <summary>The daemon that ships: the head that has real Xen.</summary>
internal static class Program
{
    private static int Main(string[] args) => CommandLine.Run(args, RealXen.Open);
}
