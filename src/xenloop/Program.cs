using System.CommandLine;
using System.Net.Sockets;
using System.Text;
using XenLoop.Control;

namespace XenLoop.Command;

/// <summary>The operator's command.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        RootCommand root = new("Ask and steer xenloopd, the daemon that lets Xen guests exchange packets through shared memory.");
        root.Subcommands.Add(Status());
        return root.Parse(args).Invoke();
    }

    private static System.CommandLine.Command Status()
    {
        Option<string> socket = new("--socket")
        {
            Description = "The daemon's control socket.",
            DefaultValueFactory = _ => Environment.GetEnvironmentVariable("XENLOOP_CONTROL") ?? ControlSocket.DefaultPath,
        };
        System.CommandLine.Command command = new("status", "Print what the daemon of this domain is doing, as JSON.") { socket };
        command.SetAction(result =>
        {
            string path = result.GetValue(socket)!;
            try
            {
                Console.Write(Ask(path, "status"));
                Console.WriteLine();
                return 0;
            }
            catch (SocketException e)
            {
                Console.Error.WriteLine($"xenloop: no daemon answers on {path} ({e.SocketErrorCode}). Is it running (systemctl status xenloopd), and are you root?");
                return 1;
            }
        });
        return command;
    }

    private static string Ask(string path, string request)
    {
        using Socket socket = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        socket.Connect(new UnixDomainSocketEndPoint(path));
        socket.Send(Encoding.ASCII.GetBytes(request + "\n"));
        using NetworkStream stream = new(socket);
        using StreamReader reader = new(stream, Encoding.UTF8);
        return reader.ReadToEnd();
    }
}
