using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>A host with the daemon in Dom0 and in each guest.</summary>
public abstract class DaemonsFixture : IAsyncLifetime
{
    public const string Configuration = "/etc/xenloop/xenloopd.toml";

    // Idle channels stay: the clock leaps ahead while the tests themselves think.
    public const string GuestConfiguration = "[guest]\nidle-seconds = 604800\n";

    private readonly XenHostOptions _options;
    private readonly string _arguments;
    private readonly Dictionary<string, Node> _guests = [];

    /// <param name="options">Of the host.</param>
    /// <param name="arguments">Of the guests' daemons.</param>
    /// <param name="plan">The guests that there are from the start.</param>
    private protected DaemonsFixture(XenHostOptions options, string arguments, params GuestOptions[] plan) =>
        (_options, _arguments) = (options with { Guests = plan }, arguments);

    public XenHost Host { get; private set; } = null!;

    public XenLoopDaemon Dom0 { get; private set; } = null!;

    public IEnumerable<Node> Guests => _guests.Values;

    public Node this[string name] => _guests[name];

    public async Task InitializeAsync()
    {
        Host = await XenHost.StartAsync(_options);
        Dom0 = await XenLoopDaemon.InstallAsync(Host);
        await Dom0.StartAsync();
        foreach (XenGuest guest in Host.Guests)
        {
            _guests[guest.Name] = new Node(guest, await StartDaemonAsync(guest, _arguments));
        }
    }

    public async Task DisposeAsync()
    {
        if (Host is not null)
        {
            await Host.DisposeAsync();
        }
    }

    /// <summary>Creates a guest and starts its daemon.</summary>
    public async Task<Node> AddGuestAsync(GuestOptions options)
    {
        XenGuest guest = await Host.CreateGuestAsync(options);
        return new Node(guest, await StartDaemonAsync(guest, _arguments));
    }

    /// <summary>Installs and starts the daemon in a guest that has just booted.</summary>
    public static async Task<XenLoopDaemon> StartDaemonAsync(XenGuest guest, string arguments = "")
    {
        XenLoopDaemon daemon = await XenLoopDaemon.InstallAsync(guest);
        (await guest.RunAsync($"mkdir -p /etc/xenloop; cat >{Configuration} <<'END'\n{GuestConfiguration}END")).Check();
        await daemon.StartAsync(arguments);
        return daemon;
    }

    /// <summary>Lets the host's clock, which has little to do with ours, advance so far.</summary>
    public async Task SleepAsync(double seconds) => (await Host.RunAsync(string.Create(CultureInfo.InvariantCulture, $"sleep {seconds}"))).Check();
}
