using System.Globalization;

namespace XenLoop.Rig;

/// <summary>A stretch of code that the host's processors executed, in the hypervisor, Dom0 or any guest.</summary>
/// <param name="Address">Where it begins, as virtual address of whoever executed it.</param>
/// <param name="Instructions">How many instructions were executed there.</param>
public readonly record struct ProfiledBlock(ulong Address, long Instructions)
{
    /// <summary>A line of the plugin's (rig/qemu/profile.c), whose third field, the stretch's length, nobody needs here.</summary>
    internal static ProfiledBlock Parse(string line)
    {
        string[] fields = line.Split(' ');
        return new ProfiledBlock(
            ulong.Parse(fields[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture),
            long.Parse(fields[1], CultureInfo.InvariantCulture));
    }
}
