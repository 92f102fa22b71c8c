using System.Globalization;

namespace XenLoop.Rig;

/// <summary>A guest of a <see cref="XenHost"/>.</summary>
/// <remarks>
/// The rig talks to it over an interface <c>control</c> that shares a bridge with nobody but Dom0, so that whatever a test
/// does to <c>eth0</c> (filters, loss, detaching it) does not cut off the test, and no packet of the rig is on
/// <c>eth0</c>.
/// </remarks>
public sealed class XenGuest
{
    private readonly GuestOptions _options;
    private readonly int _index;
    private readonly HashSet<XenHost> _hosts;
    private XenHost _host;

    internal XenGuest(XenHost host, GuestOptions options, int index)
    {
        _host = host;
        _hosts = [host];
        _options = options;
        _index = index;
        Macs = [.. options.Vifs.Select((vif, i) => vif.Mac ?? $"00:16:3e:77:{i:x2}:{index:x2}")];
    }

    /// <summary>Its name.</summary>
    public string Name => _options.Name;

    /// <summary>What it was created with.</summary>
    public GuestOptions Options => _options;

    /// <summary>Its domid when it was created; see <see cref="RefreshDomidAsync"/>.</summary>
    public int Domid { get; private set; }

    /// <summary>The MAC addresses of eth0, eth1 and so on.</summary>
    public IReadOnlyList<string> Macs { get; }

    /// <summary>The IPv4 address of eth0.</summary>
    public string Ipv4 => Ipv4Of(0);

    /// <summary>The IPv6 address of eth0, a unique local one.</summary>
    public string Ipv6 => Ipv6Of(0);

    /// <summary>The IPv6 link-local address of eth0, without a zone.</summary>
    public string LinkLocal => LinkLocalOf(Macs[0]);

    /// <summary>The IPv4 address of an interface.</summary>
    public string Ipv4Of(int vif) => _options.Vifs[vif].Ipv4(_index);

    /// <summary>The IPv6 address of an interface.</summary>
    public string Ipv6Of(int vif) => _options.Vifs[vif].Ipv6(_index);

    /// <summary>The address that an interface of this guest would have on another bridge.</summary>
    public string Ipv4On(string bridge) => new GuestVif(bridge).Ipv4(_index);

    private string ControlBridge => $"control{_index}";

    private string ControlAddress => $"10.200.{_index}.2";

    private string Folder => $"/run/guests/{Name}";

    private string Ramdisk => _options.Systemd ? $"{Folder}/ramdisk" : "/guest/guest.cpio";

    /// <summary>Runs a script of the shell in the guest. Many may run at the same time.</summary>
    /// <param name="script">The script; a later process that it leaves behind may live on.</param>
    /// <param name="timeout">How long it may take, in real time; three minutes if not given.</param>
    /// <exception cref="TimeoutException">It took longer, and was killed.</exception>
    public Task<CommandResult> RunAsync(string script, TimeSpan? timeout = null)
    {
        string id = _host.NewId();
        return RelayAsync(id, CommandPort.Request(id, script, []), script, timeout);
    }

    /// <summary>Copies a file of this machine into the guest, where it gets the given mode (octal).</summary>
    public async Task PushAsync(string localPath, string guestPath, string mode = "644")
    {
        string id = _host.NewId();
        byte[] request = CommandPort.Request(
            id, XenHost.PushScript(guestPath, mode), await File.ReadAllBytesAsync(localPath));
        (await RelayAsync(id, request, $"(push of {localPath})", null)).Check();
    }

    /// <summary>What the guest's kernel said, on all its lives and all hosts it has been on.</summary>
    public async Task<string> ConsoleLogAsync() => string.Concat((await Task.WhenAll(_hosts.Select(host => host.RunAsync(
        $"cat /var/log/xen/console/guest-{Name}.log /var/log/xen/console/guest-{Name}--incoming.log 2>/dev/null; true"))))
        .Select(log => log.Output));

    /// <summary>Asks xl for the domid, which changes with a restore or a migration.</summary>
    public async Task<int> RefreshDomidAsync()
    {
        string domid = (await _host.RunAsync($"xl domid {Name}")).Check().Output;
        return Domid = int.Parse(domid, CultureInfo.InvariantCulture);
    }

    /// <summary>Destroys it at once.</summary>
    public async Task DestroyAsync() =>
        (await _host.RunAsync($"xl destroy {Name} && ip link del {ControlBridge}; rm -rf {Folder}")).Check();

    /// <summary>Ends it at once and boots it again: the same name and addresses, another domid, and nothing of before in memory.</summary>
    public async Task RebootAsync()
    {
        CommandResult result = await _host.RunAsync(
            $"xl destroy {Name} && xl create -q {Folder}/config && rig-await {Name} && xl domid {Name}", _options.BootTimeout);
        Domid = int.Parse(result.Check().Output, CultureInfo.InvariantCulture);
    }

