namespace XenLoop.Command;

/// <summary>Where standard output goes.</summary>
internal static class Terminal
{
    /// <summary>On a terminal that knows colours, if the user wants them (no-color.org).</summary>
    public static bool HasColours =>
        !Console.IsOutputRedirected
        && string.IsNullOrEmpty(Environment.GetEnvironmentVariable("NO_COLOR"))
        && Environment.GetEnvironmentVariable("TERM") is { Length: > 0 } and not "dumb";
}
