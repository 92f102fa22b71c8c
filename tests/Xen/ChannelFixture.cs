using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>Several classes, one host.</summary>
[CollectionDefinition(Name)]
public sealed class ChannelHost : ICollectionFixture<ChannelFixture>
{
    public const string Name = "Channels";
}

/// <summary>As <see cref="ChannelHost"/>, on another host: what suspends guests takes long, and hosts run side by side.</summary>
[CollectionDefinition(Name)]
public sealed class SuspendHost : ICollectionFixture<ChannelFixture>
{
    public const string Name = "Suspends";
}

/// <summary>A host with two guests of either kind, the daemon in Dom0 and in each.</summary>
public class ChannelFixture : IAsyncLifetime
{
    /// <summary>What to run before a suspend that is to go on as if Dom0 had no xenloop.</summary>
    public const string Unprepared = "export LIBXL_SAVE_HELPER=$(echo /usr/lib/xen-*/bin/libxl-save-helper.real)";

    private readonly DebianRelease _release;
    private readonly Dictionary<string, Node> _guests = [];

    public ChannelFixture()
        : this(DebianRelease.Trixie)
    {
    }

    private protected ChannelFixture(DebianRelease release) => _release = release;

    public XenHost Host { get; private set; } = null!;

    public XenLoopDaemon Dom0 { get; private set; } = null!;

    public Node this[string name] => _guests[name];

    public async Task InitializeAsync()
    {
        Host = await XenHost.StartAsync(new XenHostOptions { Release = _release });
        Dom0 = await XenLoopDaemon.InstallAsync(Host);
        await Dom0.StartAsync();
        // One after the other: side by side they boot no sooner on two processors.
        foreach ((string name, GuestKind kind) in new[] { ("pvh1", GuestKind.Pvh), ("pvh2", GuestKind.Pvh), ("pv1", GuestKind.Pv), ("pv2", GuestKind.Pv) })
        {
            _guests[name] = await AddGuestAsync(name, kind);
        }
    }

    /// <summary>Creates a guest and starts its daemon.</summary>
    public async Task<Node> AddGuestAsync(string name, GuestKind kind)
    {
        XenGuest guest = await Host.CreateGuestAsync(new GuestOptions { Name = name, Kind = kind, MemoryMiB = 256 });
        return new Node(guest, await StartDaemonAsync(guest));
    }

    /// <summary>Installs and starts the daemon in a guest that has just booted.</summary>
    public static async Task<XenLoopDaemon> StartDaemonAsync(XenGuest guest)
    {
        XenLoopDaemon daemon = await XenLoopDaemon.InstallAsync(guest);
        // Idle channels stay: the clock leaps ahead while the tests themselves think.
        (await guest.RunAsync("mkdir -p /etc/xenloop; printf '[guest]\\nidle-seconds = 604800\\n' >/etc/xenloop/xenloopd.toml")).Check();
        await daemon.StartAsync();
        return daemon;
    }

    /// <summary>Sends something, for which a channel is built, and waits until both ends divert to each other.</summary>
    public static async Task ChannelUpAsync(Node a, Node b)
    {
        await a.Daemon.WaitForAsync(b.Guest.Domid, "running", pinging: b.Guest.Ipv4);
        await b.Daemon.WaitForAsync(a.Guest.Domid, "running");
    }

    /// <summary>As <see cref="ChannelUpAsync"/>, of guests by name.</summary>
    public async Task<(Node From, Node To)> UpAsync(string a, string b)
    {
        await ChannelUpAsync(this[a], this[b]);
        return (this[a], this[b]);
    }

    /// <summary>Suspends a guest with nothing but xl, and waits until it runs again.</summary>
    /// <param name="guest">Of this host.</param>
    /// <param name="how">"restore", "cancel" or "migrate", which is to the same host.</param>
    /// <param name="before">Run in Dom0 before.</param>
    public async Task SuspendAsync(Node guest, string how, string before = "true")
    {
        string image = $"/tmp/{guest.Name}.image";
        string suspend = how switch
        {
            "restore" => $"xl save {guest.Name} {image} && xl restore {image}",
            "cancel" => $"xl save -c {guest.Name} {image}",
            "migrate" => $"xl migrate -s '' {guest.Name} 'xl migrate-receive'",
            _ => throw new ArgumentOutOfRangeException(nameof(how), how, "no way to suspend a guest"),
        };
        (await Host.RunAsync($"{before}; {suspend}; code=$?; rm -f {image}; exit $code", TimeSpan.FromMinutes(5))).Check();
        int domid = guest.Domid;
        Assert.Equal(how == "cancel", await guest.Guest.RefreshDomidAsync() == domid);
    }

    /// <summary>Lets the host's clock, which has little to do with ours, advance so far.</summary>
    public async Task SleepAsync(double seconds) => (await Host.RunAsync(string.Create(CultureInfo.InvariantCulture, $"sleep {seconds}"))).Check();

    public async Task DisposeAsync()
    {
        if (Host is not null)
        {
            await Host.DisposeAsync();
        }
    }
}
