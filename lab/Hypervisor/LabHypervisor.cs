using System.Runtime.InteropServices;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using static XenLoop.Interop.Errno;

namespace XenLoop.Lab;

/// <summary>
/// The lab's hypervisor: a client of its broker, which hands out memfds for grants and eventfds for event channels and
/// knows who may have which. XenStore is the real client library, led to the lab's server by XENSTORED_PATH.
/// </summary>
internal sealed unsafe class LabHypervisor : IHypervisor, IGrantTable, IEventChannels
{
    private readonly UnixSocket _broker;
    private readonly Lock _lock = new();
    private readonly byte[] _buffer = new byte[LabProtocol.MessageMax];
    private readonly SafeFd[] _descriptors = new SafeFd[UnixSocket.DescriptorsMax];
    private bool _disposed;

    /// <param name="socket">The broker's socket for this domain.</param>
    public LabHypervisor(string socket)
    {
        _broker = UnixSocket.Connect(socket);
        Domid = (ushort)Call("hello", socket, new() { Operation = LabOperation.Hello }).Value;
    }

    public ushort Domid { get; }

    public bool IsControlDomain => Domid == 0;

    public IGrantTable Grants => this;

    public IEventChannels EventChannels => this;

    /// <summary>Of the lab that this process belongs to.</summary>
    /// <exception cref="NativeException">It belongs to none.</exception>
    public static LabHypervisor Open() =>
        Environment.GetEnvironmentVariable(LabProtocol.SocketVariable) is { Length: > 0 } socket
            ? new LabHypervisor(socket)
            : throw new NativeException("getenv", LabProtocol.SocketVariable, ENOENT, "This daemon runs in the lab only; see ./demo");

    public XenStore OpenXenStore() => XenStore.Open();

    // Not /sys/class/net: it shows the network namespace that mounted it, which need not be this process's.
    public string? FindVifInterface(int vif)
    {
        string name = $"eth{vif}";
        foreach (string line in File.ReadLines("/proc/net/dev"))
        {
            if (line.AsSpan().TrimStart().StartsWith($"{name}:"))
            {
                return name;
            }
        }

        return null;
    }

