using System.Globalization;
using System.Threading.Channels;

namespace XenLoop.Rig;

/// <summary>
/// A whole Xen host: the real hypervisor with a Dom0 and guests, on software-emulated processors. It needs no
/// virtualization hardware. Dom0 has the bridge <c>xenbr0</c> with the addresses 10.77.0.1 and fd77::1; host number 2 of two
/// has 10.77.0.2 and fd77::2.
/// </summary>
/// <remarks>
/// Nothing in Dom0 or in a guest takes processor time while a script of the caller's runs: whoever waits, blocks.
/// </remarks>
public sealed class XenHost : IAsyncDisposable
{
    private const string Remedy =
        "If the machine is merely slow, allow more time (XenHostOptions.BootTimeout, the timeout of the call).";

    private readonly Qemu _qemu;
    private readonly Channel<CommandPort> _freePorts = Channel.CreateUnbounded<CommandPort>();
    private int _requests;
    private int _guests;

    private XenHost(Qemu qemu, XenHostOptions options)
    {
        _qemu = qemu;
        Options = options;
        // Far enough apart that no guest meets another's bridge or address when it moves.
        _guests = 100 * (options.Number - 1);
        qemu.Ports.ForEach(Release);
    }

    /// <summary>
    /// Whether hosts with several processors, and profiles, can be had here: whether the rig's own QEMU was built. Known once the images
    /// are (<see cref="PrepareAsync"/>).
    /// </summary>
    public static bool HasOwnQemu => File.Exists(RigImage.ProfilePlugin);

    /// <summary>What this host was started with.</summary>
    public XenHostOptions Options { get; }

    /// <summary>Those of <see cref="XenHostOptions.Guests"/>, in that order.</summary>
    public IReadOnlyList<XenGuest> Guests { get; private set; } = [];

    /// <summary>Dom0's IPv4 address on <c>xenbr0</c>.</summary>
    public string Ipv4 => $"10.77.0.{Options.Number}";

    /// <summary>Makes what hosts boot, if it is missing or out of date.</summary>
    /// <returns><see cref="HasOwnQemu"/>.</returns>
    public static async Task<bool> PrepareAsync()
    {
        await RigImage.GetAsync(new XenHostOptions().Release);
        return HasOwnQemu;
    }

    /// <summary>Boots a host and waits until Dom0 can create guests, and those of the options have booted.</summary>
    public static async Task<XenHost> StartAsync(XenHostOptions? options = null)
    {
        options ??= new XenHostOptions();
        RigImage image = await RigImage.GetAsync(options.Release);
        if ((options.Processors > 1 || options.Profile) && !HasOwnQemu)
        {
            throw new NotSupportedException(
                "A host with several processors, and a profile, need the QEMU that the rig builds, which was not possible here: see what rig/qemu/build says.");
        }

        Qemu qemu = await Qemu.StartAsync(image, options);
        XenHost host = new(qemu, options);
        try
        {
            (await host.RunAsync("xl info", options.BootTimeout)).Check();
            if (options.Network is not null)
            {
                await host.JoinAsync();
            }

            host.Guests = [.. options.Guests.Select(guest => new XenGuest(host, guest, ++host._guests))];
            // One after the other: booting is all work and no waiting.
            foreach (XenGuest guest in host.Guests)
            {
                await (qemu.HasBooted ? guest.RefreshDomidAsync() : guest.BootAsync());
            }

            await qemu.KeepBootedAsync();
            return host;
        }
        catch
        {
            await host.DisposeAsync();
            throw;
        }
    }

    /// <summary>
    /// Boots two hosts whose bridges <c>xenbr0</c> are joined, so that guests can migrate from one to the other and keep their
    /// connections. No two guests of theirs have the same addresses.
    /// </summary>
    /// <returns>Host 1 and host 2.</returns>
    public static async Task<XenHost[]> StartJoinedAsync(XenHostOptions? options = null)
    {
        options = (options ?? new XenHostOptions()) with { Network = new HostNetwork() };
        Task<XenHost>[] hosts = [StartAsync(options with { Number = 1 }), StartAsync(options with { Number = 2 })];
        try
        {
            return await Task.WhenAll(hosts);
        }
        catch
        {
            foreach (Task<XenHost> host in hosts.Where(host => host.IsCompletedSuccessfully))
            {
                await host.Result.DisposeAsync();
            }

            throw;
        }
    }

    /// <summary>Runs a script of the shell in Dom0. Many may run at the same time.</summary>
    /// <param name="script">The script; a later process that it leaves behind may live on.</param>
    /// <param name="timeout">How long it may take, in real time; three minutes if not given.</param>
    /// <exception cref="TimeoutException">It took longer, and was killed.</exception>
    public async Task<CommandResult> RunAsync(string script, TimeSpan? timeout = null)
    {
        string id = NewId();
        return await ExchangeAsync(
            CommandPort.Request(id, script, []), "Dom0", script, timeout, () => ExchangeAsync(KillRequest(id)));
    }

