using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.NetworkInformation;
using XenLoop.Interop.Xen;

namespace XenLoop.Lab;

/// <summary>
/// A whole Xen host in one process tree. A domain is a network namespace; Dom0's holds the bridges, and each guest's
/// <c>eth0</c> is a veth that ends on one. XenStore and the hypervisor are servers in this process, and XenStore holds what
/// libxl writes, with libxl's permissions. Needs root and iproute2. Nothing outlives <see cref="DisposeAsync"/>, and
/// what a killed lab leaves behind is removed by the next.
/// </summary>
internal sealed class LabHost : IAsyncDisposable
{
    public const string DefaultBridge = "xenbr0";

    private const string Prefix = "xl";
    private const int Dom0Index = 254;

    private static int _instances;

    private readonly Lock _lock = new();
    private readonly string _id;
    private readonly string _directory;
    private readonly Dictionary<ushort, LabGuest> _guests = [];
    private readonly HashSet<string> _bridges = [];
    private ushort _lastDomid;
    private ushort _lastMac;

    private LabHost()
    {
        _id = $"{Prefix}{Environment.ProcessId}-{Interlocked.Increment(ref _instances)}";
        _directory = Path.Combine(Path.GetTempPath(), $"xenloop-lab-{_id}");
        Dom0 = new()
        {
            Domid = 0,
            Name = "Domain-0",
            NetNs = $"{_id}-dom0",
            RuntimeDirectory = Path.Combine(_directory, "dom0"),
            IPv4 = IPv4Of(Dom0Index),
            IPv6 = IPv6Of(Dom0Index),
        };
    }

    public LabDomain Dom0 { get; }

    public XenStoreServer Store { get; } = new();

    public Broker Broker { get; } = new();

    public IReadOnlyList<LabGuest> Guests
    {
        get
        {
            lock (_lock)
            {
                return [.. _guests.Values];
            }
        }
    }

    /// <exception cref="InvalidOperationException">This process may not, or a tool is missing; says what to do.</exception>
    public static async Task<LabHost> StartAsync()
    {
        if (!Environment.IsPrivilegedProcess)
        {
            throw new InvalidOperationException("The lab makes network namespaces: run it as root.");
        }

        await RemoveLeftoversAsync();
        LabHost host = new();
        try
        {
            await host.StartDom0Async();
            return host;
        }
        catch
        {
            await host.DisposeAsync();
            throw;
        }
    }

    /// <summary>Creates a guest that is up: addresses assigned, vif connected, nodes written.</summary>
    /// <param name="name">Unique among the guests that exist.</param>
    /// <param name="bridge">A bridge in Dom0, made if it is new.</param>
    /// <param name="domid">A domid to take, as one that was used before; else the next one.</param>
    /// <param name="mac">The vif's MAC, as <c>00:16:3e:xx:xx:xx</c>; else a new one.</param>
    public async Task<LabGuest> AddGuestAsync(string name, string bridge = DefaultBridge, ushort? domid = null, string? mac = null)
    {
        LabGuest guest = Allocate(name, bridge, domid, mac);
        await AddBridgeAsync(bridge);
        await ShAsync($"""
            ip netns add {guest.NetNs}
            {Ready(guest.NetNs)}
            ip -n {Dom0.NetNs} link add vif{guest.Domid}.0 type veth peer name eth0 address {guest.MacText} netns {guest.NetNs}
            ip -n {Dom0.NetNs} link set vif{guest.Domid}.0 master {bridge} up
            ip -n {guest.NetNs} addr add {guest.IPv4}/24 dev eth0
            ip -n {guest.NetNs} addr add {guest.IPv6}/64 dev eth0 nodad
            ip -n {guest.NetNs} link set eth0 up
            """);
        Directory.CreateDirectory(guest.RuntimeDirectory);
        Broker.AddDomain(guest.Domid, guest.BrokerSocket);

        // As libxl: who hears of the domain finds its nodes.
        Store.AddDomain(guest.Domid, guest.StoreSocket, () => WriteNodes(guest));
        return guest;
    }