    /// <summary>
    /// Migrates it to the host that its own is joined with while it runs; it belongs to that host from then on. Scripts that
    /// <see cref="RunAsync"/> has running meanwhile lose their connection: leave them behind as processes.
    /// </summary>
    /// <exception cref="InvalidOperationException">The migration failed; the guest is where it was.</exception>
    public async Task MigrateToAsync(XenHost other)
    {
        TimeSpan limit = TimeSpan.FromMinutes(10);
        (await other.RunAsync("set -e\n" + BridgesScript())).Check();
        Task<CommandResult> receiving = other.RunAsync(
            "exec socat TCP-LISTEN:7001,reuseaddr,accept-timeout=60 'EXEC:xl migrate-receive,nofork'", limit);
        CommandResult sent = await _host.RunAsync(
            $"exec xl migrate -s '' {Name} 'exec socat -b 65536 - TCP:{other.Ipv4}:7001,retry=50,interval=0.2'", limit);
        CommandResult received = await receiving;
        if (sent.ExitCode != 0)
        {
            await other.RunAsync($"ip link del {ControlBridge}");
            throw new InvalidOperationException($"{Name} did not migrate. Sender: {sent}\nReceiver: {received}");
        }

        (await _host.RunAsync($"ip link del {ControlBridge}; rm -rf {Folder}")).Check();
        _host = other;
        _hosts.Add(other);
        await RefreshDomidAsync();
    }

    internal async Task BootAsync()
    {
        string script = $$"""
            set -e
            {{BridgesScript()}}
            mkdir -p {{Folder}}
            {{(_options.Systemd ? $"cat /guest/guest.cpio /guest/systemd.cpio >{Ramdisk}" : "")}}
            cat >{{Folder}}/config <<'END'
            {{Configuration()}}
            END
            xl create -q {{Folder}}/config
            rig-await {{Name}}
            xl domid {{Name}}
            """;
        try
        {
            CommandResult result = (await _host.RunAsync(script, _options.BootTimeout)).Check();
            Domid = int.Parse(result.Output, CultureInfo.InvariantCulture);
        }
        catch (Exception e) when (e is TimeoutException or CommandFailedException)
        {
            string log = await ConsoleLogAsync();
            throw new InvalidOperationException(
                $"The guest {Name} did not boot. {e.Message}\n--- end of its console\n{log[Math.Max(0, log.Length - 4000)..]}", e);
        }
    }

    private static string LinkLocalOf(string mac)
    {
        byte[] bytes = Convert.FromHexString(mac.Replace(":", "", StringComparison.Ordinal));
        return $"fe80::{bytes[0] ^ 2:x}{bytes[1]:x2}:{bytes[2]:x}ff:fe{bytes[3]:x2}:{(bytes[4] << 8) | bytes[5]:x}";
    }

    private string BridgesScript() => string.Join('\n',
    [
        .. _options.Vifs.Select(vif => vif.Bridge).Distinct().Select(bridge =>
            $"ip link add {bridge} up type bridge forward_delay 0 mcast_snooping 0 2>/dev/null || ip link show {bridge} >/dev/null"),
        $"ip link add {ControlBridge} up type bridge forward_delay 0 mcast_snooping 0",
        $"ip addr add 10.200.{_index}.1/24 dev {ControlBridge}",
    ]);

    private string Configuration()
    {
        IEnumerable<string> addresses = _options.Vifs.Select((_, i) => $"rig.eth{i}={Ipv4Of(i)}/24,{Ipv6Of(i)}/64");
        IEnumerable<string> vifs = _options.Vifs.Select((vif, i) => $"'mac={Macs[i]},bridge={vif.Bridge}'");
        string control = $"'mac=00:16:3e:c8:00:{_index:x2},bridge={ControlBridge}'";
        // Unless the guest reads the processor's own time stamp counter, each reading traps, and with the randomised
        // stack offset of Linux that is each system call.
        return $"""
            name='{Name}'
            type='{(_options.Kind == GuestKind.Pvh ? "pvh" : "pv")}'
            kernel='/guest/vmlinux'
            ramdisk='{Ramdisk}'
            extra='{Qemu.KernelArguments} rig.hostname={Name} {string.Join(' ', addresses)} rig.control={ControlAddress}/24 {_options.KernelArguments}'
            memory={_options.MemoryMiB}
            vcpus={_options.Vcpus}
            tsc_mode='native'
            on_reboot='destroy'
            on_crash='destroy'
            vif=[{string.Join(", ", vifs.Append(control))}]
            {_options.XlLines}
            """;
    }

    /// <summary>Has Dom0 pass a request on to the guest, and the guest's answer back.</summary>
    private async Task<CommandResult> RelayAsync(string id, byte[] request, string script, TimeSpan? timeout)
    {
        CommandResult relayed = await _host.ExchangeAsync(
            RelayRequest(request), $"The guest {Name}", script, timeout, () => KillAsync(id));
        if (relayed.OutputBytes.IsEmpty)
        {
            throw new InvalidOperationException(
                $"The guest {Name} gave no answer: it has ended, or was stopped. {relayed}\n--- script\n{script}");
        }

        using MemoryStream answer = new(relayed.OutputBytes.ToArray());
        return await CommandPort.ReadResultAsync(answer);
    }

    private Task<CommandResult> KillAsync(string id) => _host.ExchangeAsync(
        RelayRequest(_host.KillRequest(id)), "", "", null, () => Task.CompletedTask);

    private byte[] RelayRequest(byte[] request) =>
        CommandPort.Request(_host.NewId(), $"exec nc {ControlAddress} 7000", request);
}
