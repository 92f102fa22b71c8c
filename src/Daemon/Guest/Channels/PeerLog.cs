using XenLoop.Service;

namespace XenLoop.Guest.Channels;

/// <summary>
/// The log as far as peers fill it: each has some lines at once, and after that one a second. It outlives a peer's channels, for
/// what a peer does again and again it mostly does with a new one.
/// </summary>
internal sealed class PeerLog
{
    public const int Lines = 60;
    public static readonly TimeSpan Refill = TimeSpan.FromSeconds(1);

    private readonly Allowance _lines = new(Lines, Refill * Lines);

    public void Info(ushort peer, string message, TimeSpan now)
    {
        if (Take(peer, now) is { } note)
        {
            Log.Info(message + note);
        }
    }

    public void Warning(ushort peer, string message, TimeSpan now)
    {
        if (Take(peer, now) is { } note)
        {
            Log.Warning(message + note);
        }
    }

    /// <summary>Pays for one line.</summary>
    /// <returns>What the line ends with; null when there shall be none.</returns>
    internal string? Take(ushort peer, TimeSpan now) =>
        !_lines.Take(peer, 1, now, out double left) ? null
        : left < 1 ? $" (of domain {peer} only a line a second from here on)"
        : "";
}
