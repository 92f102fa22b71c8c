using System.Net.Sockets;
using System.Text;

namespace XenLoop.Control;

/// <summary>The other end of <see cref="ControlSocket"/>: for the operator's command and the lab.</summary>
internal static class ControlClient
{
    /// <summary>One request, one answer, as the daemon wrote it.</summary>
    /// <exception cref="SocketException">No daemon answers on <paramref name="path"/>.</exception>
    /// <exception cref="IOException">It ended in the middle of the answer.</exception>
    public static string Ask(string path, string request)
    {
        using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Connect(new UnixDomainSocketEndPoint(path));
        socket.Send(Encoding.ASCII.GetBytes(request + "\n"));
        using NetworkStream stream = new(socket);
        using StreamReader reader = new(stream, Encoding.UTF8);
        return reader.ReadToEnd();
    }
}
