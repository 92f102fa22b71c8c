using System.Globalization;
using System.Net.Sockets;
using System.Text;

namespace XenLoop.Service;

/// <summary>Tells systemd how the service is (sd_notify(3)). Silent where there is no service manager.</summary>
internal static class ServiceManager
{
    /// <summary>How often <see cref="Alive"/> is due: half of the time after which the service manager takes the daemon for hung. The
    /// longest time there is where it does not look.</summary>
    public static TimeSpan AliveInterval { get; } = ReadAliveInterval();

    public static void Ready(string status) => Send($"READY=1\nSTATUS={status}");

    /// <summary>A line that <c>systemctl status</c> shows; no control characters.</summary>
    public static void Status(string status) => Send($"STATUS={status}");

    /// <summary>The daemon is not hung. Not said where nobody looks.</summary>
    public static void Alive()
    {
        if (AliveInterval != TimeSpan.MaxValue)
        {
            Send("WATCHDOG=1");
        }
    }

    public static void Stopping() => Send("STOPPING=1");

    private static TimeSpan ReadAliveInterval() =>
        long.TryParse(Environment.GetEnvironmentVariable("WATCHDOG_USEC"), NumberStyles.None, CultureInfo.InvariantCulture, out long microseconds)
        && microseconds > 0
        && (Environment.GetEnvironmentVariable("WATCHDOG_PID") is not { } pid || pid == Environment.ProcessId.ToString(CultureInfo.InvariantCulture))
            ? TimeSpan.FromMicroseconds(microseconds / 2)
            : TimeSpan.MaxValue;

    private static void Send(string state)
    {
        if (Environment.GetEnvironmentVariable("NOTIFY_SOCKET") is not { Length: > 1 } path)
        {
            return;
        }

        try
        {
            using Socket socket = new(AddressFamily.Unix, SocketType.Dgram, ProtocolType.Unspecified);
            // '@' stands for the zero byte of an abstract address.
            socket.SendTo(Encoding.UTF8.GetBytes(state), new UnixDomainSocketEndPoint(path[0] == '@' ? '\0' + path[1..] : path));
        }
        catch (SocketException e)
        {
            Log.Warning($"cannot tell the service manager at {path} that \"{state}\": {e.SocketErrorCode}");
        }
    }
}
