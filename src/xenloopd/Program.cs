using System.Diagnostics;
using System.Globalization;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.Json;
using Tmds.Linux;
using XenLoop.Control;
using XenLoop.DataPath;
using XenLoop.Dom0;
using XenLoop.Guest;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Ring;
using XenLoop.Settings;

namespace XenLoop;

/// <summary>The daemon's entry point and control thread: one epoll over XenStore, the data loop's faults, the control socket and signals.</summary>
internal static class Program
{
    /// <summary>EX_CONFIG of sysexits.h. The service does not start again at it: the file must change first.</summary>
    private const int BadConfiguration = 78;

    private const string Usage = """
        usage: xenloopd [--config FILE] [--mode adaptive|event|poll] [--ring-kib N]
               xenloopd --forget | --version | --help

        Lets Xen guests on one host exchange packets through shared memory. In Dom0 it introduces
        the guests to each other; in a guest it offers the guest and carries its packets.

          --config     the configuration file, /etc/xenloop/xenloopd.toml if there is one; see
                       xenloopd.toml(5); SIGHUP and "xenloop reload" read it again
          --mode       what to do when idle: spin a little, then sleep (adaptive, the default);
                       sleep at once (event); never sleep (poll: for dedicated CPUs only)
          --ring-kib   KiB of each of a channel's two rings: 128, 256, 512 or 1024 (the default)
          --forget     remove what a daemon left in XenStore: in a guest its offer and channels,
                       in Dom0 all introductions; refused while a daemon runs
        """;

    // Bytes; control plane only, the data path allocates nothing. The control thread collects when there is as much garbage as memory in
    // use, so that collecting never is the greater part of its work, and within these limits, for the sake of minimal guests.
    private const long LeastGarbage = 256 << 10;

    private const long MostGarbage = 2 << 20;

    // Until the process is gone: a second SIGTERM, while the channels close, must not end it as if none of this had been arranged.
    private static PosixSignalRegistration[] _signals = [];

    private static int Main(string[] args)
    {
        IdleMode mode = IdleMode.Adaptive;
        uint ringBytes = ControlPage.MaxRingBytes;
        string? configurationFile = null;
        bool forget = false;
        for (int i = 0; i < args.Length; i++)
        {
            switch (args[i])
            {
                case "--version":
                    Console.WriteLine($"xenloopd {Version}");
                    return 0;
                case "--help":
                    Console.WriteLine(Usage);
                    return 0;
                case "--config" when i + 1 < args.Length && args[i + 1].Length > 0:
                    // Not relative to a folder that whoever reads the status does not know.
                    configurationFile = Path.GetFullPath(args[++i]);
                    break;
                case "--forget":
                    forget = true;
                    break;
                case "--mode" when i + 1 < args.Length && Enum.TryParse(args[i + 1], ignoreCase: true, out mode) && Enum.IsDefined(mode):
                    i++;
                    break;
                case "--ring-kib" when i + 1 < args.Length
                    && uint.TryParse(args[i + 1], NumberStyles.None, CultureInfo.InvariantCulture, out uint kib)
                    && ControlPage.IsValidRingSize(kib * 1024):
                    ringBytes = kib * 1024;
                    i++;
                    break;
                default:
                    Console.Error.WriteLine($"xenloopd: cannot make sense of \"{args[i]}\"{(i + 1 < args.Length ? $" \"{args[i + 1]}\"" : "")}\n{Usage}");
                    return 2;
            }
        }

