using System.Reflection;
using System.Runtime.InteropServices;
using System.Text.Json;
using Tmds.Linux;
using XenLoop.Interop.Linux;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Loop;

/// <summary>The control thread: one epoll over what the role waits for, the data loop's faults, the control socket and signals.</summary>
internal sealed class ControlLoop : IDisposable
{
    /// <summary>Of the status: another one when a member goes, or means something else (docs/man/xenloop.1.md).</summary>
    private const int StatusSchema = 1;

    private const ulong ControlToken = 1;

    // Until the process is gone: a second SIGTERM, while the channels close, must not end it as if none of this had been arranged.
    private static PosixSignalRegistration[] _signals = [];

    private readonly EventFd _terminate = new();
    private readonly EventFd _reload = new();
    private readonly ControlSocket _control;
    private readonly Func<Configuration> _load;
    private readonly string _mode;
    private readonly TimeProvider _clock;
    private Configuration _configuration;

    /// <summary>Listens for signals and on the control socket: a second daemon is refused before it can touch what the first one has in XenStore.</summary>
    /// <param name="configuration">In force until the first reload.</param>
    /// <param name="load">Reads the configuration anew.</param>
    /// <param name="mode">For the status: what the data loop does when idle.</param>
    /// <param name="clock">The monotonic clock, the same as the role's.</param>
    /// <exception cref="IOException">Another daemon runs, or the socket's directory is not writable.</exception>
    public ControlLoop(Configuration configuration, Func<Configuration> load, string mode, TimeProvider clock)
    {
        (_configuration, _load, _mode, _clock) = (configuration, load, mode, clock);
        _signals =
        [
            PosixSignalRegistration.Create(PosixSignal.SIGHUP, context => Request(context, _reload)),
            PosixSignalRegistration.Create(PosixSignal.SIGTERM, context => Request(context, _terminate)),
            PosixSignalRegistration.Create(PosixSignal.SIGINT, context => Request(context, _terminate)),
        ];
        _control = new ControlSocket(ControlSocket.ServicePath);
    }

    public static string Version => typeof(ControlLoop).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion ?? "unknown";

    /// <summary>Signalled when the data loop has given a channel up: a turn is due.</summary>
    public EventFd Faults { get; } = new();

    /// <summary>Until SIGTERM or SIGINT.</summary>
    public void Run(IRole role)
    {
        role.Register(_control);
        _control.Register("status", (json, _) => WriteStatus(json, role));
        _control.Register("reload", (json, _) =>
        {
            if (Reload(role) is { } error)
            {
                json.WriteString("error", error);
            }
            else
            {
                json.WriteString("reloaded", _configuration.Path);
            }
        });
        using Epoll epoll = new();
        foreach (int descriptor in (int[])[.. role.Descriptors, Faults.FileDescriptor, _terminate.FileDescriptor, _reload.FileDescriptor])
        {
            epoll.Add(descriptor, EpollEvents.EPOLLIN, 0);
        }

        epoll.Add(_control.FileDescriptor, EpollEvents.EPOLLIN, ControlToken);
        GarbagePolicy garbage = new();
        Deadline due = role.Turn();
        ServiceManager.Ready(role.Activity);
        Deadline alive = NextSign();
        Span<epoll_event> events = stackalloc epoll_event[4];
        while (true)
        {
            garbage.BeforeSleep(due.In(_clock.Now()));
            int count = epoll.Wait(events, due.Or(alive).Timeout(_clock.Now()));
            for (int i = 0; i < count; i++)
            {
                if (events[i].data.u64 == ControlToken)
                {
                    _control.Serve();
                }
            }

            if (_terminate.Drain())
            {
                ServiceManager.Stopping();
                return;
            }

            if (_reload.Drain())
            {
                _ = Reload(role);
            }

            Faults.Drain();
            due = role.Turn();
            garbage.AfterTurn();
            if (alive.IsDue(_clock.Now()))
            {
                // A data thread that hangs holds this one here, and the service manager ends both.
                role.AwaitThreads();
                ServiceManager.Alive();
                alive = NextSign();
            }
        }

        Deadline NextSign() =>
            ServiceManager.AliveInterval == TimeSpan.MaxValue ? Deadline.Never : Deadline.At(_clock.Now() + ServiceManager.AliveInterval);
    }

    public void Dispose()
    {
        _control.Dispose();
        // Not the events of the signals, which may still come.
        Faults.Dispose();
    }

    private static void Request(PosixSignalContext context, EventFd wanted)
    {
        context.Cancel = true;
        wanted.Signal();
    }

    /// <summary>A turn follows each call.</summary>
    /// <returns>What kept the new configuration from coming into force; null when it is.</returns>
    private string? Reload(IRole role)
    {
        try
        {
            _configuration = _load();
        }
        catch (ConfigurationException e)
        {
            string message = $"{e.Message}; the configuration in force stays";
            Log.Error(message);
            ServiceManager.Status($"{role.Activity}; reload failed: {message}");
            return message;
        }

        role.Configure(_configuration);
        Log.Info($"configuration reloaded: {_configuration.Path ?? $"the defaults, for there is no {Configuration.DefaultPath}"}");
        ServiceManager.Status(role.Activity);
        return null;
    }

    private void WriteStatus(Utf8JsonWriter json, IRole role)
    {
        json.WriteNumber("schema", StatusSchema);
        json.WriteString("version", Version);
        json.WriteNumber("pid", Environment.ProcessId);
        json.WriteString("mode", _mode);
        json.WriteString("configuration", _configuration.Path);
        json.WriteNumber("garbage_collections", GC.CollectionCount(0));
        json.WriteNumber("resident_bytes", Environment.WorkingSet);
        role.WriteStatus(json);
    }
}
