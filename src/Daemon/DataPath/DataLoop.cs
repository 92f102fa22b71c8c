using System.Runtime.ExceptionServices;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>
/// The one thread that serves the data path of every channel: pump, look again for a while, arm the event indices,
/// sleep in epoll. The control thread has it do something through <see cref="Invoke"/>, which the loop looks for at each
/// turn with one volatile read; what it tells of a path, <see cref="ChannelPath.Fault"/> and <see cref="ChannelPath.Snapshot"/>, is read by any thread.
/// </summary>
internal sealed unsafe class DataLoop : IDisposable
{
    // A sleep while a peer has not yet taken everything, or a TAP not let everything through: see ChannelPath.AwaitsAnything.
    private const int AwaitPeerMilliseconds = 50;

    // Between two looks at the peers' progress without a sleep.
    private const int LookMilliseconds = 10;

    // Turns of spinning between two looks at epoll (events, TAPs).
    private const int TurnsPerGlance = 1024;

    private const ulong WakeToken = ulong.MaxValue;

    private readonly Epoll _epoll = new();
    private readonly EventFd _wake = new();
    private readonly IdleStrategy _idle;
    private readonly BulkWeight _weight = new();
    private readonly ApplicationTurn _turn;
    private readonly EventFd _faults;
    private readonly ManualResetEventSlim _commandDone = new();
    private readonly Thread _thread;
    private readonly ChannelPath?[] _byId;
    private ChannelPath[] _paths = [];
    private Action? _command;
    private Exception? _commandError;
    private ChannelPath? _current;
    private long _lookedAt;
    private bool _stop;
    private bool _tellOfTraffic;
    private bool _traffic;

    /// <param name="mode">What to do when idle.</param>
    /// <param name="capacity">Channels at the same time.</param>
    /// <param name="faults">Signalled when a path was given up, see <see cref="ChannelPath.Fault"/>, and for <see cref="TellOfTraffic"/>.</param>
    /// <param name="clock">The machine's, if not given.</param>
    public DataLoop(IdleMode mode, int capacity, EventFd faults, IdleClock? clock = null)
    {
        _byId = new ChannelPath?[capacity];
        clock ??= new IdleClock();
        _idle = new IdleStrategy(mode, clock);
        _turn = new ApplicationTurn(clock);
        _faults = faults;
        _epoll.Add(_wake.FileDescriptor, EpollEvents.EPOLLIN, WakeToken);
        // A small stack: the loop is shallow, and resident memory counts in minimal guests.
        _thread = new Thread(Run, 256 * 1024) { Name = "data", IsBackground = true };
        _thread.Start();
    }

    /// <summary>Runs on the data loop's thread, between two turns; returns when it has run, throws what it threw.</summary>
    public void Invoke(Action command)
    {
        _commandDone.Reset();
        Volatile.Write(ref _command, command);
        _wake.Signal();
        _commandDone.Wait();
        if (_commandError is { } error)
        {
            _commandError = null;
            ExceptionDispatchInfo.Throw(error);
        }
    }

    public void Add(ChannelPath path) => Invoke(() =>
    {
        int id = Array.IndexOf(_byId, null);
        if (id < 0)
        {
            throw new InvalidOperationException($"no more than {_byId.Length} channels");
        }

        // The TAP edge-triggered: it is read until empty or until the ring is full, and a full ring must not spin us.
        _epoll.Add(path.TapDescriptor, EpollEvents.EPOLLIN | EpollEvents.EPOLLET, (ulong)id << 1);
        try
        {
            _epoll.Add(path.EventDescriptor, EpollEvents.EPOLLIN, ((ulong)id << 1) | 1);
        }
        catch (NativeException)
        {
            _epoll.Remove(path.TapDescriptor);
            throw;
        }

        _byId[id] = path;
        _paths = [.. _paths, path];
    });

    /// <summary>Has the next packets signalled, once. Each thread has one flag to set and one to clear, and a look that comes a turn late is no
    /// harm, so they need no order.</summary>
    public void TellOfTraffic() => Volatile.Write(ref _tellOfTraffic, true);

    /// <summary>True when packets have passed since <see cref="TellOfTraffic"/>, once.</summary>
    public bool TakeTraffic()
    {
        bool traffic = Volatile.Read(ref _traffic);
        if (traffic)
        {
            Volatile.Write(ref _traffic, false);
        }

        return traffic;
    }

    /// <summary>Stops serving the path; afterwards its TAP, channel and memory may be released.</summary>
    public void Remove(ChannelPath path) => Invoke(() => Detach(path));

    /// <summary>Stops serving all that there are. Each is removed all the same.</summary>
    public void RemoveAll() => Invoke(() => Array.ForEach(_paths, Detach));

    public void Dispose()
    {
        Invoke(() => _stop = true);
        _thread.Join();
        _epoll.Dispose();
        _wake.Dispose();
        _commandDone.Dispose();
    }

