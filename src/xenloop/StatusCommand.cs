using System.CommandLine;
using System.Diagnostics;
using System.Text.Json;

namespace XenLoop.Command;

/// <summary>"xenloop status" and "xenloop top": what the daemon of this domain is doing, for people and for programs.</summary>
internal static class StatusCommand
{
    // Long enough for a rate that means something, short enough not to be waited for.
    private const int SampleMilliseconds = 300;

    public static System.CommandLine.Command Create()
    {
        Option<bool> json = new("--json") { Description = "As JSON, for programs: xenloop(1) has its members." };
        Option<bool> all = new("--all") { Description = "In Dom0: all pairs of guests that do not meet, however many." };
        System.CommandLine.Command command = Request.Create("status", "Show what the daemon of this domain is doing: by which way packets go, and why.", (result, daemon) =>
        {
            if (result.GetValue(json))
            {
                Console.WriteLine(daemon.AskText("status"));
                return ExitCode.Fine;
            }

            Console.Write(Look(daemon, result.GetValue(all), SampleMilliseconds));
            return ExitCode.Fine;
        });
        command.Options.Add(json);
        command.Options.Add(all);
        return command;
    }

    public static System.CommandLine.Command CreateTop()
    {
        Option<double> interval = NumberOption.Create("--interval", "SECONDS", "Between two looks, 0.1 to 3600.", 0.1, 3600, 1.0);
        Option<int> count = NumberOption.Create("--count", "N", "Ends after so many looks; by default it goes on until Ctrl-C.", 1, int.MaxValue);
        System.CommandLine.Command command = Request.Create("top", "Show the same as \"status\", live.", (result, daemon) =>
        {
            int pause = (int)(1000 * result.GetValue(interval));
            for (int look = 0; result.GetValue(count) == 0 || look < result.GetValue(count); look++)
            {
                long began = Stopwatch.GetTimestamp();
                string text = Look(daemon, all: false, pause);
                // A screen is written over, not cleared before: that would flicker.
                Console.Write(Console.IsOutputRedirected ? text + "\n" : $"\e[H{text.Replace("\n", "\e[K\n", StringComparison.Ordinal)}\e[J");
                Console.Out.Flush();
                // Of a guest the look itself has taken so long.
                Thread.Sleep(Math.Max(0, pause - (int)Stopwatch.GetElapsedTime(began).TotalMilliseconds));
            }

            return ExitCode.Fine;
        });
        command.Options.Add(interval);
        command.Options.Add(count);
        return command;
    }

    /// <summary>The table; in a guest with the rates of the time that this takes.</summary>
    public static string Look(DaemonLink daemon, bool all, int milliseconds)
    {
        JsonElement before = daemon.Ask("status");
        if (before.Text("role") != "guest")
        {
            // Dom0 carries no packets.
            return Dom0View.Draw(before, AddressBook.Read(), all, Terminal.HasColours);
        }

        Stopwatch watch = Stopwatch.StartNew();
        Thread.Sleep(milliseconds);
        JsonElement status = daemon.Ask("status");
        return GuestView.Draw(status, before, watch.Elapsed.TotalSeconds, AddressBook.Read(), Terminal.HasColours);
    }
}
