using System.Globalization;
using System.Text;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>One side-by-side run: the same two guests, first over netfront, then, with the daemons started, over XenLoop.</summary>
internal static class Compare
{
    public static async Task RunAsync(GuestKind kind, Measurement[] set, string daemonArguments, StringBuilder table)
    {
        await using Pair pair = await Pair.StartAsync(kind);
        double[] netfront = await pair.MeasureAsync(set);
        await pair.StartDaemonsAsync(daemonArguments);
        double[] xenloop = await pair.MeasureAsync(set);

        Print(table, $"\n{kind.ToString().ToUpperInvariant()} guests, one vCPU each; one CPU for the whole host\n\n| | netfront | XenLoop | ratio |\n|---|---|---|---|");
        for (int i = 0; i < set.Length; i++)
        {
            // A loss of 0 % has no ratio.
            string ratio = netfront[i] == 0 ? "-" : string.Create(CultureInfo.InvariantCulture, $"{xenloop[i] / netfront[i]:0.00}x");
            Print(table, string.Create(CultureInfo.InvariantCulture, $"| {set[i].Name}, {set[i].Unit} | {netfront[i]:0.##} | {xenloop[i]:0.##} | {ratio} |"));
        }

        foreach ((string name, XenLoopDaemon daemon) in new[] { ("client", pair.ClientDaemon), ("server", pair.ServerDaemon) })
        {
            Console.WriteLine($"\n{name}'s daemon: {await daemon.StatusAsync()}\n{await daemon.LogAsync()}");
        }
    }

    private static void Print(StringBuilder table, string line)
    {
        Console.WriteLine(line);
        table.AppendLine(line);
    }
}
