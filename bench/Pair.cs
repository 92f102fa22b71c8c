using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>A host whose clock counts instructions, with two guests, the programs installed, and the servers running.</summary>
internal sealed class Pair : IAsyncDisposable
{
    private readonly XenHost _host;
    private readonly XenLoopDaemon _dom0Daemon;

    private Pair(XenHost host, XenGuest client, XenGuest server, XenLoopDaemon dom0Daemon, XenLoopDaemon clientDaemon, XenLoopDaemon serverDaemon) =>
        (_host, Client, Server, _dom0Daemon, ClientDaemon, ServerDaemon) = (host, client, server, dom0Daemon, clientDaemon, serverDaemon);

    public XenGuest Client { get; }

    public XenGuest Server { get; }

    public XenLoopDaemon ClientDaemon { get; }

    public XenLoopDaemon ServerDaemon { get; }

    public static async Task<Pair> StartAsync(GuestKind kind)
    {
        XenHost host = await XenHost.StartAsync(new XenHostOptions { Timing = RigTiming.Exact });
        try
        {
            XenGuest client = await host.CreateGuestAsync(new GuestOptions { Name = "client", Kind = kind });
            XenGuest server = await host.CreateGuestAsync(new GuestOptions { Name = "server", Kind = kind });
            (await server.RunAsync(Measurements.StartServers)).Check();
            return new Pair(host, client, server, await XenLoopDaemon.InstallAsync(host), await XenLoopDaemon.InstallAsync(client), await XenLoopDaemon.InstallAsync(server));
        }
        catch
        {
            await host.DisposeAsync();
            throw;
        }
    }

    /// <summary>Starts the daemons in Dom0 and the guests; returns when both guests divert.</summary>
    public async Task StartDaemonsAsync(string arguments = "")
    {
        await _dom0Daemon.StartAsync();
        await ClientDaemon.StartAsync(arguments);
        await ServerDaemon.StartAsync(arguments);
        await ClientDaemon.WaitForAsync(Server.Domid, "running", pinging: Server.Ipv4);
        await ServerDaemon.WaitForAsync(Client.Domid, "running");
    }

    public async Task<double[]> MeasureAsync(Measurement[] set)
    {
        double[] figures = new double[set.Length];
        for (int i = 0; i < set.Length; i++)
        {
            figures[i] = await set[i].RunAsync(Client, Server);
        }

        return figures;
    }

    public ValueTask DisposeAsync() => _host.DisposeAsync();
}
