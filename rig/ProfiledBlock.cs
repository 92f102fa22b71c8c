using System.Globalization;

namespace XenLoop.Rig;

/// <summary>A stretch of code that the host's processors executed, in the hypervisor, Dom0 or any guest.</summary>
/// <param name="Address">Where it begins, as virtual address of whoever executed it.</param>
/// <param name="Instructions">How many instructions were executed there.</param>
/// <param name="Length">Instructions of the stretch, which is left only at its end.</param>
public readonly record struct ProfiledBlock(ulong Address, long Instructions, int Length)
{
    /// <summary>A line of the plugin's (rig/qemu/profile.c).</summary>
    internal static ProfiledBlock Parse(string line)
    {
        string[] fields = line.Split(' ');
        return new ProfiledBlock(
            ulong.Parse(fields[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture),
            long.Parse(fields[1], CultureInfo.InvariantCulture),
            int.Parse(fields[2], CultureInfo.InvariantCulture));
    }
}
