using System.CommandLine;
using System.Net.Sockets;
using XenLoop.Control;
using XenLoop.Lab;

namespace XenLoop.Command;

/// <summary>The operator's command.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        RootCommand root = new("Ask and steer xenloopd, the daemon that lets Xen guests exchange packets through shared memory.");
        root.Subcommands.Add(Status());
        root.Subcommands.Add(LabCommand());
        return root.Parse(args).Invoke();
    }

    private static System.CommandLine.Command Status()
    {
        Option<string> socket = new("--socket")
        {
            Description = "The daemon's control socket.",
            DefaultValueFactory = _ => ControlSocket.DefaultPath,
        };
        System.CommandLine.Command command = new("status", "Print what the daemon of this domain is doing, as JSON.") { socket };
        command.SetAction(result =>
        {
            string path = result.GetValue(socket)!;
            try
            {
                Console.Write(ControlClient.Ask(path, "status"));
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

    private static System.CommandLine.Command LabCommand()
    {
        Option<string> daemon = new("--daemon")
        {
            Description = "The xenloopd to run.",
            DefaultValueFactory = _ => "/usr/sbin/xenloopd",
        };
        System.CommandLine.Command demo = new("demo", "Show two guests' traffic move to shared memory and back.") { daemon };
        demo.SetAction(async (result, _) =>
        {
            string binary = Path.GetFullPath(result.GetValue(daemon)!);
            if (!File.Exists(binary))
            {
                Console.Error.WriteLine($"xenloop: there is no {binary}; name the daemon with --daemon.");
                return 1;
            }

            try
            {
                return await Demo.RunAsync(binary, Console.Out);
            }
            catch (InvalidOperationException e)
            {
                Console.Error.WriteLine($"xenloop: {e.Message}");
                return 1;
            }
        });
        return new("lab", "A Xen host in one process tree, without Xen: for trying and testing.") { demo };
    }
}
