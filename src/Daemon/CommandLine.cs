using System.Globalization;
using System.Net.Sockets;
using XenLoop.DataPath;
using XenLoop.Dom0;
using XenLoop.Guest;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Ring;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop;

/// <summary>What the daemon is asked on its command line, whatever hypervisor its program has.</summary>
internal static class CommandLine
{
    private const int Failed = 1;
    private const int BadUsage = 2;

    /// <summary>EX_UNAVAILABLE of sysexits.h: not a Xen domain. The service does not start again at it.</summary>
    private const int NoHypervisor = 69;

    /// <summary>EX_CONFIG of sysexits.h. The service does not start again at it: the file must change first.</summary>
    private const int BadConfiguration = 78;

    private const string Usage = """
        usage: xenloopd [--config FILE] [--mode adaptive|event|poll] [--ring-kib N] [--wait]
               xenloopd --forget | --version | --help

        Lets Xen guests on one host exchange packets through shared memory. In Dom0 it introduces
        the guests to each other; in a guest it offers the guest and carries its packets.

          --config     the configuration file, /etc/xenloop/xenloopd.toml if there is one; see
                       xenloopd.toml(5); SIGHUP and "xenloop reload" read it again
          --mode       what to do when idle: spin a little, then sleep (adaptive, the default);
                       sleep at once (event); never sleep (poll: for dedicated CPUs only)
          --ring-kib   KiB of each of a channel's two rings: 128, 256, 512 or 1024 (the default)
          --wait       what is missing (xenstored, a driver, a library) may come yet: try again,
                       less and less often, instead of ending with an error
          --forget     remove what a daemon left in XenStore: in a guest its offer and channels,
                       in Dom0 all introductions; refused while a daemon runs
        """;

    /// <summary>The whole program.</summary>
    /// <param name="args">As the system gives them.</param>
    /// <param name="open">Opens the program's hypervisor.</param>
    /// <returns>The exit code.</returns>
    public static int Run(string[] args, Func<IHypervisor> open)
    {
        IdleMode mode = IdleMode.Adaptive;
        uint ringBytes = ControlPage.MaxRingBytes;
        string? file = null;
        bool forget = false;
        bool wait = false;
        for (int i = 0; i < args.Length; i++)
        {
            switch (args[i])
            {
                case "--version":
                    Console.WriteLine($"xenloopd {ControlLoop.Version}");
                    return 0;
                case "--help":
                    Console.WriteLine(Usage);
                    return 0;
                case "--config" when i + 1 < args.Length && args[i + 1].Length > 0:
                    // Not relative to a folder that whoever reads the status does not know.
                    file = Path.GetFullPath(args[++i]);
                    break;
                case "--forget":
                    forget = true;
                    break;
                case "--wait":
                    wait = true;
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
                    return BadUsage;
            }
        }

        if (wait && !forget)
        {
            Attempts.Await();
        }

        TimeSpan began = TimeProvider.System.Now();
        try
        {
            if (forget)
            {
                Forget(open);
            }
            else
            {
                Serve(open, file, mode, ringBytes);
            }

            return 0;
        }
        catch (ConfigurationException e)
        {
            Log.Error(e.Message);
            return BadConfiguration;
        }
        catch (NoHypervisorException e)
        {
            Log.Error(e.Message);
            return NoHypervisor;
        }
        catch (Exception e) when (IsOfTheMachine(e))
        {
            return wait && !forget ? Wait(e, TimeProvider.System.Now() - began) : Fail(e);
        }
    }

    /// <summary>What may come right without another daemon.</summary>
    private static bool IsOfTheMachine(Exception e) =>
        e is NativeException or IOException or UnauthorizedAccessException or SocketException or InvalidDataException or DllNotFoundException;

    private static int Fail(Exception e)
    {
        Log.Error(e.Message);
        return Failed;
    }

    private static int Wait(Exception e, TimeSpan lasted)
    {
        try
        {
            Attempts.Again(e.Message, lasted);
            return Failed;
        }
        catch (NativeException error)
        {
            return Fail(error);
        }
    }

    private static void Forget(Func<IHypervisor> open)
    {
        using IHypervisor hypervisor = open();
        // It would not know of it.
        ControlSocket.ThrowIfAnswered(ControlSocket.ServicePath);
        using XenStore xenStore = hypervisor.OpenXenStore();
        if (hypervisor.IsControlDomain)
        {
            Dom0.Forget.Run(xenStore);
        }
        else
        {
            Guest.Forget.Run(xenStore);
        }
    }

    private static void Serve(Func<IHypervisor> open, string? file, IdleMode mode, uint ringBytes)
    {
        Configuration configuration = Load(file);
        using IHypervisor hypervisor = open();
        using ControlLoop loop = new(configuration, () => Load(file), mode.ToString().ToLowerInvariant(), TimeProvider.System);
        using IRole role = hypervisor.IsControlDomain
            ? new Dom0Role(hypervisor, configuration, TimeProvider.System)
            : new GuestRole(hypervisor, configuration, mode, ringBytes, loop.Faults, TimeProvider.System);
        loop.Run(role);
    }

    private static Configuration Load(string? file) => file is null ? Configuration.LoadOrDefaults(Configuration.DefaultPath) : Configuration.Load(file);
}
