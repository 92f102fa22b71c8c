using System.CommandLine;
using System.Net;
using System.Text.Json;

namespace XenLoop.Command;

/// <summary>"disable", "enable" and "ping": what an operator does with one peer of a guest.</summary>
internal static class PeerCommands
{
    // Longer than any ping takes; whoever kills the command leaves the peer on netfront for no longer.
    private const int HoldSeconds = 60;
    private const int WaitMilliseconds = 5000;
    private const int PollMilliseconds = 50;

    public static System.CommandLine.Command CreateDisable()
    {
        Option<int> seconds = NumberOption.Create("--seconds", "N", "For so long; by default until \"xenloop enable\", or until the daemon is started again.", 0, int.MaxValue);
        Argument<string> peer = Peer();
        System.CommandLine.Command command = Request.Create("disable", "In a guest: keep a peer on netfront.", (result, daemon) =>
        {
            JsonElement answer = daemon.Ask($"disable {result.GetValue(peer)} {result.GetValue(seconds)}");
            Console.WriteLine($"disabled: {Macs(answer, "disabled")}");
            return ExitCode.Fine;
        });
        command.Arguments.Add(peer);
        command.Options.Add(seconds);
        return command;
    }

    public static System.CommandLine.Command CreateEnable()
    {
        Argument<string> peer = Peer();
        System.CommandLine.Command command = Request.Create("enable", "In a guest: let a peer that was disabled have channels again.", (result, daemon) =>
        {
            Console.WriteLine($"enabled: {Macs(daemon.Ask($"enable {result.GetValue(peer)}"), "enabled")}");
            return ExitCode.Fine;
        });
        command.Arguments.Add(peer);
        return command;
    }

    public static System.CommandLine.Command CreatePing()
    {
        Argument<string> peer = Peer();
        Option<int> count = NumberOption.Create("--count", "N", "Round trips by each way, 1 to 1000.", 1, 1000, 10);
        Option<string?> address = new("--address") { HelpName = "IP", Description = "The peer's IP address, where the neighbour table does not know it." };
        System.CommandLine.Command command = Request.Create("ping", "In a guest: measure round trips to a peer by its channel and by netfront, side by side.", (result, daemon) =>
            Ping(daemon, result.GetValue(peer)!, result.GetValue(address), result.GetValue(count)));
        command.Arguments.Add(peer);
        command.Options.Add(count);
        command.Options.Add(address);
        return command;
    }

    private static Argument<string> Peer() => new("PEER") { Description = "Its domid or MAC address, as \"xenloop status\" shows them." };

    private static string Macs(JsonElement answer, string name) => string.Join(", ", answer.Items(name).Select(m => m.GetString()));

    private static int Ping(DaemonLink daemon, string peer, string? given, int count)
    {
        (JsonElement status, JsonElement vif, JsonElement found) = Find(daemon, peer);
        string mac = found.Text("mac") ?? "";
        IPAddress? address = given is null ? AddressBook.Read().Address(mac) : IPAddress.TryParse(given, out IPAddress? parsed) ? parsed : null;
        if (address is null)
        {
            throw new CommandException(ExitCode.Failed, given is null
                ? $"the neighbour table knows no IP address of {mac}; name it with --address"
                : $"\"{given}\" is no IP address");
        }

        if (found.Flag("disabled"))
        {
            throw new CommandException(ExitCode.Refused, $"{mac} is disabled; \"xenloop enable {peer}\" ends that");
        }

        Table table = new("PATH", "SENT", "LOST", "MIN", "MEDIAN", "MAX");
        using (Pinger pinger = new(address))
        {
            // Without traffic there is no channel.
            bool up = Await(daemon, peer, GuestView.IsShared, () => pinger.RoundTrip());
            if (up)
            {
                Add(table, "shared memory", pinger.RoundTrips(count));
            }
            else
            {
                (status, vif, found) = Find(daemon, peer);
                Console.WriteLine($"There is no channel to {mac}: {Table.Plain(GuestView.Why(status, vif, found))}");
            }

            // The other side would answer by the channel, were only this one to leave it: so it is closed.
            daemon.Ask($"disable {mac} {HoldSeconds}");
            try
            {
                if (!Await(daemon, peer, p => p.Text("state") is "idle" or "waiting", () => null))
                {
                    throw new CommandException(ExitCode.Failed, $"the channel to {mac} has not closed within {WaitMilliseconds / 1000} s");
                }

                Add(table, "netfront", pinger.RoundTrips(count));
            }
            finally
            {
                daemon.Ask($"enable {mac}");
            }
        }

        Console.Write(table.Draw("", Terminal.HasColours));
        return ExitCode.Fine;
    }

    private static void Add(Table table, string path, List<double?> times)
    {
        double[] answered = [.. times.OfType<double>().Order()];
        table.Add(
            path,
            $"{times.Count}",
            $"{times.Count - answered.Length}",
            answered.Length > 0 ? Micros(answered[0]) : "",
            answered.Length > 0 ? Micros(answered[answered.Length / 2]) : "",
            answered.Length > 0 ? Micros(answered[^1]) : "");
    }

    private static string Micros(double seconds) => $"{Quantity.Short(seconds * 1e6)} us";

    private static bool Await(DaemonLink daemon, string peer, Func<JsonElement, bool> holds, Func<double?> meanwhile)
    {
        for (int waited = 0; waited < WaitMilliseconds; waited += PollMilliseconds)
        {
            if (holds(Find(daemon, peer).Peer))
            {
                return true;
            }

            meanwhile();
            Thread.Sleep(PollMilliseconds);
        }

        return false;
    }

    private static (JsonElement Status, JsonElement Vif, JsonElement Peer) Find(DaemonLink daemon, string peer)
    {
        JsonElement status = daemon.Ask("status");
        if (status.Text("role") != "guest")
        {
            throw new CommandException(ExitCode.Refused, "this is no guest: Dom0 has no channels");
        }

        foreach (JsonElement vif in status.Items("vifs"))
        {
            foreach (JsonElement known in vif.Items("peers"))
            {
                if ($"{known.Whole("domid")}" == peer || string.Equals(known.Text("mac"), peer, StringComparison.OrdinalIgnoreCase))
                {
                    return (status, vif, known);
                }
            }
        }

        throw new CommandException(ExitCode.Failed, $"Dom0 has introduced no peer \"{peer}\"; \"xenloop status\" shows those there are");
    }
}
