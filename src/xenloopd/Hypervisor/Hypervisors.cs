namespace XenLoop.Hypervisor;

/// <summary>Chooses between the two hypervisors.</summary>
internal static class Hypervisors
{
    /// <summary>The lab when the environment names one, else real Xen.</summary>
    /// <exception cref="Interop.NativeException">This machine is neither.</exception>
    public static IHypervisor Open() => LabHypervisor.FromEnvironment() ?? (IHypervisor)RealXen.Open();
}
