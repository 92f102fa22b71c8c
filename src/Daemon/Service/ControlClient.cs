using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Text;

namespace XenLoop.Service;

/// <summary>The other end of <see cref="ControlSocket"/>: for the operator's command and the lab.</summary>
internal static class ControlClient
{
    private const int SOL_SOCKET = 1;
    private const int SO_PEERCRED = 17;

    /// <summary>How long a daemon is waited for that is not known to be in a hurry: Dom0's may be at work for many guests.</summary>
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);

    /// <summary>One request, one answer, as the daemon wrote it.</summary>
    /// <param name="path">Its socket.</param>
    /// <param name="request">One line, without its end.</param>
    /// <param name="patience">At most, for each step of the exchange; <see cref="Patience"/> by default.</param>
    /// <exception cref="SocketException">No daemon answers on <paramref name="path"/>, or not in time.</exception>
    /// <exception cref="IOException">It ended before it answered, or is not root's.</exception>
    public static string Ask(string path, string request, TimeSpan? patience = null)
    {
        using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        // 0 would be for ever.
        socket.SendTimeout = socket.ReceiveTimeout = Math.Max(1, (int)(patience ?? Patience).TotalMilliseconds);
        socket.Connect(new UnixDomainSocketEndPoint(path));
        ThrowIfNotRoots(socket, path);
        socket.Send(Encoding.ASCII.GetBytes(request + "\n"));
        using MemoryStream answer = new();
        byte[] buffer = new byte[4096];
        for (int length; (length = socket.Receive(buffer)) > 0;)
        {
            answer.Write(buffer, 0, length);
        }

        return answer.Length > 0 ? Encoding.UTF8.GetString(answer.GetBuffer(), 0, (int)answer.Length) : throw new IOException("it ended before it answered");
    }

    /// <summary>A guest is saved on the word of who answers: the kernel tells who that is.</summary>
    private static void ThrowIfNotRoots(Socket socket, string path)
    {
        // struct ucred: pid, uid, gid.
        Span<int> credentials = stackalloc int[3];
        socket.GetRawSocketOption(SOL_SOCKET, SO_PEERCRED, MemoryMarshal.AsBytes(credentials));
        if (credentials[1] != 0)
        {
            throw new IOException($"process {credentials[0]}, which listens on {path}, is of user {credentials[1]}, and not root's");
        }
    }
}
