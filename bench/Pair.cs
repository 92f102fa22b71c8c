using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>A host whose clock counts instructions, with two guests, the programs installed, and the servers running.</summary>
internal sealed class Pair : IAsyncDisposable
{
    private readonly XenLoopDaemon _dom0Daemon;
    private bool _dom0Runs;

    private Pair(XenHost host, XenGuest client, XenGuest server, XenLoopDaemon dom0Daemon, XenLoopDaemon clientDaemon, XenLoopDaemon serverDaemon) =>
        (Host, Client, Server, _dom0Daemon, ClientDaemon, ServerDaemon) = (host, client, server, dom0Daemon, clientDaemon, serverDaemon);

    public XenHost Host { get; }

    public XenGuest Client { get; }

    public XenGuest Server { get; }

    public XenLoopDaemon ClientDaemon { get; }

    public XenLoopDaemon ServerDaemon { get; }

    public static async Task<Pair> StartAsync(GuestKind kind, int guestVcpus, XenHostOptions options, string kernelArguments = "")
    {
        GuestOptions guest = new() { Name = "client", Kind = kind, Vcpus = guestVcpus, KernelArguments = kernelArguments, BootTimeout = options.BootTimeout };
        XenHost host = await XenHost.StartAsync(options with { Guests = [guest, guest with { Name = "server" }] });
        try
        {
            (XenGuest client, XenGuest server) = (host.Guests[0], host.Guests[1]);
            (await server.RunAsync(Measurements.StartServers, options.BootTimeout)).Check();
            // What booting leaves to do is done, and the two know each other's addresses.
            (await client.RunAsync($"sleep 10; ping -q -A -c 100 {server.Ipv4}", options.BootTimeout)).Check();
            return new Pair(host, client, server, await XenLoopDaemon.InstallAsync(host), await XenLoopDaemon.InstallAsync(client), await XenLoopDaemon.InstallAsync(server));
        }
        catch
        {
            await host.DisposeAsync();
            throw;
        }
    }

    /// <summary>Puts bench/Datagrams into both guests, and starts its receiver.</summary>
    public async Task InstallDatagramsAsync()
    {
        await XenLoopDaemon.PublishAsync("datagrams");
        string program = Path.Combine(XenLoopDaemon.PublishFolder, "datagrams", "datagrams");
        await Task.WhenAll(Client.PushAsync(program, "/usr/bin/datagrams", "755"), Server.PushAsync(program, "/usr/bin/datagrams", "755"));
        (await Server.RunAsync($"datagrams receive {Measurements.DatagramsPort} >/dev/null 2>&1 &")).Check();
    }

    /// <summary>Starts the daemons in the guests, and in Dom0 if that has not happened; returns when both guests divert.</summary>
    public async Task StartDaemonsAsync(string arguments = "")
    {
        if (!_dom0Runs)
        {
            await _dom0Daemon.StartAsync();
            _dom0Runs = true;
        }

        await ClientDaemon.StartAsync(arguments);
        await ServerDaemon.StartAsync(arguments);
        await ClientDaemon.WaitForAsync(Server.Domid, "running", pinging: Server.Ipv4);
        await ServerDaemon.WaitForAsync(Client.Domid, "running");
    }

    /// <summary>Ends the daemons in the guests.</summary>
    public async Task StopDaemonsAsync()
    {
        await ClientDaemon.StopAsync();
        await ServerDaemon.StopAsync();
    }

    /// <summary>One run of a measurement, and what processor time each domain spent meanwhile.</summary>
    public async Task<(Outcome Outcome, DomainTimes Times)> MeasureAsync(Measurement measurement)
    {
        DomainTimes before = await TimesAsync();
        Outcome outcome = await measurement.RunAsync(Client, Server);
        return (outcome, (await TimesAsync()) - before);
    }

    /// <summary>What <see cref="MeasureAsync"/> itself makes the domains spend.</summary>
    public async Task<DomainTimes> OverheadAsync()
    {
        DomainTimes before = await TimesAsync();
        (await Client.RunAsync("true")).Check();
        return (await TimesAsync()) - before;
    }

    public ValueTask DisposeAsync() => Host.DisposeAsync();

    private async Task<DomainTimes> TimesAsync()
    {
        IReadOnlyDictionary<int, long> times = await Host.ProcessorTimesAsync();
        return new DomainTimes(times[0], times[Client.Domid], times[Server.Domid]);
    }
}

/// <summary>Processor time, in nanoseconds.</summary>
internal readonly record struct DomainTimes(double Dom0, double Client, double Server)
{
    public static DomainTimes operator -(DomainTimes left, DomainTimes right) =>
        new(left.Dom0 - right.Dom0, left.Client - right.Client, left.Server - right.Server);

    public static DomainTimes operator /(DomainTimes times, double by) => new(times.Dom0 / by, times.Client / by, times.Server / by);
}
