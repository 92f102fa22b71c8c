using System.Globalization;

namespace XenLoop.Rig;

/// <summary>A line of <c>xl list</c>.</summary>
/// <param name="Name">Its name; <c>(null)</c> if it is dead and cannot be freed.</param>
/// <param name="Id">Its domid.</param>
/// <param name="MemoryMiB">Its memory.</param>
/// <param name="State">Its state as xl's letters: running, blocked, paused, shut down, crashed, dying.</param>
public sealed record XenDomain(string Name, int Id, int MemoryMiB, string State)
{
    /// <summary>Whether it is dead but something still holds pages of it.</summary>
    public bool IsZombie => State.Contains('d', StringComparison.Ordinal);

    internal static IReadOnlyList<XenDomain> Parse(string list) =>
        [.. list.Split('\n', StringSplitOptions.RemoveEmptyEntries).Skip(1).Select(ParseLine)];

    private static XenDomain ParseLine(string line)
    {
        // Name ID Mem VCPUs State Time; a name may not contain a blank.
        string[] fields = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
        return new XenDomain(
            fields[0],
            int.Parse(fields[1], CultureInfo.InvariantCulture),
            int.Parse(fields[2], CultureInfo.InvariantCulture),
            fields[4]);
    }
}
