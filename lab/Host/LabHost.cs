using System.ComponentModel;
using System.Diagnostics;
using System.Globalization;
using System.Net.NetworkInformation;
using System.Text;

namespace XenLoop.Lab;

/// <summary>
/// A whole Xen host in one process tree. A domain is a network namespace; Dom0's holds the bridges, as a driver domain's
/// holds its own, and each vif of a guest is a veth that ends on one. XenStore and the hypervisor are servers in this
/// process, and XenStore holds what libxl writes, with libxl's permissions (<see cref="LabNodes"/>). Needs root and
/// iproute2. Nothing outlives <see cref="DisposeAsync"/>, and what a killed lab leaves behind is removed by the next.
/// </summary>
internal sealed class LabHost : IAsyncDisposable
{
    public const string DefaultBridge = "xenbr0";

    private const string Prefix = "xl";
    private const int Dom0Index = 254;

    /// <summary>Switches off the second's wait before an IPv6 address may be used; a kernel without IPv6 does not mind.</summary>
    private const string NoWait = "for c in /proc/sys/net/ipv6/conf/*/accept_dad; do echo 0 > $c; done 2>/dev/null || true";

    private static int _instances;

    private readonly Lock _lock = new();
    private readonly string _id;
    private readonly string _directory;
    private readonly Dictionary<ushort, LabGuest> _guests = [];
    private readonly Dictionary<(LabDomain Domain, string Name), Task> _bridges = [];
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
            IPv4 = LabVif.IPv4Of(0, Dom0Index),
            IPv6 = LabVif.IPv6Of(0, Dom0Index),
        };
    }

    public LabDomain Dom0 { get; }

    public XenStoreServer Store { get; } = new();

    public Broker Broker { get; } = new();

    /// <summary>
    /// The kernel's bridges know VLANs (CONFIG_BRIDGE_VLAN_FILTERING). Where they do not, a vif's VLAN is in XenStore only,
    /// and its port reaches all others.
    /// </summary>
    public bool HasVlans { get; private set; }

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
    public Task<LabGuest> AddGuestAsync(string name, string bridge = DefaultBridge, ushort? domid = null, string? mac = null) =>
        AddGuestAsync(name, [new(bridge, mac)], domid);

    /// <summary>Creates a guest that is up, with these vifs, from index 0 on.</summary>
    public async Task<LabGuest> AddGuestAsync(string name, IReadOnlyList<LabVifOptions> vifs, ushort? domid = null)
    {
        LabGuest guest = Allocate(name, vifs, domid);
        await AddLinksAsync(guest, guest.Vifs, first: true);
        Directory.CreateDirectory(guest.RuntimeDirectory);
        Broker.AddDomain(guest.Domid, guest.BrokerSocket);

        // As libxl: who hears of the domain finds its nodes.
        Store.AddDomain(guest.Domid, guest.StoreSocket, () =>
        {
            LabNodes.Write(Store, guest);
            foreach (LabVif vif in guest.Vifs)
            {
                LabNodes.Write(Store, vif);
                LabNodes.Connect(Store, vif);
            }
        });
        return guest;
    }

    /// <summary>
    /// Ends a guest as <c>xl destroy</c> does: nothing in it gets to say goodbye, and its death notices do not run. The
    /// vifs whose backend it was have lost both interfaces, and can still be unplugged.
    /// </summary>
    public async Task DestroyGuestAsync(LabGuest guest)
    {
        LabVif[] served;
        lock (_lock)
        {
            if (!IsAlive(guest))
            {
                return;
            }

            _guests.Remove(guest.Domid);
            served = [.. _guests.Values.SelectMany(g => g.Vifs).Where(v => v.BackendDomain == guest)];
            foreach ((LabDomain, string) bridge in _bridges.Keys.Where(b => b.Domain == guest).ToArray())
            {
                _bridges.Remove(bridge);
            }
        }

        Broker.RemoveDomain(guest.Domid);
        guest.KillAll();
        await ShAsync($"""
            {Kill(guest.NetNs)}
            {RemoveLinks([.. served, .. guest.Vifs.Where(v => IsAlive(v.BackendDomain))])}
            {RemoveNamespace(guest.NetNs)}
            """);
        LabNodes.Remove(Store, guest);
        await Store.RemoveDomainAsync(guest.Domid);
        Directory.Delete(guest.RuntimeDirectory, recursive: true);
    }

    /// <summary>As <c>xl network-attach</c>; but the index can be chosen.</summary>
    public async Task<LabVif> PlugAsync(LabGuest guest, int index, LabVifOptions options)
    {
        LabVif vif;
        lock (_lock)
        {
            if (!IsAlive(guest) || guest.Vifs.Any(v => v.Index == index))
            {
                throw new ArgumentException($"There is no guest {guest.Name}, or it has a vif {index} already.");
            }

            vif = NewVif(guest, index, options);
            guest.Vifs = [.. guest.Vifs, vif];
        }

        Store.Atomically(() => LabNodes.Write(Store, vif));
        LabNodes.Offer(Store, vif);
        await AddLinksAsync(guest, [vif]);
        LabNodes.Connect(Store, vif);
        return vif;
    }

    /// <summary>As <c>xl network-detach</c>, from a guest that plays along.</summary>
    public async Task UnplugAsync(LabGuest guest, int index)
    {
        LabVif vif;
        lock (_lock)
        {
            if (!IsAlive(guest))
            {
                return;
            }

            vif = guest[index];
            guest.Vifs = [.. guest.Vifs.Where(v => v != vif)];
        }

        // The nodes of a backend that is gone went with it, and are not to be created again.
        if (IsAlive(vif.BackendDomain))
        {
            Store.Atomically(() => LabNodes.Close(Store, vif));
            await ShAsync(RemoveLinks([vif]));
            LabNodes.Closed(Store, vif);
        }

        Store.Atomically(() => LabNodes.Remove(Store, vif));
    }

    /// <summary>Gives a vif another MAC, which only another vif can have: unplugs it and plugs in one that is like it.</summary>
    public async Task<LabVif> SetMacAsync(LabGuest guest, int index, string mac)
    {
        LabVif old = guest[index];
        await UnplugAsync(guest, index);
        return await PlugAsync(guest, index, new(old.Bridge, mac, old.Vlan, old.BackendDomain));
    }

    /// <summary>
    /// Moves a vif to another bridge of its backend's domain as an administrator does by hand: XenStore does not hear of
    /// it, and the port has the new bridge's own VLAN.
    /// </summary>
    public async Task MoveAsync(LabGuest guest, int index, string bridge)
    {
        LabVif vif = guest[index];
        await AddBridgeAsync(vif.BackendDomain, bridge);
        await ShAsync($"ip -n {vif.BackendDomain.NetNs} link set {vif.BackendInterface} master {bridge}");
        lock (_lock)
        {
            guest.Vifs = [.. guest.Vifs.Where(v => v != vif), vif with { Bridge = bridge, Vlan = null }];
        }
    }

    /// <summary>As <c>xl rename</c>. What the lab has named after the guest keeps its name.</summary>
    public Task RenameAsync(LabGuest guest, string name)
    {
        lock (_lock)
        {
            if (_guests.Values.Any(g => g.Name == name))
            {
                throw new ArgumentException($"There is a guest {name} already.");
            }

            guest.Name = name;
        }

        Store.Atomically(() =>
        {
            Store.Write($"{guest.Home}/name", name);
            Store.Write($"/vm/{guest.Uuid}/name", name);
        });
        return Task.CompletedTask;
    }

    public async ValueTask DisposeAsync()
    {
        LabGuest[] guests;
        lock (_lock)
        {
            guests = [.. _guests.Values];
            _guests.Clear();
        }

        // All at once, for one by one it takes seconds where there are hundreds.
        foreach (LabDomain domain in guests.Append(Dom0))
        {
            domain.KillAll();
        }

        string[] namespaces = [.. guests.Append(Dom0).Select(d => d.NetNs)];
        await ShAsync(string.Join('\n', namespaces.Select(Kill).Concat(namespaces.Select(RemoveNamespace))));
        Broker.Dispose();
        await Store.DisposeAsync();
        if (Directory.Exists(_directory))
        {
            Directory.Delete(_directory, recursive: true);
        }
    }

    private LabGuest Allocate(string name, IReadOnlyList<LabVifOptions> vifs, ushort? domid)
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

            // The number, for a name is free again when its guest is renamed.
            LabGuest guest = new()
            {
                Domid = number,
                Name = name,
                NetNs = $"{_id}-{number}-{name}",
                RuntimeDirectory = Path.Combine(_directory, $"{number}-{name}"),
                IPv4 = LabVif.IPv4Of(0, index),
                IPv6 = LabVif.IPv6Of(0, index),
                Uuid = Guid.NewGuid(),
            };
            guest.Vifs = [.. vifs.Select((options, i) => NewVif(guest, i, options))];
            _guests.Add(number, guest);
            return guest;
        }
    }

    /// <summary>Call with the lock held.</summary>
    private LabVif NewVif(LabGuest guest, int index, LabVifOptions options)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(index, LabVif.IndexMax);
        LabDomain backend = options.BackendDomain ?? Dom0;
        if (!IsAlive(backend))
        {
            throw new ArgumentException($"The driver domain {backend.Name} is gone.");
        }

        _lastMac++;
        return new()
        {
            Guest = guest,
            Index = index,
            Mac = PhysicalAddress.Parse(options.Mac ?? $"00:16:3e:78:{_lastMac >> 8:x2}:{_lastMac & 0xff:x2}"),
            Bridge = options.Bridge,
            Vlan = options.Vlan,
            BackendDomain = backend,
        };
    }

    private bool IsAlive(LabDomain domain)
    {
        lock (_lock)
        {
            return domain == Dom0 || _guests.GetValueOrDefault(domain.Domid) == domain;
        }
    }

    /// <summary>Makes the interfaces of vifs, at both ends. The guest's come up last: nothing is sent on a port that is not set up.</summary>
    /// <param name="guest">The guest of the vifs.</param>
    /// <param name="vifs">Its new vifs.</param>
    /// <param name="first">Makes the guest's namespace as well: in the same shell, for to start one takes long.</param>
    private async Task AddLinksAsync(LabGuest guest, IReadOnlyList<LabVif> vifs, bool first = false)
    {
        StringBuilder script = new(first ? $"ip netns add {guest.NetNs}\n" : "");
        foreach (IGrouping<LabDomain, LabVif> backend in vifs.GroupBy(v => v.BackendDomain))
        {
            foreach (string bridge in backend.Select(v => v.Bridge).Distinct())
            {
                await AddBridgeAsync(backend.Key, bridge);
            }

            Batch(script, $"ip -n {backend.Key.NetNs} -batch -", backend.Select(v =>
                $"link add {v.BackendInterface} master {v.Bridge} up type veth peer name {v.Interface} address {v.MacText} netns {guest.NetNs}"));
            LabVif[] tagged = [.. backend.Where(v => HasVlans && v.Vlan is not null)];
            if (tagged.Length > 0)
            {
                Batch(script, $"ip -n {backend.Key.NetNs} -batch -", tagged.Select(v => $"link set {v.Bridge} type bridge vlan_filtering 1"));
                Batch(script, $"bridge -n {backend.Key.NetNs} -batch -", tagged.SelectMany(v => new[]
                {
                    $"vlan del dev {v.BackendInterface} vid 1",
                    $"vlan add dev {v.BackendInterface} vid {v.Vlan} pvid untagged",
                }));
            }
        }

        Batch(script, $"ip netns exec {guest.NetNs} sh -c '{NoWait}; exec ip -batch -'", vifs.SelectMany(v => new[]
        {
            $"addr add {v.IPv4}/24 dev {v.Interface}",
            $"addr add {v.IPv6}/64 dev {v.Interface} nodad",
            $"link set {v.Interface} up",
        }).Prepend(first ? "link set lo up" : ""));
        await ShAsync(script.ToString());
    }

    /// <summary>Adds a command that reads lines, each of which would else be a process.</summary>
    private static void Batch(StringBuilder script, string command, IEnumerable<string> lines, bool mayFail = false) =>
        script.Append(command).Append(mayFail ? " <<END 2>/dev/null || true\n" : " <<END\n").AppendJoin('\n', lines).Append("\nEND\n");

    private async Task StartDom0Async()
    {
        await ShAsync($"""
            ip netns add {Dom0.NetNs}
            ip netns exec {Dom0.NetNs} sh -c '{NoWait}; ip link set lo up'
            """);
        await AddBridgeAsync(Dom0, DefaultBridge);
        string files = await ShAsync($"""
            ip -n {Dom0.NetNs} addr add {Dom0.IPv4}/24 dev {DefaultBridge}
            ip -n {Dom0.NetNs} addr add {Dom0.IPv6}/64 dev {DefaultBridge} nodad
            ip netns exec {Dom0.NetNs} ls /sys/class/net/{DefaultBridge}/bridge
            """);
        HasVlans = files.Contains("vlan_filtering", StringComparison.Ordinal);
        Directory.CreateDirectory(Dom0.RuntimeDirectory);
        Broker.AddDomain(0, Dom0.BrokerSocket);
        Store.AddDomain(0, Dom0.StoreSocket);
        Store.Write("/local/domain/0/domid", "0");
        Store.Write("/local/domain/0/name", Dom0.Name);
    }

    /// <summary>Ends when the bridge is there, whoever makes it.</summary>
    private Task AddBridgeAsync(LabDomain domain, string bridge)
    {
        lock (_lock)
        {
            if (!_bridges.TryGetValue((domain, bridge), out Task? made))
            {
                // Without snooping: a bridge that has not yet heard who listens drops the neighbour discovery of a new guest.
                // Without delay, as on Xen's hosts: each port would be told of once more when it ends, 15 s after the vif came.
                made = ShAsync($"ip -n {domain.NetNs} link add {bridge} up type bridge forward_delay 0 mcast_snooping 0");
                _bridges.Add((domain, bridge), made);
            }

            return made;
        }
    }

    /// <summary>A shell command that removes vifs' interfaces: with one end of a veth goes the other. Those that are gone already are no error.</summary>
    private static string RemoveLinks(IEnumerable<LabVif> vifs)
    {
        StringBuilder script = new();
        foreach (IGrouping<LabDomain, LabVif> backend in vifs.GroupBy(v => v.BackendDomain))
        {
            Batch(script, $"ip -n {backend.Key.NetNs} -force -batch -", backend.Select(v => $"link del {v.BackendInterface}"), mayFail: true);
        }

        return script.ToString();
    }

    /// <summary>A shell command that ends what runs in a namespace, which would keep it.</summary>
    private static string Kill(string netns) => $"for pid in $(ip netns pids {netns} 2>/dev/null); do kill -KILL $pid || true; done";

    private static string RemoveNamespace(string netns) => $"ip netns del {netns} 2>/dev/null || true";

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
                await ShAsync($"{Kill(netns)}\n{RemoveNamespace(netns)}");
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

    /// <returns>What the script wrote to stdout.</returns>
    private static async Task<string> ShAsync(string script)
    {
        using Process process = StartSh(script);
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        string errors = await process.StandardError.ReadToEndAsync();
        await process.WaitForExitAsync();
        if (process.ExitCode == 127)
        {
            throw new InvalidOperationException($"The lab needs the ip command: install iproute2. ({errors.Trim()})");
        }

        if (process.ExitCode != 0)
        {
            throw new InvalidOperationException($"The lab cannot set up its network: {errors.Trim()}");
        }

        return await output;
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
