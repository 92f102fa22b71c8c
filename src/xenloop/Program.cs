using System.CommandLine;
using System.CommandLine.Invocation;
using System.Text.Json;
using XenLoop.Interop;
using XenLoop.Settings;

namespace XenLoop.Command;

/// <summary>The operator's command.</summary>
internal static class Program
{
    private static int Main(string[] args)
    {
        Output.Use();
        try
        {
            ParseResult result = Root().Parse(args);
            if (result.Action is ParseErrorAction mistake && args.Length > 0)
            {
                // The message is what matters, not all there is.
                mistake.ShowHelp = false;
            }

            int code = result.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
            Console.Out.Flush();
            if (result.Errors.Count == 0)
            {
                return code;
            }

            System.CommandLine.Command command = result.CommandResult.Command;
            Complain(command is RootCommand ? "\"xenloop --help\" has the commands" : $"\"xenloop {command.Name} --help\" has what it takes");
            return ExitCode.Usage;
        }
        catch (OutputException e)
        {
            if (!e.IsReaderGone)
            {
                Complain(e.Message);
            }

            return ExitCode.Output;
        }
        catch (CommandException e)
        {
            Complain(e.Message);
            return e.Code;
        }
        catch (Exception e) when (e is NativeException or IOException or UnauthorizedAccessException)
        {
            Complain(e.Message);
            return ExitCode.Failed;
        }
    }

    /// <summary>All there is.</summary>
    public static RootCommand Root()
    {
        RootCommand root = new("Ask and steer xenloopd, the daemon that lets Xen guests exchange packets through shared memory.")
        {
            StatusCommand.Create(),
            StatusCommand.CreateTop(),
            Doctor.Create(),
            PeerCommands.CreatePing(),
            PeerCommands.CreateDisable(),
            PeerCommands.CreateEnable(),
            Reload(),
            CheckConfig(),
            Quiesce(),
            Resume(),
            Metrics.Create(),
            BugReport.Create(),
        };
        return root;
    }

    private static System.CommandLine.Command Reload()
    {
        Option<bool> dryRun = new("--dry-run") { Description = "Only show what would change." };
        System.CommandLine.Command command = Request.Create("reload", "Have the daemon of this domain read its configuration file again.", (result, daemon) =>
        {
            if (!result.GetValue(dryRun))
            {
                Console.WriteLine($"reloaded: {daemon.Ask("reload").GetProperty("reloaded").GetString() ?? NoFile}");
                return ExitCode.Fine;
            }

            JsonElement status = daemon.Ask("status");
            Configuration configuration = Load(status.Text("configuration"));
            string[] changes = [.. DryRun.Changes(status, configuration)];
            Console.WriteLine($"{configuration.Path ?? NoFile}: {(changes.Length == 0 ? "nothing would change" : "this would change:")}");
            foreach (string change in changes)
            {
                Console.WriteLine($"  {Table.Plain(change)}");
            }

            return ExitCode.Fine;
        });
        command.Options.Add(dryRun);
        return command;
    }

    /// <exception cref="CommandException">Something in it is wrong.</exception>
    private static Configuration Load(string? path)
    {
        try
        {
            return path is null ? Configuration.LoadOrDefaults(Configuration.DefaultPath) : Configuration.Load(path);
        }
        catch (ConfigurationException e)
        {
            throw new CommandException(ExitCode.Failed, e.Message);
        }
    }

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
            Configuration configuration = Load(result.GetValue(file));
            Console.WriteLine(configuration.Path is null ? NoFile : $"{configuration.Path}: nothing wrong");
            return ExitCode.Fine;
        });
        return command;
    }

    private static string NoFile => $"there is no {Configuration.DefaultPath}; the defaults apply";

    private static System.CommandLine.Command Quiesce()
    {
        Argument<string> domain = new("DOMAIN") { Description = "Domid, name or UUID." };
        Option<int> holder = NumberOption.Create("--holder", "PID",
            "The process that suspends the domain: when it ends, channels come back by themselves. Without it: by \"xenloop resume\".", 1, int.MaxValue);
        Option<double> timeout = NumberOption.Create("--timeout", "SECONDS", "To wait for the guest, 3600 at most.", 0.0, 3600, 5.0);
        System.CommandLine.Command command = Request.Create("quiesce", "In Dom0: have a guest close its channels, before it is saved or migrated.", (result, daemon) =>
            Suspend.Quiesce(daemon.Socket, result.GetValue(domain)!, result.GetValue(holder), TimeSpan.FromSeconds(result.GetValue(timeout))));
        command.Arguments.Add(domain);
        command.Options.Add(holder);
        command.Options.Add(timeout);
        return command;
    }

    private static System.CommandLine.Command Resume()
    {
        Argument<string> domain = new("DOMAIN") { Description = "Domid, name or UUID." };
        System.CommandLine.Command command = Request.Create("resume", "In Dom0: let a guest that was quiesced have channels again.", (result, daemon) =>
            Suspend.Resume(daemon, result.GetValue(domain)!));
        command.Arguments.Add(domain);
        return command;
    }

    private static void Complain(string message)
    {
        try
        {
            Console.Error.WriteLine($"xenloop: {message}");
        }
        catch (IOException)
        {
            // Nobody is left to tell.
        }
    }
}