    /// <summary>Ends a guest as <c>xl destroy</c> does: nothing in it gets to say goodbye, and its death notices do not run.</summary>
    public async Task DestroyGuestAsync(LabGuest guest)
    {
        lock (_lock)
        {
            if (!_guests.Remove(guest.Domid))
            {
                return;
            }
        }

        Broker.RemoveDomain(guest.Domid);
        await RemoveNamespaceAsync(guest, $"ip -n {Dom0.NetNs} link del vif{guest.Domid}.0 2>/dev/null || true");
        Store.Remove($"/local/domain/0/backend/vif/{guest.Domid}");
        Store.Remove($"/libxl/{guest.Domid}");
        Store.Remove($"/vm/{guest.Uuid}");
        Store.Remove(guest.Home);
        await Store.RemoveDomainAsync(guest.Domid);
        Directory.Delete(guest.RuntimeDirectory, recursive: true);
    }

    public async ValueTask DisposeAsync()
    {
        foreach (LabGuest guest in Guests)
        {
            await DestroyGuestAsync(guest);
        }

        Broker.Dispose();
        await Store.DisposeAsync();
        await RemoveNamespaceAsync(Dom0);
        if (Directory.Exists(_directory))
        {
            Directory.Delete(_directory, recursive: true);
        }
    }

    private static IPAddress IPv4Of(int index) => new([10, 78, 0, (byte)index]);

    private static IPAddress IPv6Of(int index) => IPAddress.Parse($"fd78::{index:x}");

    private LabGuest Allocate(string name, string bridge, ushort? domid, string? mac)
    {
        lock (_lock)
        {
            if (_guests.Values.Any(g => g.Name == name || g.Domid == domid))
            {
                throw new ArgumentException($"There is a guest {name} or a domid {domid} already.");
            }

            int index = Enumerable.Range(1, Dom0Index - 1).Except(_guests.Values.Select(g => (int)g.IPv4.GetAddressBytes()[3])).First();
            ushort number = domid ?? (ushort)(_lastDomid + 1);
            _lastDomid = Math.Max(_lastDomid, number);
            _lastMac++;
            LabGuest guest = new()
            {
                Domid = number,
                Name = name,
                NetNs = $"{_id}-{name}",
                RuntimeDirectory = Path.Combine(_directory, name),
                IPv4 = IPv4Of(index),
                IPv6 = IPv6Of(index),
                Mac = PhysicalAddress.Parse(mac ?? $"00:16:3e:78:{_lastMac >> 8:x2}:{_lastMac & 0xff:x2}"),
                Bridge = bridge,
                Uuid = Guid.NewGuid(),
            };
            _guests.Add(number, guest);
            return guest;
        }
    }

    private async Task StartDom0Async()
    {
        await ShAsync($"""
            ip netns add {Dom0.NetNs}
            {Ready(Dom0.NetNs)}
            """);
        await AddBridgeAsync(DefaultBridge);
        await ShAsync($"""
            ip -n {Dom0.NetNs} addr add {Dom0.IPv4}/24 dev {DefaultBridge}
            ip -n {Dom0.NetNs} addr add {Dom0.IPv6}/64 dev {DefaultBridge} nodad
            """);
        Directory.CreateDirectory(Dom0.RuntimeDirectory);
        Broker.AddDomain(0, Dom0.BrokerSocket);
        Store.AddDomain(0, Dom0.StoreSocket);
        Store.Write("/local/domain/0/domid", "0");
        Store.Write("/local/domain/0/name", Dom0.Name);
    }

    private async Task AddBridgeAsync(string bridge)
    {
        lock (_lock)
        {
            if (!_bridges.Add(bridge))
            {
                return;
            }
        }

        // Without snooping: a bridge that has not yet heard who listens drops the neighbour discovery of a new guest.
        await ShAsync($"ip -n {Dom0.NetNs} link add {bridge} type bridge mcast_snooping 0 && ip -n {Dom0.NetNs} link set {bridge} up");
    }

    /// <summary>Brings up lo, and switches off the second's wait before an IPv6 address may be used.</summary>
    private static string Ready(string netns) => $"""
        ip -n {netns} link set lo up
        ip netns exec {netns} sh -c 'for c in all default; do echo 0 > /proc/sys/net/ipv6/conf/$c/accept_dad; done' 2>/dev/null || true
        """;

