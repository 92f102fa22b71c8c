using System.CommandLine;
using System.Net.Sockets;
using System.Text.Json;
using XenLoop.Interop;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Command;

/// <summary>The operator's command.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        RootCommand root = new("Ask and steer xenloopd, the daemon that lets Xen guests exchange packets through shared memory.");
        root.Subcommands.Add(Status());
        root.Subcommands.Add(Reload());
        root.Subcommands.Add(CheckConfig());
        root.Subcommands.Add(Quiesce());
        root.Subcommands.Add(Resume());
        return root.Parse(args).Invoke();
    }

    private static System.CommandLine.Command Status() =>
        Request("status", "Print what the daemon of this domain is doing, as JSON.", answer =>
        {
            Console.WriteLine(answer);
            return 0;
        });

    private static System.CommandLine.Command Reload() =>
        Request("reload", "Have the daemon of this domain read its configuration file again.", answer =>
        {
            using JsonDocument json = JsonDocument.Parse(answer);
            if (json.RootElement.TryGetProperty("error", out JsonElement error))
            {
                Console.Error.WriteLine($"xenloop: {error.GetString()}");
                return 1;
            }

            Console.WriteLine($"reloaded: {json.RootElement.GetProperty("reloaded").GetString() ?? NoFile}");
            return 0;
        });

    private static System.CommandLine.Command CheckConfig()
    {
        Argument<string?> file = new("FILE")
        {
            Description = $"The file, {Configuration.DefaultPath} by default.",
            Arity = ArgumentArity.ZeroOrOne,
        };
        System.CommandLine.Command command = new("check-config", "Check a configuration file before it is put in force.") { file };
        command.SetAction(result =>
        {
            try
            {
                string? path = result.GetValue(file);
                Configuration configuration = path is null ? Configuration.LoadOrDefaults(Configuration.DefaultPath) : Configuration.Load(path);
                Console.WriteLine(configuration.Path is null ? NoFile : $"{configuration.Path}: nothing wrong");
                return 0;
            }
            catch (ConfigurationException e)
            {
                Console.Error.WriteLine($"xenloop: {e.Message}");
                return 1;
            }
        });
        return command;
    }

    private static string NoFile => $"there is no {Configuration.DefaultPath}; the defaults apply";

    private static System.CommandLine.Command Quiesce()
    {
        Argument<string> domain = new("DOMAIN") { Description = "Domid, name or UUID." };
        Option<int> holder = new("--holder")
        {
            Description = "The process that suspends the domain: when it ends, channels come back by themselves. Without it: by \"xenloop resume\".",
        };
        Option<double> timeout = new("--timeout") { Description = "Seconds to wait for the guest.", DefaultValueFactory = _ => 5 };
        System.CommandLine.Command command = Request("quiesce", "In Dom0: have a guest close its channels, before it is saved or migrated.", (result, socket) =>
            Suspend.Quiesce(socket, result.GetValue(domain)!, result.GetValue(holder), TimeSpan.FromSeconds(result.GetValue(timeout))));
        command.Arguments.Add(domain);
        command.Options.Add(holder);
        command.Options.Add(timeout);
        return command;
    }

    private static System.CommandLine.Command Resume()
    {
        Argument<string> domain = new("DOMAIN") { Description = "Domid, name or UUID." };
        System.CommandLine.Command command = Request("resume", "In Dom0: let a guest that was quiesced have channels again.", (result, socket) =>
            Suspend.Resume(socket, result.GetValue(domain)!));
        command.Arguments.Add(domain);
        return command;
    }

    private static System.CommandLine.Command Request(string name, string description, Func<string, int> take) =>
        Request(name, description, (_, socket) => take(ControlClient.Ask(socket, name)));

    /// <summary>A command that asks the daemon.</summary>
    /// <param name="name">Of the command.</param>
    /// <param name="description">For the help.</param>
    /// <param name="run">Gets the command line and the daemon's socket, and gives the exit code.</param>
    private static System.CommandLine.Command Request(string name, string description, Func<ParseResult, string, int> run)
    {
        Option<string> socket = new("--socket")
        {
            Description = "The daemon's control socket; whoever listens there must be root.",
            DefaultValueFactory = _ => ControlSocket.DefaultPath,
        };
        System.CommandLine.Command command = new(name, description) { socket };
        command.SetAction(result =>
        {
            string path = result.GetValue(socket)!;
            try
            {
                return run(result, path);
            }
            catch (SocketException e)
            {
                Console.Error.WriteLine($"xenloop: no daemon answers on {path} ({e.SocketErrorCode}). Is it running (systemctl status xenloopd), and are you root?");
            }
            catch (Exception e) when (e is IOException or JsonException)
            {
                Console.Error.WriteLine($"xenloop: the daemon on {path} did not answer well: {e.Message}. Ask again; its log says more (journalctl -u xenloopd).");
            }
            catch (NativeException e)
            {
                Console.Error.WriteLine($"xenloop: {e.Message}");
            }

            return 1;
        });
        return command;
    }
}
