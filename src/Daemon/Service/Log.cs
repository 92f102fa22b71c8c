using System.Text;
using XenLoop.Interop.Linux;

namespace XenLoop.Service;

/// <summary>
/// Messages for the administrator, on standard error: one line each, with the priority that systemd's journal
/// understands. Control plane only; the data path never logs.
/// </summary>
internal static class Log
{
    private static readonly bool _toJournal = Environment.GetEnvironmentVariable("JOURNAL_STREAM") is not null;

    public static void Error(string message) => Write('3', message);

    public static void Warning(string message) => Write('4', message);

    public static void Info(string message) => Write('6', message);

    private static void Write(char priority, string message)
    {
        string prefix = _toJournal ? $"<{priority}>" : $"{DateTime.UtcNow:HH:mm:ss.fff} xenloopd: ";
        // Values from other domains are in messages: keep them from forging lines.
        string line = string.Concat(message.Select(c => char.IsControl(c) ? '?' : c));
        StandardError.Write(Encoding.UTF8.GetBytes($"{prefix}{line}\n"));
    }
}
