using System.Text;
using Tmds.Linux;

namespace XenLoop.Control;

/// <summary>
/// Messages for the administrator, on standard error: one line each, with the priority that systemd's journal
/// understands. Control plane only; the data path never logs.
/// </summary>
internal static unsafe class Log
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
        byte[] bytes = Encoding.UTF8.GetBytes($"{prefix}{line}\n");
        fixed (byte* data = bytes)
        {
            _ = LibC.write(2, data, bytes.Length);
        }
    }
}