    private void Run()
    {
        Scheduling.SetBatch();
        while (!_stop)
        {
            try
            {
                Serve();
            }
            catch (Exception e) when (_current is not null && e is PeerViolationException or PeerGoneException or NativeException or DeliveryException)
            {
                ChannelPath path = _current!;
                path.GiveUp(e);
                Detach(path);
                // Events of other paths that came with this one are lost, and a TAP's edge does not come again.
                foreach (ChannelPath other in _paths)
                {
                    other.TapReadable();
                }

                _faults.Signal();
            }
        }
    }

    private void Serve()
    {
        epoll_event* buffer = stackalloc epoll_event[64];
        Span<epoll_event> events = new(buffer, 64);
        int turns = 0;
        while (!_stop)
        {
            if (Volatile.Read(ref _command) is not null)
            {
                RunCommand();
                continue; // it may have been the last
            }

            bool worked = false;
            int packets = 0;
            uint received = 0;
            uint sent = 0;
            bool beside = _idle.PeersRunBeside;
            foreach (ChannelPath path in _paths)
            {
                // A turn for sixty paths whose peers keep them busy is long, and before a suspend there is a command for each.
                if (Volatile.Read(ref _command) is not null)
                {
                    break;
                }

                _current = path;
                worked |= path.Pump(tellAtOnce: beside);
                _weight.Received(path.BulkBurstBytes);
                packets += path.ReceivedBurstPackets;
                received += path.ReceivedBurstBytes;
                sent += path.SentBurstBytes;
            }

            if (Volatile.Read(ref _command) is not null)
            {
                continue;
            }

            if (worked)
            {
                _idle.Worked(received, sent);
                _turn.Received(packets, received, beside);
                if (Volatile.Read(ref _tellOfTraffic))
                {
                    Volatile.Write(ref _tellOfTraffic, false);
                    Volatile.Write(ref _traffic, true);
                    _faults.Signal();
                }

                // Events of peers that died, and TAPs of which nothing else tells, are not to wait for the end of the work.
                if (LookAtPeers())
                {
                    Wait(events, 0);
                }

                continue;
            }

            if (_idle.Spin())
            {
                _ = LookAtPeers();
                if (++turns % TurnsPerGlance == 0)
                {
                    Wait(events, 0);
                }

                continue;
            }

            if (!Arm())
            {
                continue;
            }

            _idle.FallsAsleep();
            Wait(events, BoundedByPeers() ? AwaitPeerMilliseconds : -1);
            _idle.Slept();
            foreach (ChannelPath path in _paths)
            {
                path.Disarm();
            }
        }
    }

    private bool Arm()
    {
        bool idle = true;
        foreach (ChannelPath path in _paths)
        {
            _current = path;
            idle &= path.Arm();
        }

        return idle;
    }

    /// <summary>Who does not sleep has to look for peers that do not move, and for what does not arrive, all the same. By the coarse clock, which
    /// is no system call: turns may be long where each gives way to others.</summary>
    /// <returns>True each time that it has looked.</returns>
    private bool LookAtPeers()
    {
        long now = Environment.TickCount64;
        if (now - _lookedAt < LookMilliseconds)
        {
            return false;
        }

        _lookedAt = now;
        _ = BoundedByPeers();
        return true;
    }

    private bool BoundedByPeers()
    {
        bool bounded = false;
        foreach (ChannelPath path in _paths)
        {
            _current = path;
            bounded |= path.AwaitsAnything();
        }

        return bounded;
    }

    private void Wait(Span<epoll_event> events, int timeoutMilliseconds)
    {
        _current = null;
        int count = _epoll.Wait(events, timeoutMilliseconds);
        for (int i = 0; i < count; i++)
        {
            ulong token = events[i].data.u64;
            if (token == WakeToken)
            {
                _wake.Drain();
                continue;
            }

            if (_byId[token >> 1] is not { } path)
            {
                continue; // removed meanwhile
            }

            _current = path;
            if ((token & 1) == 0)
            {
                path.TapReadable();
                continue;
            }

            path.EventArrived();
            if (path.PeerDied)
            {
                throw new PeerGoneException();
            }
        }
    }

    private void Detach(ChannelPath path)
    {
        int id = Array.IndexOf(_byId, path);
        if (id < 0)
        {
            return; // given up already
        }

        _byId[id] = null;
        _epoll.Remove(path.TapDescriptor);
        _epoll.Remove(path.EventDescriptor);
        _paths = [.. _paths.Where(p => p != path)];
    }

    private void RunCommand()
    {
        _current = null;
        try
        {
            _command!();
        }
        catch (Exception e)
        {
            _commandError = e;
        }

        Volatile.Write(ref _command, null);
        _commandDone.Set();
    }
}

/// <summary>The peer's daemon died: the kernel cleared its liveness byte and sent the event.</summary>
internal sealed class PeerGoneException() : Exception("the peer's daemon is gone");
