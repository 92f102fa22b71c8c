using System.Net.Sockets;
using System.Text;

namespace XenLoop.Service;

/// <summary>Tells systemd how the service is (sd_notify(3)). Silent where there is no service manager.</summary>
internal static class ServiceManager
{
    public static void Ready(string status) => Send($"READY=1\nSTATUS={status}");

    /// <summary>A line that <c>systemctl status</c> shows; no control characters.</summary>
    public static void Status(string status) => Send($"STATUS={status}");

    public static void Stopping() => Send("STOPPING=1");

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
