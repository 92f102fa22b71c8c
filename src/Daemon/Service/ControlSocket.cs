using System.Buffers;
using System.Net.Sockets;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace XenLoop.Service;

/// <summary>Answers a request of the control socket: writes the members of the answer's object.</summary>
/// <param name="json">Inside the object.</param>
/// <param name="arguments">As many as the request's usage names.</param>
internal delegate void ControlHandler(Utf8JsonWriter json, ReadOnlySpan<string> arguments);

/// <summary>
/// The socket on which the operator's command asks: one request line, one JSON answer, end of stream.
/// Only root can reach it. Every wait is bounded, so a client that says nothing cannot hold the daemon.
/// </summary>
internal sealed class ControlSocket : IDisposable
{
    /// <summary>Where the operator's command asks. Whoever starts that, or what starts it, gets no say in this by the environment.</summary>
    public const string DefaultPath = "/run/xenloop/control.sock";

    /// <summary>The daemon's own: in the runtime directory that the service manager (or the lab) gave, else <see cref="DefaultPath"/>.</summary>
    public static string ServicePath =>
        Environment.GetEnvironmentVariable("RUNTIME_DIRECTORY") is { Length: > 0 } directory ? Path.Combine(directory, "control.sock") : DefaultPath;

    private const int ClientTimeoutMilliseconds = 200;
    private const int ProbeTimeoutMilliseconds = 2000;

    private readonly string _path;
    private readonly Socket _socket;
    private readonly Dictionary<string, (string Usage, int Arguments, ControlHandler Handler)> _requests = [];

    /// <exception cref="IOException">The path cannot be listened on: another daemon runs, or the directory is not writable.</exception>
    public ControlSocket(string path)
    {
        _path = path;
        Directory.CreateDirectory(Path.GetDirectoryName(path)!, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        ThrowIfAnswered(path);
        File.Delete(path);
        _socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        _socket.Bind(new UnixDomainSocketEndPoint(path));
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
        _socket.Listen(8);
        _socket.Blocking = false;
    }

    public int FileDescriptor => (int)_socket.SafeHandle.DangerousGetHandle();

    /// <exception cref="IOException">A daemon answers on <paramref name="path"/>.</exception>
    public static void ThrowIfAnswered(string path)
    {
        try
        {
            using Socket probe = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            probe.Connect(new UnixDomainSocketEndPoint(path));
            probe.ReceiveTimeout = ProbeTimeoutMilliseconds;
            probe.Send("status\n"u8);
            // A daemon that was just killed holds the socket until all its memory is gone, and answers nothing.
            if (probe.Receive(new byte[1]) == 0)
            {
                return;
            }
        }
        catch (SocketException e) when (e.SocketErrorCode is not (SocketError.WouldBlock or SocketError.TimedOut))
        {
            return;
        }
        catch (SocketException)
        {
            // It is stopped, or hangs.
        }

        throw new IOException($"another xenloopd answers on {path}; stop it first (systemctl stop xenloopd)");
    }

    /// <summary>Makes a request known. Before the first <see cref="Serve"/>.</summary>
    /// <param name="usage">The request and a word for each argument it takes, as "quiesce DOMAIN".</param>
    /// <param name="handler">Runs inside <see cref="Serve"/>.</param>
    public void Register(string usage, ControlHandler handler)
    {
        string[] words = usage.Split(' ');
        _requests.Add(words[0], (usage, words.Length - 1, handler));
    }

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
            client.Send(Answer(request.AsSpan(0, length)));
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

    /// <summary>What is sent to who said so.</summary>
    internal ReadOnlySpan<byte> Answer(ReadOnlySpan<byte> line)
    {
        string request = Encoding.ASCII.GetString(line).Trim();
        ArrayBufferWriter<byte> buffer = new(4096);
        // For a terminal and for programs, never for a page of HTML: a plus sign stays one.
        using (Utf8JsonWriter json = new(buffer, new JsonWriterOptions { Indented = true, Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            string[] words = request.Split(' ', StringSplitOptions.RemoveEmptyEntries);
            if (words.Length > 0 && _requests.TryGetValue(words[0], out var known) && known.Arguments == words.Length - 1)
            {
                known.Handler(json, words.AsSpan(1));
            }
            else
            {
                json.WriteString("error", $"unknown request \"{request}\"; known: {string.Join(", ", _requests.Values.Select(r => r.Usage))}");
            }

            json.WriteEndObject();
        }

        return buffer.WrittenSpan;
    }
}
