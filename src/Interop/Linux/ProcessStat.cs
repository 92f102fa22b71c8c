using System.Globalization;

namespace XenLoop.Interop.Linux;

/// <summary>What /proc/PID/stat tells of a process (proc(5)), as far as it is asked for here.</summary>
/// <param name="State">'Z' for a zombie: it has ended, though its parent has not asked yet.</param>
/// <param name="StartTime">In ticks since boot: together with its number tells a process from all others.</param>
/// <param name="ArgumentsStart">Address of its command line.</param>
internal readonly record struct ProcessStat(char State, ulong StartTime, ulong ArgumentsStart)
{
    // Counted from the state on, which is field 3: the first after the name.
    private const int StartTimeField = 22 - 3;
    private const int ArgumentsStartField = 48 - 3;

    /// <summary>Null when there is no such process.</summary>
    /// <param name="process">A number, or <c>self</c>.</param>
    public static ProcessStat? Read(string process)
    {
        try
        {
            return Parse(File.ReadAllText($"/proc/{process}/stat"));
        }
        catch (IOException)
        {
            return null;
        }
    }

    /// <summary>Of the file's text. The name in parentheses may hold anything, spaces and parentheses as well.</summary>
    public static ProcessStat Parse(string text)
    {
        string[] fields = text[(text.LastIndexOf(')') + 2)..].Split(' ');
        return new ProcessStat(
            fields[0][0],
            ulong.Parse(fields[StartTimeField], CultureInfo.InvariantCulture),
            ulong.Parse(fields[ArgumentsStartField], CultureInfo.InvariantCulture));
    }
}