    /// <summary>Copies a file of this machine into Dom0, where it gets the given mode (octal).</summary>
    public async Task PushAsync(string localPath, string dom0Path, string mode = "644")
    {
        byte[] request = CommandPort.Request(
            NewId(), PushScript(dom0Path, mode), await File.ReadAllBytesAsync(localPath));
        (await ExchangeAsync(request, "Dom0", $"(push of {localPath})", null, () => Task.CompletedTask)).Check();
    }

    /// <summary>Creates a guest and waits until it has booted.</summary>
    public async Task<XenGuest> CreateGuestAsync(GuestOptions options)
    {
        XenGuest guest = new(this, options, Interlocked.Increment(ref _guests));
        await guest.BootAsync();
        return guest;
    }

    /// <summary>All domains with Dom0, and those that are dead but not yet freed, as <c>xl list</c> shows them.</summary>
    public async Task<IReadOnlyList<XenDomain>> DomainsAsync() =>
        XenDomain.Parse((await RunAsync("xl list")).Check().Output);

    /// <summary>The processor time that each domain has used so far, in nanoseconds, by domid, as the hypervisor counts it.</summary>
    public async Task<IReadOnlyDictionary<int, long>> ProcessorTimesAsync() => (await RunAsync("domain-times")).Check()
        .Output.Split('\n', StringSplitOptions.RemoveEmptyEntries)
        .Select(line => line.Split(' '))
        .ToDictionary(fields => int.Parse(fields[0], CultureInfo.InvariantCulture), fields => long.Parse(fields[1], CultureInfo.InvariantCulture));

    /// <summary>
    /// What the processors of a host with <see cref="XenHostOptions.Profile"/> have executed since the last call, or since the start.
    /// </summary>
    public Task<IReadOnlyList<ProfiledBlock>> ProfileAsync() => _qemu.ProfileAsync();

    /// <summary>The end of what the hypervisor and Dom0's kernel said.</summary>
    public string LogTail() => _qemu.LogTail();

    /// <inheritdoc/>
    public ValueTask DisposeAsync() => _qemu.DisposeAsync();

    internal static string PushScript(string path, string mode) => $"cat >'{path}.new' && chmod {mode} '{path}.new' && mv -f '{path}.new' '{path}'";

    /// <summary>A request that kills the process group of another.</summary>
    internal byte[] KillRequest(string id) =>
        CommandPort.Request(NewId(), $"kill -KILL -$(cat /run/rig/{id}/pid)", []);

    internal string NewId() => Interlocked.Increment(ref _requests).ToString(CultureInfo.InvariantCulture);

    /// <summary>
    /// Sends a request to Dom0 and waits for the result; when time is up, calls <paramref name="kill"/>.
    /// </summary>
    internal async Task<CommandResult> ExchangeAsync(
        byte[] request, string where, string script, TimeSpan? timeout, Func<Task> kill)
    {
        TimeSpan limit = timeout ?? TimeSpan.FromMinutes(3);
        Task<CommandResult> exchange = ExchangeAsync(request);
        try
        {
            return await exchange.WaitAsync(limit);
        }
        catch (TimeoutException)
        {
            Forget(exchange);
            Forget(kill());
            throw new TimeoutException(
                $"{where} took longer than {limit.TotalSeconds} s. {Remedy}\n--- script\n{script}\n{LogTail()}");
        }
        catch (IOException)
        {
            throw new InvalidOperationException($"QEMU has ended.\n--- script\n{script}\n{LogTail()}");
        }
    }

    /// <summary>The port is given back only when its answer has come: until then it cannot serve another request.</summary>
    private async Task<CommandResult> ExchangeAsync(byte[] request)
    {
        CommandPort port = await _freePorts.Reader.ReadAsync();
        CommandResult result = await port.ExchangeAsync(request);
        Release(port);
        return result;
    }

    /// <summary>Joins xenbr0 with the other host's, where it needs an address of its own.</summary>
    private async Task JoinAsync() => (await RunAsync($"""
        set -e
        modprobe virtio_net
        ip addr del 10.77.0.1/24 dev xenbr0
        ip addr del fd77::1/64 dev xenbr0
        ip addr add {Ipv4}/24 dev xenbr0
        ip addr add fd77::{Options.Number}/64 dev xenbr0
        ip link set "$(ls /sys/bus/virtio/drivers/virtio_net/virtio*/net)" up master xenbr0
        """)).Check();

    private static void Forget(Task task) =>
        task.ContinueWith(failed => failed.Exception, CancellationToken.None, TaskContinuationOptions.OnlyOnFaulted, TaskScheduler.Default);

    private void Release(CommandPort port) => _freePorts.Writer.TryWrite(port);
}