        try
        {
            if (forget)
            {
                using IHypervisor forgetful = Hypervisors.Open();
                Forget.Run(forgetful);
                return 0;
            }

            Configuration configuration = Load(configurationFile);
            using IHypervisor hypervisor = Hypervisors.Open();
            Run(hypervisor, configuration, () => Load(configurationFile), mode, ringBytes);
            return 0;
        }
        catch (ConfigurationException e)
        {
            Log.Error(e.Message);
            return BadConfiguration;
        }
        catch (Exception e) when (e is NativeException or IOException or InvalidDataException or DllNotFoundException)
        {
            Log.Error(e.Message);
            return 1;
        }
    }

    private static string Version => typeof(Program).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "unknown";

    private static Configuration Load(string? file) => file is null ? Configuration.LoadOrDefaults(Configuration.DefaultPath) : Configuration.Load(file);

    /// <param name="hypervisor">Stays open.</param>
    /// <param name="configuration">In force until the first reload.</param>
    /// <param name="load">Reads the configuration anew.</param>
    /// <param name="mode">What the data loop does when idle.</param>
    /// <param name="ringBytes">Bytes of each ring of the channels this guest listens on.</param>
    private static void Run(IHypervisor hypervisor, Configuration configuration, Func<Configuration> load, IdleMode mode, uint ringBytes)
    {
        using EventFd faults = new();
        EventFd terminate = new();
        EventFd reload = new();
        _signals =
        [
            PosixSignalRegistration.Create(PosixSignal.SIGHUP, context => Request(context, reload)),
            PosixSignalRegistration.Create(PosixSignal.SIGTERM, context => Request(context, terminate)),
            PosixSignalRegistration.Create(PosixSignal.SIGINT, context => Request(context, terminate)),
        ];

        // The socket first: a second daemon is refused before it can touch what the first one has in XenStore.
        using ControlSocket control = new(ControlSocket.DefaultPath);
        using IRole role = hypervisor.IsControlDomain ? new Dom0Role(hypervisor, configuration) : new GuestRole(hypervisor, configuration, mode, ringBytes, faults);
        string activity = hypervisor.IsControlDomain ? "introducing guests" : "offering this guest";
        role.Register(control);
        control.Register("status", (json, _) => WriteStatus(json, role, configuration, mode));
        control.Register("reload", (json, _) =>
        {
            if (Reload() is { } error)
            {
                json.WriteString("error", error);
            }
            else
            {
                json.WriteString("reloaded", configuration.Path);
            }
        });
        using Epoll epoll = new();
        foreach (int descriptor in role.Descriptors)
        {
            epoll.Add(descriptor, EpollEvents.EPOLLIN, 0);
        }

        epoll.Add(faults.FileDescriptor, EpollEvents.EPOLLIN, 0);
        epoll.Add(terminate.FileDescriptor, EpollEvents.EPOLLIN, 0);
        epoll.Add(reload.FileDescriptor, EpollEvents.EPOLLIN, 0);
        epoll.Add(control.FileDescriptor, EpollEvents.EPOLLIN, 1);

        int timeout = role.Turn();
        long collectAt = 0;
        ServiceManager.Ready(activity);
        Span<epoll_event> events = stackalloc epoll_event[4];
        while (true)
        {
            int count = epoll.Wait(events, timeout);
            for (int i = 0; i < count; i++)
            {
                if (events[i].data.u64 == 1)
                {
                    control.Serve();
                }
            }

            if (terminate.Drain())
            {
                ServiceManager.Stopping();
                return;
            }

            if (reload.Drain())
            {
                _ = Reload();
            }

            faults.Drain();
            timeout = role.Turn();

            // The start, a burst of work (two hundred guests introduced), and many questions for the status leave garbage that a daemon
            // which then sleeps would keep for ever.
            if (GC.GetTotalAllocatedBytes() > collectAt)
            {
                GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive, blocking: true, compacting: true);
                collectAt = GC.GetTotalAllocatedBytes() + Math.Clamp(GC.GetTotalMemory(forceFullCollection: false), LeastGarbage, MostGarbage);
            }
        }

        static void Request(PosixSignalContext context, EventFd wanted)
        {
            context.Cancel = true;
            wanted.Signal();
        }

        // A turn follows each call. Returns what kept the new configuration from coming into force.
        string? Reload()
        {
            try
            {
                configuration = load();
            }
            catch (ConfigurationException e)
            {
                string message = $"{e.Message}; the configuration in force stays";
                Log.Error(message);
                ServiceManager.Status($"{activity}; reload failed: {message}");
                return message;
            }

            role.Configure(configuration);
            Log.Info($"configuration reloaded: {configuration.Path ?? $"the defaults, for there is no {Configuration.DefaultPath}"}");
            ServiceManager.Status(activity);
            return null;
        }
    }

    private static void WriteStatus(Utf8JsonWriter json, IRole role, Configuration configuration, IdleMode mode)
    {
        json.WriteString("version", Version);
        json.WriteNumber("pid", Environment.ProcessId);
        json.WriteString("mode", mode.ToString().ToLowerInvariant());
        json.WriteString("configuration", configuration.Path);
        json.WriteNumber("garbage_collections", GC.CollectionCount(0));
        json.WriteNumber("resident_bytes", Environment.WorkingSet);
        role.WriteStatus(json);
    }
}
