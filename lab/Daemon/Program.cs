namespace XenLoop.Lab;

/// <summary>The daemon in the lab: the same library as what ships, on the lab's hypervisor.</summary>
internal static class Program
{
    private static int Main(string[] args) => CommandLine.Run(args, LabHypervisor.Open);
}
