using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Text.Json;

namespace XenLoop.Rig;

/// <summary>
/// The emulated machine: its processor, a serial console that goes to a file, and virtio serial ports that arrive here as
/// unix sockets. It has no disk, and no network but a wire to another machine of the kind.
/// </summary>
/// <remarks>
/// The ports are connected from the start, for a port without a peer reads as ended in Dom0. Serial ports are preferred
/// to QEMU's user-mode network because they have no timers: with exact timing an idle guest's clock leaps ahead, and a
/// TCP connection to the outside would run into its time limits.
/// </remarks>
internal sealed class Qemu : IAsyncDisposable
{
    /// <summary>How many scripts can run at the same time.</summary>
    private const int PortCount = 16;

    /// <summary>
    /// Flags of which real Xen gets something wrong under software emulation: SMAP, SMEP and PKU crash a PV Dom0, RDTSCP
    /// kills PVH guests; and without ERMS and FSRM the kernel copies with <c>rep movsq</c>, eight times as fast here as
    /// <c>rep movsb</c>.
    /// </summary>
    private const string Processor = "max,-smap,-smep,-pku,-la57,-rdtscp,-erms,-fsrm";

    /// <summary>
    /// For Linux in Dom0 and in guests: quiet while it boots, and without the tests of its ciphers, which are half of a
    /// guest's time to boot.
    /// </summary>
    public const string KernelArguments = "console=hvc0 loglevel=5 cryptomgr.notests";

    private readonly string _scratch;
    private readonly Process _process;
    private readonly HostSnapshot? _snapshot;
    private Socket? _monitor;
    private int _profiles;

    private Qemu(string scratch, Process process, HostSnapshot? snapshot)
    {
        _scratch = scratch;
        _process = process;
        _snapshot = snapshot;
    }

    /// <summary>The ports, in no particular order.</summary>
    public List<CommandPort> Ports { get; } = [];

    /// <summary>Starts the machine, which begins to boot, or goes on from where one like it had booted.</summary>
    public static async Task<Qemu> StartAsync(RigImage image, XenHostOptions options)
    {
        string scratch = Directory.CreateTempSubdirectory("xenloop-rig-").FullName;
        List<Socket> listeners = [];
        try
        {
            string[] network = options.Network is null ? [] : await options.Network.ArgumentsAsync(options.Number, scratch);
            List<string> arguments = Arguments(image, options, scratch);
            // Joined hosts are booted: two from one snapshot would take the same random numbers for their guests.
            HostSnapshot? snapshot = options.Network is not null ? null
                : new(image, $"{string.Join('\n', arguments).Replace(scratch, "", StringComparison.Ordinal)}\n{JsonSerializer.Serialize(options.Guests)}");
            bool hasBooted = snapshot is { Exists: true };
            ProcessStartInfo start = new(image.RunQemu, [scratch, .. arguments, .. network, .. hasBooted ? snapshot!.Arguments : []])
            {
                // Its end is how the script learns that this process has died.
                RedirectStandardInput = true,
            };
            for (int i = 0; i < PortCount; i++)
            {
                listeners.Add(Listen(PortPath(scratch, i)));
            }

            listeners.Add(Listen(MonitorPath(scratch)));

            Process process = Process.Start(start)
                ?? throw new InvalidOperationException($"{image.RunQemu} did not start.");
            Qemu qemu = new(scratch, process, snapshot) { HasBooted = hasBooted };
            try
            {
                await qemu.AcceptPortsAsync(listeners);
                if (options.Network is not null && options.Number == 1)
                {
                    await options.Network.ListeningAsync(scratch);
                }

                return qemu;
            }
            catch
            {
                await qemu.DisposeAsync();
                throw;
            }
        }
        finally
        {
            listeners.ForEach(listener => listener.Dispose());
        }
    }

    /// <summary>The end of what the hypervisor and Dom0's kernel said, for error messages.</summary>
    public string LogTail()
    {
        string text = "";
        foreach (string name in (string[])["qemu.log", "console.log"])
        {
            string path = Path.Combine(_scratch, name);
            if (File.Exists(path))
            {
                string[] lines = File.ReadAllLines(path);
                text += $"--- end of {name}\n{string.Join('\n', lines.TakeLast(40))}\n";
            }
        }

        return text;
    }

    /// <summary>It goes on from where one like it had booted, with its guests.</summary>
    public bool HasBooted { get; private init; }

    /// <summary>The machine has booted, with its guests: keeps it as it is now, so that the next of its kind need not. Does nothing where this one need not have.</summary>
    public async Task KeepBootedAsync()
    {
        if (_snapshot is not null && !HasBooted)
        {
            await _snapshot.TakeAsync(_monitor!);
        }
    }

