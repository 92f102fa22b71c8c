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
    private const string Usage = """
        usage: xenloopd [--mode adaptive|event|poll] [--ring-kib N]
               xenloopd --version | --help

        Lets Xen guests on one host exchange packets through shared memory. In Dom0 it introduces
        the guests to each other; in a guest it offers the guest and carries its packets.

          --mode       what to do when idle: spin a little, then sleep (adaptive, the default);
                       sleep at once (event); never sleep (poll: for dedicated CPUs only)
          --ring-kib   KiB of each of a channel's two rings: 128, 256, 512 or 1024 (the default)
        """;

    private static int Main(string[] args)
    {
        IdleMode mode = IdleMode.Adaptive;
        uint ringBytes = ControlPage.MaxRingBytes;
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
            using IHypervisor hypervisor = Hypervisors.Open();
            Run(hypervisor, mode, ringBytes);
            return 0;
        }
        catch (Exception e) when (e is NativeException or IOException or InvalidDataException or DllNotFoundException)
        {
            Log.Error(e.Message);
            return 1;
        }
    }

    private static string Version => typeof(Program).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "unknown";

    private static void Run(IHypervisor hypervisor, IdleMode mode, uint ringBytes)
    {
        using EventFd faults = new();
        using EventFd terminate = new();
        using PosixSignalRegistration term = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Terminate);
        using PosixSignalRegistration interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Terminate);

        // The socket first: a second daemon is refused before it can touch what the first one has in XenStore.
        IRole? started = null;
        Configuration configuration = new();
        using ControlSocket control = new(ControlSocket.DefaultPath, json => WriteStatus(json, started!, mode));
        using IRole role = hypervisor.IsControlDomain ? new Dom0Role(hypervisor, configuration) : new GuestRole(hypervisor, configuration, mode, ringBytes, faults);
        started = role;
        using Epoll epoll = new();
        foreach (int descriptor in role.Descriptors)
        {
            epoll.Add(descriptor, EpollEvents.EPOLLIN, 0);
        }

        epoll.Add(faults.FileDescriptor, EpollEvents.EPOLLIN, 0);
        epoll.Add(terminate.FileDescriptor, EpollEvents.EPOLLIN, 0);
        epoll.Add(control.FileDescriptor, EpollEvents.EPOLLIN, 1);

        int timeout = role.Turn();
        ServiceManager.Ready(hypervisor.IsControlDomain ? "introducing guests" : "offering this guest");
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

            faults.Drain();
            timeout = role.Turn();
        }

        void Terminate(PosixSignalContext context)
        {
            context.Cancel = true;
            terminate.Signal();
        }
    }

    private static void WriteStatus(Utf8JsonWriter json, IRole role, IdleMode mode)
    {
        json.WriteString("version", Version);
        json.WriteNumber("pid", Environment.ProcessId);
        json.WriteString("mode", mode.ToString().ToLowerInvariant());
        json.WriteNumber("garbage_collections", GC.CollectionCount(0));
        json.WriteNumber("resident_bytes", Environment.WorkingSet);
        role.WriteStatus(json);
    }
}
