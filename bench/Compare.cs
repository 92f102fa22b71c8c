using System.Globalization;
using System.Text;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>One side-by-side run: two guests, first over netfront, then, with the daemons started, over XenLoop.</summary>
internal static class Compare
{
    public static async Task RunAsync(GuestKind kind, Measurement[] set, string daemonArguments, StringBuilder table)
    {
        Print(table, $"\n{kind.ToString().ToUpperInvariant()} guests, one vCPU each, one shared CPU\n\n| | netfront | XenLoop | ratio |\n|---|---|---|---|");
        await using XenHost host = await XenHost.StartAsync(new XenHostOptions { Timing = RigTiming.Exact });
        XenGuest client = await host.CreateGuestAsync(new GuestOptions { Name = "client", Kind = kind });
        XenGuest server = await host.CreateGuestAsync(new GuestOptions { Name = "server", Kind = kind });
        XenLoopDaemon[] daemons = [await XenLoopDaemon.InstallAsync(host), await XenLoopDaemon.InstallAsync(client), await XenLoopDaemon.InstallAsync(server)];
        (await server.RunAsync(Measurements.StartServers)).Check();

        double[] netfront = await MeasureAsync(set, client, server);
        await daemons[0].StartAsync();
        await daemons[1].StartAsync(daemonArguments);
        await daemons[2].StartAsync(daemonArguments);
        await daemons[1].WaitForAsync(server.Domid, "running");
        await daemons[2].WaitForAsync(client.Domid, "running");
        double[] xenloop = await MeasureAsync(set, client, server);
        for (int i = 0; i < set.Length; i++)
        {
            Print(table, string.Create(CultureInfo.InvariantCulture,
                $"| {set[i].Name}, {set[i].Unit} | {netfront[i]:0.##} | {xenloop[i]:0.##} | {(netfront[i] == 0 ? "-" : (xenloop[i] / netfront[i]).ToString("0.00x", CultureInfo.InvariantCulture))} |"));
        }

        foreach ((string name, XenLoopDaemon daemon) in new[] { ("client", daemons[1]), ("server", daemons[2]) })
        {
            Console.WriteLine($"\n{name}'s daemon:\n{await daemon.StatusAsync()}\n{await daemon.LogAsync()}");
        }
    }

    private static async Task<double[]> MeasureAsync(Measurement[] set, XenGuest client, XenGuest server)
    {
        double[] figures = new double[set.Length];
        for (int i = 0; i < set.Length; i++)
        {
            figures[i] = await set[i].RunAsync(client, server);
        }

        return figures;
    }

    private static void Print(StringBuilder table, string line)
    {
        Console.WriteLine(line);
        table.AppendLine(line);
    }
}