    /// <summary>What the processors have executed since the last call, or since the start.</summary>
    public async Task<IReadOnlyList<ProfiledBlock>> ProfileAsync()
    {
        string dump = $"{ProfilePath(_scratch)}.{++_profiles}";
        string pid = await File.ReadAllTextAsync(Path.Combine(_scratch, "pid"));
        using Process kill = Process.Start("kill", ["-USR2", pid.Trim()]);
        await kill.WaitForExitAsync();
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        // It appears when it is whole.
        while (!File.Exists(dump))
        {
            await Task.Delay(10, limit.Token);
        }

        List<ProfiledBlock> blocks = [.. File.ReadLines(dump).Select(ProfiledBlock.Parse)];
        File.Delete(dump);
        return blocks;
    }

    public async ValueTask DisposeAsync()
    {
        Ports.ForEach(port => port.Dispose());
        _monitor?.Dispose();
        _process.StandardInput.Close();
        await _process.WaitForExitAsync();
        _process.Dispose();
    }

    private static List<string> Arguments(RigImage image, XenHostOptions options, string scratch)
    {
        const int ForXenItself = 256;
        int memory = options.Dom0MemoryMiB + options.GuestMemoryMiB + ForXenItself;
        List<string> arguments =
        [
            "-nodefaults", "-no-user-config", "-display", "none",
            // Xen reboots after a crash; this makes QEMU end instead, which the ports show at once.
            "-no-reboot",
            "-machine", "pc", "-cpu", Processor, "-m", memory.ToString(CultureInfo.InvariantCulture),
            "-smp", options.Processors.ToString(CultureInfo.InvariantCulture), "-accel", "tcg,thread=single,tb-size=512",
            .. Clock(options),
            .. (options.Profile ? new[] { "-plugin", $"{RigImage.ProfilePlugin},out={ProfilePath(scratch)}" } : []),
            "-kernel", image.Hypervisor,
            "-append",
            // No XSAVE, so no AVX: under this emulation PVH guests now and then find wrong values in vector registers, or the kernel its
            // "Bad FPU state", while another boots. Eagerly: when Xen restores the registers lazily they find them without that, too.
            $"dom0_mem={options.Dom0MemoryMiB}M,max:{options.Dom0MemoryMiB}M dom0_max_vcpus={options.Dom0Vcpus} "
                + $"console=com1 com1=115200,8n1 conring_size=1m spec-ctrl=off spec-ctrl=eager-fpu xsave=0 xpti=off bootscrub=0 {options.XenArguments}",
            "-initrd", $"{image.Kernel} {KernelArguments} {options.Dom0KernelArguments},{image.Dom0Files}",
            "-serial", $"file:{Path.Combine(scratch, "console.log")}",
            "-device", $"virtio-serial-pci,max_ports={PortCount + 1}",
            "-chardev", $"socket,id=monitor,path={MonitorPath(scratch)}", "-mon", "chardev=monitor,mode=control",
        ];
        for (int i = 0; i < PortCount; i++)
        {
            arguments.AddRange(
                "-chardev", $"socket,id=port{i},path={PortPath(scratch, i)}",
                "-device", $"virtserialport,chardev=port{i},nr={i + 1}");
        }

        return arguments;
    }

    private static string[] Clock(XenHostOptions options) => options switch
    {
        { Timing: RigTiming.Functional } => [],
        { Network: null, Processors: 1 } => ["-icount", "shift=0,align=off,sleep=off"],
        // All processors at once: 1000 instructions each in turn.
        { Network: null } => ["-icount", "shift=0,align=off,sleep=off,lockstep=1000"],
        // Joined hosts wait for each other, and their clocks must not part meanwhile. Sleep: while all domains wait, the clock
        // goes on with ours. Shift 3: while they work, it is within some times of ours, too. With 0 a working host's
        // clock lags ten times and more behind that of the other, which waits for it.
        _ => ["-icount", "shift=3,align=off,sleep=on"],
    };

    private static string ProfilePath(string scratch) => Path.Combine(scratch, "profile");

    private static string PortPath(string scratch, int index) => Path.Combine(scratch, $"port{index}");

    private static string MonitorPath(string scratch) => Path.Combine(scratch, "monitor");

    private static Socket Listen(string path)
    {
        Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(path));
        listener.Listen(1);
        return listener;
    }

    private async Task AcceptPortsAsync(List<Socket> listeners)
    {
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        try
        {
            foreach (Socket listener in listeners[..PortCount])
            {
                Ports.Add(new CommandPort(await listener.AcceptAsync(limit.Token)));
            }

            _monitor = await listeners[PortCount].AcceptAsync(limit.Token);
        }
        catch (OperationCanceledException)
        {
            throw new TimeoutException($"QEMU did not start within 30 seconds.\n{LogTail()}");
        }
    }
}
