using System.Globalization;

namespace XenLoop.Settings;

/// <summary>
/// The configuration file cannot be used. The message is for the administrator: file, line and column (from 1) where they
/// are known, what is wrong, and what to do.
/// </summary>
internal sealed class ConfigurationException : Exception
{
    /// <param name="path">The file.</param>
    /// <param name="problem">What is wrong, and the remedy.</param>
    public ConfigurationException(string path, string problem)
        : base(Printable($"{path}: {problem}"))
    {
    }

    /// <param name="path">The file.</param>
    /// <param name="line">From 1.</param>
    /// <param name="column">From 1.</param>
    /// <param name="problem">What is wrong, and the remedy.</param>
    public ConfigurationException(string path, int line, int column, string problem)
        : base(Printable(string.Create(CultureInfo.InvariantCulture, $"{path}:{line}:{column}: {problem}")))
    {
    }

    // A message cites the file, and goes to terminals and to the log.
    private static string Printable(string message) => string.Concat(message.Select(c => char.IsControl(c) ? '?' : c));
}