    public SharedMemory Share(ushort peer, int pages, DeathNotice? onDeath = null)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(pages);
        lock (_lock)
        {
            LabRequest request = new() { Operation = LabOperation.Share, Peer = peer, Argument = (uint)pages };
            SetNotice(ref request, onDeath, pages);
            LabReply reply = Call("share", $"{pages} pages for domain {peer}", request);
            uint[] references = MemoryMarshal.Cast<byte, uint>(_buffer.AsSpan(sizeof(LabReply)))[..pages].ToArray();
            using SafeFd memory = _descriptors[0];
            MappedMemory mapped = MappedMemory.Map(memory.Number, (long)pages * LabProtocol.PageSize, "a memfd");
            return new Memory(this, mapped, references, LabOperation.EndShare, reply.Value);
        }
    }

    public SharedMemory Map(ushort peer, ReadOnlySpan<uint> references, DeathNotice? onDeath = null)
    {
        ArgumentOutOfRangeException.ThrowIfZero(references.Length);
        lock (_lock)
        {
            LabRequest request = new() { Operation = LabOperation.Map, Peer = peer, Count = (uint)references.Length };
            SetNotice(ref request, onDeath, references.Length);
            string subject = $"{references.Length} pages of domain {peer}";
            LabReply reply = Call("map", subject, request, references);
            MappedMemory mapped = MappedMemory.Reserve((long)references.Length * LabProtocol.PageSize);
            long next = 0;
            for (int i = 0; i < reply.Count; i++)
            {
                LabRun run = Receive<LabRun>("map", subject);
                using SafeFd memory = _descriptors[0];
                long length = (long)run.Pages * LabProtocol.PageSize;
                mapped.Fill(next, memory.Number, (long)run.FirstPage * LabProtocol.PageSize, length, "a memfd");
                next += length;
            }

            return new Memory(this, mapped, references.ToArray(), LabOperation.Unmap, reply.Value);
        }
    }

    public EventChannel AllocateUnbound(ushort remote)
    {
        lock (_lock)
        {
            return new Channel(this, Call(
                "allocate unbound port", $"domain {remote}", new() { Operation = LabOperation.AllocateUnbound, Peer = remote }));
        }
    }

    public EventChannel BindInterdomain(ushort remote, uint remotePort)
    {
        lock (_lock)
        {
            return new Channel(this, Call(
                "bind interdomain port",
                $"port {remotePort} of domain {remote}",
                new() { Operation = LabOperation.BindInterdomain, Peer = remote, Argument = remotePort }));
        }
    }

    public bool IsDomainAlive(ushort domid)
    {
        lock (_lock)
        {
            return Call("is domain alive", $"domain {domid}", new() { Operation = LabOperation.IsDomainAlive, Peer = domid }).Value != 0;
        }
    }

    /// <summary>Drops the connection: whatever is still open ends as at the death of the process, death notices included.</summary>
    public void Dispose()
    {
        lock (_lock)
        {
            _disposed = true;
            _broker.Dispose();
        }
    }

    private static void SetNotice(ref LabRequest request, DeathNotice? onDeath, int pages)
    {
        request.NoticeOffset = LabProtocol.NoNotice;
        if (onDeath is { } notice)
        {
            ArgumentOutOfRangeException.ThrowIfNotEqual(pages, 1);
            request.NoticeOffset = (uint)notice.ByteOffset;
            request.NoticePort = notice.Channel.Port;
        }
    }

    private LabReply Call(string call, string subject, LabRequest request, ReadOnlySpan<uint> references = default)
    {
        if (references.Length > LabProtocol.PagesMax)
        {
            throw new NativeException(call, subject, EINVAL);
        }

        MemoryMarshal.Write(_buffer, request);
        MemoryMarshal.AsBytes(references).CopyTo(_buffer.AsSpan(sizeof(LabRequest)));
        _broker.Send(_buffer.AsSpan(0, sizeof(LabRequest) + (references.Length * sizeof(uint))));
        LabReply reply = Receive<LabReply>(call, subject);
        return reply.Errno == 0 ? reply : throw new NativeException(call, subject, reply.Errno);
    }

    private T Receive<T>(string call, string subject)
        where T : unmanaged
    {
        int length = _broker.Receive(_buffer, _descriptors, out _);
        return length >= sizeof(T)
            ? MemoryMarshal.Read<T>(_buffer)
            : throw new NativeException(call, subject, EPIPE, "The lab has ended");
    }

    /// <summary>Tells the broker that something has ended. A broker that is gone has ended it already.</summary>
    private void Release(LabOperation operation, uint number)
    {
        lock (_lock)
        {
            if (_disposed)
            {
                return;
            }

            try
            {
                Call("release", $"{operation} {number}", new() { Operation = operation, Argument = number });
            }
            catch (NativeException)
            {
                // The domain was destroyed while its daemon ran.
            }
        }
    }

    private sealed class Memory : SharedMemory
    {
        private readonly LabHypervisor _lab;
        private readonly MappedMemory _mapped;
        private readonly LabOperation _end;
        private readonly uint _number;
        private bool _disposed;

        public Memory(LabHypervisor lab, MappedMemory mapped, uint[] references, LabOperation end, uint number)
        {
            Address = mapped.Address;
            Length = references.Length * LabProtocol.PageSize;
            _mapped = mapped;
            References = references;
            _lab = lab;
            _end = end;
            _number = number;
        }

        public override void SetDeathNotice(DeathNotice? notice)
        {
            lock (_lab._lock)
            {
                LabRequest request = new() { Operation = LabOperation.SetNotice, Argument = _number };
                SetNotice(ref request, notice, References.Length);
                _lab.Call("set notice", $"share {_number}", request);
            }
        }

        public override void Dispose()
        {
            if (!_disposed)
            {
                _disposed = true;
                _mapped.Dispose();
                _lab.Release(_end, _number);
            }
        }
    }

    private sealed class Channel : EventChannel
    {
        private readonly LabHypervisor _lab;
        private readonly EventFd _mine;
        private readonly EventFd _peers;
        private bool _disposed;

        public Channel(LabHypervisor lab, LabReply reply)
        {
            _lab = lab;
            _mine = new EventFd(lab._descriptors[0]);
            _peers = new EventFd(lab._descriptors[1]);
            Port = reply.Value;
            FileDescriptor = _mine.FileDescriptor;
        }

        public override void Notify() => _peers.Signal();

        public override void Acknowledge() => _mine.Drain();

        public override void Dispose()
        {
            if (!_disposed)
            {
                _disposed = true;
                _lab.Release(LabOperation.Close, Port);
                _mine.Dispose();
                _peers.Dispose();
            }
        }
    }
}
