using System.CommandLine;
using XenLoop.Service;

namespace XenLoop.Command;

/// <summary>Makes commands that ask the daemon.</summary>
internal static class Request
{
    /// <summary>One of them, which can be told where the daemon answers.</summary>
    /// <param name="name">Of the command.</param>
    /// <param name="description">For the help.</param>
    /// <param name="run">Gets the command line and the daemon, and gives the exit code.</param>
    public static System.CommandLine.Command Create(string name, string description, Func<ParseResult, DaemonLink, int> run)
    {
        Option<string> socket = new("--socket")
        {
            HelpName = "PATH",
            Description = "The daemon's control socket; whoever listens there must be root.",
            DefaultValueFactory = _ => ControlSocket.DefaultPath,
        };
        System.CommandLine.Command command = new(name, description) { socket };
        command.SetAction(result => run(result, new DaemonLink(result.GetValue(socket)!)));
        return command;
    }
}
