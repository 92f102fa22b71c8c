using System.Buffers;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;

namespace XenLoop.Control;

/// <summary>
/// The socket on which the operator's command asks: one request line, one JSON answer, end of stream.
/// Only root can reach it. Every wait is bounded, so a client that says nothing cannot hold the daemon.
/// </summary>
internal sealed class ControlSocket : IDisposable
{
    /// <summary>In the runtime directory that the service manager (or the lab) gave, else in /run/xenloop.</summary>
    public static string DefaultPath =>
        Path.Combine(Environment.GetEnvironmentVariable("RUNTIME_DIRECTORY") ?? "/run/xenloop", "control.sock");

    private const int ClientTimeoutMilliseconds = 200;

    private readonly string _path;
    private readonly Socket _socket;
    private readonly Action<Utf8JsonWriter> _writeStatus;

    /// <exception cref="IOException">The path cannot be listened on: another daemon runs, or the directory is not writable.</exception>
    public ControlSocket(string path, Action<Utf8JsonWriter> writeStatus)
    {
        _path = path;
        _writeStatus = writeStatus;
        Directory.CreateDirectory(Path.GetDirectoryName(path)!, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        if (IsAnswered(path))
        {
            throw new IOException($"another xenloopd answers on {path}; stop it first (systemctl stop xenloopd)");
        }

        File.Delete(path);
        _socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        _socket.Bind(new UnixDomainSocketEndPoint(path));
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        _socket.Listen(8);
        _socket.Blocking = false;
    }

    public int FileDescriptor => (int)_socket.SafeHandle.DangerousGetHandle();

    /// <summary>Answers one client. Call when the descriptor is readable.</summary>
    public void Serve()
    {
        try
        {
            using Socket client = _socket.Accept();
            client.Blocking = true;
            client.ReceiveTimeout = ClientTimeoutMilliseconds;
            client.SendTimeout = ClientTimeoutMilliseconds;
            byte[] request = new byte[256];
            int length = client.Receive(request);
            client.Send(Answer(Encoding.ASCII.GetString(request, 0, length).Trim()));
        }
        catch (SocketException)
        {
            // The client went away or dawdled: its loss.
        }
    }

    public void Dispose()
    {
        _socket.Dispose();
        File.Delete(_path);
    }

    private ReadOnlySpan<byte> Answer(string request)
    {
        ArrayBufferWriter<byte> buffer = new(4096);
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true }))
        {
            json.WriteStartObject();
            if (request == "status")
            {
                _writeStatus(json);
            }
            else
            {
                json.WriteString("error", $"unknown request \"{request}\"; known: status");
            }

            json.WriteEndObject();
        }

        return buffer.WrittenSpan;
    }

    private static bool IsAnswered(string path)
    {
        try
        {
            using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            probe.Connect(new UnixDomainSocketEndPoint(path));
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }
}
