using System.Net.Sockets;
using System.Text.Json;
using XenLoop.Service;

namespace XenLoop.Command;

/// <summary>Asks this domain's daemon; where it does not answer, finds out why.</summary>
/// <param name="socket">Its control socket.</param>
internal sealed class DaemonLink(string socket)
{
    private const string Start = "Start it: systemctl start xenloopd (its log: journalctl -u xenloopd)";

    public string Socket => socket;

    /// <summary>The answer as the daemon wrote it.</summary>
    /// <exception cref="CommandException">There is none, with the reason.</exception>
    public string AskText(string request)
    {
        try
        {
            return ControlClient.Ask(socket, request);
        }
        catch (SocketException e)
        {
            throw NoAnswer(e.SocketErrorCode);
        }
        catch (IOException e)
        {
            throw new CommandException(ExitCode.NoDaemon, $"the daemon on {socket} did not answer well: {e.Message}. Ask again; its log says more (journalctl -u xenloopd)");
        }
    }

    /// <summary>The answer, if it is no refusal.</summary>
    /// <exception cref="CommandException">There is none, or it is one.</exception>
    public JsonElement Ask(string request)
    {
        JsonElement answer;
        try
        {
            answer = JsonDocument.Parse(AskText(request)).RootElement;
        }
        catch (JsonException e)
        {
            throw new CommandException(ExitCode.NoDaemon, $"what answers on {socket} is no xenloopd, or broke off: {e.Message}");
        }

        if (answer.ValueKind != JsonValueKind.Object)
        {
            throw new CommandException(ExitCode.NoDaemon, $"what answers on {socket} is no xenloopd");
        }

        return answer.TryGetProperty("error", out JsonElement error)
            ? throw new CommandException(ExitCode.Refused, Refusal(request, error.GetString() ?? ""))
            : answer;
    }

    /// <summary>What keeps the daemon from answering, as far as can be told from here.</summary>
    private CommandException NoAnswer(SocketError error)
    {
        string none = $"no daemon answers on {socket}";
        if (error == SocketError.AccessDenied)
        {
            return Environment.IsPrivilegedProcess
                ? new(ExitCode.NotPermitted, $"{none}: access is denied, though this is root; something confines this process (SELinux, AppArmor)")
                : new(ExitCode.NotPermitted, $"only root may ask the daemon: run it as root (sudo xenloop)");
        }

        // Who is not root cannot know more: the folder is root's.
        if (!Environment.IsPrivilegedProcess)
        {
            return new(ExitCode.NotPermitted, $"{none}, or only root sees it: run it as root (sudo xenloop)");
        }

        if (error is SocketError.TimedOut or SocketError.WouldBlock)
        {
            return new(ExitCode.NoDaemon, $"the daemon on {socket} is there and does not answer: it is stopped, or hangs. Start it anew: systemctl restart xenloopd (its log: journalctl -u xenloopd)");
        }

        string gone = error == SocketError.ConnectionRefused ? "it was killed" : "xenloopd is not running";
        return new(ExitCode.NoDaemon, Machine.IsXenDomain
            ? $"{none}: {gone}. {Start}"
            : $"{none}: {gone}, and this machine is no Xen domain, where it would have nothing to do. In a guest and in Dom0: systemctl start xenloopd");
    }

    private static string Refusal(string request, string error) =>
        // A daemon of another role, or of another version.
        error.StartsWith("unknown request", StringComparison.Ordinal)
            ? $"this domain's daemon knows no \"{request.Split(' ')[0]}\": it is for the other kind of domain (guests, Dom0), or the daemon is older than this command; systemctl restart xenloopd starts the one that is installed"
            : error;
}
