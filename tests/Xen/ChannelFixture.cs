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
public class ChannelFixture : DaemonsFixture
{
    /// <summary>What to run before a suspend that is to go on as if Dom0 had no xenloop.</summary>
    public const string Unprepared = "export LIBXL_SAVE_HELPER=$(echo /usr/lib/xen-*/bin/libxl-save-helper.real)";

    public ChannelFixture()
        : this(DebianRelease.Trixie)
    {
    }

    private protected ChannelFixture(DebianRelease release)
        : base(new() { Release = release }, "", Small("pvh1", GuestKind.Pvh), Small("pvh2", GuestKind.Pvh), Small("pv1", GuestKind.Pv), Small("pv2", GuestKind.Pv))
    {
    }

    public static GuestOptions Small(string name, GuestKind kind) => new() { Name = name, Kind = kind, MemoryMiB = 256 };

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
}