    /// <summary>What libxl writes (libxl_create.c, libxl_nic.c), as far as programs of guests and Dom0 look at it.</summary>
    private void WriteNodes(LabGuest guest)
    {
        (ushort, XenStoreAccess)[] readOnly = [(0, XenStoreAccess.None), (guest.Domid, XenStoreAccess.Read)];
        (ushort, XenStoreAccess)[] own = [(guest.Domid, XenStoreAccess.None)];
        (ushort, XenStoreAccess)[] frontend = [(guest.Domid, XenStoreAccess.None), (0, XenStoreAccess.Read)];
        string domid = guest.Domid.ToString(CultureInfo.InvariantCulture);

        Store.Write(guest.Home, "", readOnly);
        Store.Write($"{guest.Home}/vm", $"/vm/{guest.Uuid}");
        Store.Write($"{guest.Home}/name", guest.Name);
        Store.Write($"{guest.Home}/domid", domid);
        Store.Write($"{guest.Home}/control", "", readOnly);
        Store.Write($"{guest.Home}/control/shutdown", "", own);
        foreach (string area in new[] { "data", "drivers", "feature", "attr", "error" })
        {
            Store.Write($"{guest.Home}/{area}", "", own);
        }

        Store.Write($"/vm/{guest.Uuid}", "", readOnly);
        Store.Write($"/vm/{guest.Uuid}/uuid", guest.Uuid.ToString());
        Store.Write($"/vm/{guest.Uuid}/name", guest.Name);
        Store.Write($"/libxl/{domid}", "", (0, XenStoreAccess.None));

        string device = $"{guest.Home}/device/vif/0";
        Store.Write(guest.Backend, "", readOnly);
        foreach ((string node, string value) in new[]
        {
            ("frontend", device), ("frontend-id", domid), ("online", "1"), ("script", "/etc/xen/scripts/vif-bridge"),
            ("mac", guest.MacText), ("bridge", guest.Bridge), ("handle", "0"), ("type", "vif"),
            ("hotplug-status", "connected"), ("state", "4"),
        })
        {
            Store.Write($"{guest.Backend}/{node}", value);
        }

        Store.Write(device, "", frontend);
        foreach ((string node, string value) in new[]
        {
            ("backend", guest.Backend), ("backend-id", "0"), ("handle", "0"), ("mac", guest.MacText), ("state", "4"),
        })
        {
            Store.Write($"{device}/{node}", value);
        }
    }

    private static Task RemoveNamespaceAsync(LabDomain domain, string more = "")
    {
        domain.KillAll();
        return RemoveNamespaceAsync(domain.NetNs, more);
    }

    /// <summary>Ends what runs in a namespace, which would keep it, and then the namespace.</summary>
    private static Task RemoveNamespaceAsync(string netns, string more = "") => ShAsync($"""
        for pid in $(ip netns pids {netns} 2>/dev/null); do kill -KILL $pid || true; done
        {more}
        ip netns del {netns} 2>/dev/null || true
        """);

    /// <summary>Removes what labs whose process is gone have left: namespaces, children of the processes they started, files.</summary>
    private static async Task RemoveLeftoversAsync()
    {
        if (!Directory.Exists("/run/netns"))
        {
            return;
        }

        foreach (string netns in Directory.EnumerateFileSystemEntries("/run/netns", $"{Prefix}*").Select(p => Path.GetFileName(p)!))
        {
            string pid = netns[Prefix.Length..].Split('-')[0];
            if (int.TryParse(pid, NumberStyles.None, CultureInfo.InvariantCulture, out _) && !Directory.Exists($"/proc/{pid}"))
            {
                await RemoveNamespaceAsync(netns);
            }
        }

        foreach (string directory in Directory.EnumerateDirectories(Path.GetTempPath(), $"xenloop-lab-{Prefix}*"))
        {
            string pid = Path.GetFileName(directory)["xenloop-lab-xl".Length..].Split('-')[0];
            if (!Directory.Exists($"/proc/{pid}"))
            {
                Directory.Delete(directory, recursive: true);
            }
        }
    }

    private static async Task ShAsync(string script)
    {
        using Process process = StartSh(script);
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        string errors = await process.StandardError.ReadToEndAsync();
        await output;
        await process.WaitForExitAsync();
        if (process.ExitCode == 127)
        {
            throw new InvalidOperationException($"The lab needs the ip command: install iproute2. ({errors.Trim()})");
        }

        if (process.ExitCode != 0)
        {
            throw new InvalidOperationException($"The lab cannot set up its network: {errors.Trim()}");
        }
    }

    private static Process StartSh(string script)
    {
        try
        {
            return Process.Start(new ProcessStartInfo("sh", ["-ec", script])
            {
                RedirectStandardOutput = true,
                RedirectStandardError = true,
            })!;
        }
        catch (Win32Exception e)
        {
            throw new InvalidOperationException($"The lab cannot start a shell: {e.Message}");
        }
    }
}
