using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Diagnostics;
using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;

namespace XenLoop.Tests.Unit;

/// <summary>A fresh network namespace, alive as long as the thread that lives in it. What is opened there can be used from any thread.</summary>
internal sealed class NetworkNamespace : IDisposable
{
    private const int CLONE_NEWNET = 0x40000000;

    private readonly BlockingCollection<Action> _work = [];
    private readonly Thread _thread;

    public NetworkNamespace()
    {
        TaskCompletionSource entered = new();
        _thread = new Thread(() =>
        {
            if (LibC.unshare(CLONE_NEWNET) != 0)
            {
                entered.SetException(new InvalidOperationException(
                    $"These tests make network namespaces and need root: unshare(CLONE_NEWNET) says {Errno.Describe(LibC.errno)}."));
                return;
            }
            entered.SetResult();
            foreach (Action action in _work.GetConsumingEnumerable())
            {
                action();
            }
        })
        { IsBackground = true, Name = "netns" };
        _thread.Start();
        entered.Task.GetAwaiter().GetResult();
    }

    public T Run<T>(Func<T> function)
    {
        T result = default!;
        ExceptionDispatchInfo? failure = null;
        using ManualResetEventSlim done = new();
        _work.Add(() =>
        {
            try
            {
                result = function();
            }
            catch (Exception exception)
            {
                failure = ExceptionDispatchInfo.Capture(exception);
            }
            done.Set();
        });
        done.Wait();
        failure?.Throw();
        return result;
    }

    public void Run(Action action) => Run(() =>
    {
        action();
        return 0;
    });

    /// <summary>Runs a program in the namespace; it must succeed.</summary>
    public void Command(string program, params string[] arguments) => Run(() =>
    {
        ProcessStartInfo start = new(program, arguments) { RedirectStandardError = true };
        using Process process = Process.Start(start)!;
        string said = process.StandardError.ReadToEnd();
        process.WaitForExit();
        if (process.ExitCode != 0)
        {
            throw new InvalidOperationException($"{program} {string.Join(' ', arguments)}: {said}");
        }
    });

    public void Dispose()
    {
        _work.CompleteAdding();
        _thread.Join();
        _work.Dispose();
    }
}

/// <summary>
/// A guest as far as the divert can tell: a namespace whose eth0 is a TAP. What the guest sends by way of "netfront"
/// is read from <see cref="Eth0"/>, and what is written there has arrived from the wire.
/// </summary>
internal sealed unsafe class TestGuest : IDisposable
{
    public TestGuest(string mac, string address)
    {
        Mac = MacAddress.Parse(mac);
        Address = address;
        Namespace = new NetworkNamespace();
        Eth0 = Namespace.Run(() => TapDevice.Open("eth0", uso: TapDevice.ProbeUso()));
        Links = Namespace.Run(() => new Links());
        TrafficControl = Namespace.Run(() => new TrafficControl());
        Links.DisableAddressGeneration(Eth0.Index);
        Links.SetMac(Eth0.Index, Mac);
        Links.SetQueueLength(Eth0.Index, 1000);
        Links.SetUp(Eth0.Index);
        Namespace.Command("ip", "address", "add", $"{address}/24", "dev", "eth0");
    }

    public NetworkNamespace Namespace { get; }

    public TapDevice Eth0 { get; }

    public Links Links { get; }

    public TrafficControl TrafficControl { get; }

    public MacAddress Mac { get; }

    public string Address { get; }

    /// <summary>No ARP in these tests.</summary>
    public void KnowNeighbour(TestGuest other) =>
        Namespace.Command("ip", "neigh", "add", other.Address, "lladdr", other.Mac.ToString(), "dev", "eth0");

    /// <summary>TCP makes smaller super-packets where round trips are slow, as on an emulated or busy machine: not here (Linux 5.18 and later).</summary>
    public void SendFullSuperPackets() => Namespace.Run(() =>
    {
        const string Setting = "/proc/sys/net/ipv4/tcp_tso_rtt_log";
        if (File.Exists(Setting))
        {
            File.WriteAllText(Setting, "30");
        }
    });

    public TapDevice OpenChannelTap(string name = "xl1.0")
    {
        TapDevice tap = Namespace.Run(() => TapDevice.Open(name, uso: TapDevice.ProbeUso()));
        tap.BringUp(Links, 1500, DivertSlot.QueueLength);
        return tap;
    }

    /// <summary>Sends a frame out of eth0 as the guest's own stack would, and as a bridge would when the source is foreign.</summary>
    public void Send(MacAddress destination, MacAddress source, byte mark = 0, int length = 60)
    {
        byte[] frame = Frame.Ethernet(destination, source, 0x88B5, new byte[length - Frame.EthernetHeader]);
        frame[^1] = mark;
        Send(frame);
    }

    /// <param name="frame">Whole.</param>
    /// <param name="device">eth0, if not given.</param>
    public void Send(byte[] frame, TapDevice? device = null) => Namespace.Run(() =>
    {
        const int AF_PACKET = 17;
        int fd = LibC.socket(AF_PACKET, LibC.SOCK_RAW | LibC.SOCK_CLOEXEC, 0);
        if (fd < 0)
        {
            throw new NativeException("socket", "AF_PACKET", LibC.errno);
        }
        using SafeFd owner = new(fd);
        sockaddr_ll address = new() { sll_family = AF_PACKET, sll_ifindex = (device ?? Eth0).Index };
        if (LibC.bind(fd, (sockaddr*)&address, sizeof(sockaddr_ll)) != 0)
        {
            throw new NativeException("bind", "eth0", LibC.errno);
        }
        fixed (byte* pointer = frame)
        {
            if (LibC.send(fd, pointer, frame.Length, 0) != frame.Length)
            {
                throw new NativeException("send", "eth0", LibC.errno);
            }
        }
    });

    /// <summary>Sends a datagram that a qdisc is to hold until a time, from now (SO_TXTIME, CLOCK_MONOTONIC).</summary>
    public void SendAt(string address, TimeSpan later) => Namespace.Run(() =>
    {
        const int SOL_SOCKET = 1, SO_TXTIME = 61;
        using System.Net.Sockets.Socket socket = new(
            System.Net.Sockets.AddressFamily.InterNetwork, System.Net.Sockets.SocketType.Dgram, System.Net.Sockets.ProtocolType.Udp);
        socket.Connect(System.Net.IPAddress.Parse(address), 7000);
        // struct sock_txtime: the clock, CLOCK_MONOTONIC, and flags.
        ulong clock = 1;
        if (LibC.setsockopt((int)socket.Handle, SOL_SOCKET, SO_TXTIME, &clock, sizeof(ulong)) != 0)
        {
            throw new NativeException("setsockopt(SO_TXTIME)", address, LibC.errno);
        }

        byte data = 1;
        iovec vector = new() { iov_base = &data, iov_len = 1 };
        // struct cmsghdr: length, level, type, and the time in nanoseconds.
        ulong* control = stackalloc ulong[3];
        control[0] = 24;
        control[1] = SOL_SOCKET | ((ulong)SO_TXTIME << 32);
        // .NET's clock is CLOCK_MONOTONIC, in nanoseconds.
        control[2] = (ulong)(Stopwatch.GetTimestamp() + (long)later.TotalNanoseconds);
        msghdr message = new() { msg_iov = &vector, msg_iovlen = 1, msg_control = control, msg_controllen = 24 };
        if (LibC.sendmsg((int)socket.Handle, &message, 0) != 1)
        {
            throw new NativeException("sendmsg", address, LibC.errno);
        }
    });

    public void Dispose()
    {
        TrafficControl.Dispose();
        Links.Dispose();
        Eth0.Dispose();
        Namespace.Dispose();
    }

    [StructLayout(LayoutKind.Sequential)]
    private struct sockaddr_ll
    {
        public ushort sll_family;
        public ushort sll_protocol;
        public int sll_ifindex;
        public ushort sll_hatype;
        public byte sll_pkttype;
        public byte sll_halen;
        public ulong sll_addr;
    }
}

/// <summary>Reads and writes TAPs, and makes frames.</summary>
internal static unsafe class Frame
{
    public const int EthernetHeader = 14;
    public const int Maximum = TapDevice.VnetHeaderSize + EthernetHeader + 65536;
    private const int EAGAIN = 11;

    /// <summary>The next frame with its virtio_net_hdr, or null when none comes in time.</summary>
    public static byte[]? Read(TapDevice tap, int milliseconds = 100)
    {
        byte[] buffer = new byte[Maximum];
        long begin = Stopwatch.GetTimestamp();
        while (true)
        {
            int length = TryRead(tap, buffer);
            if (length > 0)
            {
                return buffer[..length];
            }
            if (Stopwatch.GetElapsedTime(begin).TotalMilliseconds >= milliseconds)
            {
                return null;
            }
            Thread.Sleep(1);
        }
    }

    /// <summary>Bytes read, 0 when nothing is there.</summary>
    public static int TryRead(TapDevice tap, Span<byte> buffer)
    {
        fixed (byte* pointer = buffer)
        {
            int length = (int)LibC.read(tap.FileDescriptor, pointer, buffer.Length);
            return length >= 0 ? length : LibC.errno == EAGAIN ? 0 : throw new NativeException("read", tap.Name, LibC.errno);
        }
    }

    /// <summary>False when the kernel refuses the frame.</summary>
    public static bool Write(TapDevice tap, ReadOnlySpan<byte> frame)
    {
        fixed (byte* pointer = frame)
        {
            return LibC.write(tap.FileDescriptor, pointer, frame.Length) == frame.Length;
        }
    }

    public static byte[] Ethernet(MacAddress destination, MacAddress source, ushort type, ReadOnlySpan<byte> payload)
    {
        byte[] frame = new byte[EthernetHeader + payload.Length];
        destination.CopyTo(frame);
        source.CopyTo(frame.AsSpan(6));
        BinaryPrimitives.WriteUInt16BigEndian(frame.AsSpan(12), type);
        payload.CopyTo(frame.AsSpan(EthernetHeader));
        return frame;
    }

    /// <summary>A UDP datagram over IPv4 behind an empty virtio_net_hdr, as a TAP takes it.</summary>
    public static byte[] Udp(TestGuest from, TestGuest to, ushort port, ReadOnlySpan<byte> data)
    {
        byte[] packet = new byte[28 + data.Length];
        packet[0] = 0x45;
        BinaryPrimitives.WriteUInt16BigEndian(packet.AsSpan(2), (ushort)packet.Length);
        packet[8] = 64;
        packet[9] = 17;
        System.Net.IPAddress.Parse(from.Address).TryWriteBytes(packet.AsSpan(12), out _);
        System.Net.IPAddress.Parse(to.Address).TryWriteBytes(packet.AsSpan(16), out _);
        uint sum = 0;
        for (int i = 0; i < 20; i += 2)
        {
            sum += BinaryPrimitives.ReadUInt16BigEndian(packet.AsSpan(i));
        }
        sum = (sum & 0xFFFF) + (sum >> 16);
        BinaryPrimitives.WriteUInt16BigEndian(packet.AsSpan(10), (ushort)~(sum + (sum >> 16)));
        BinaryPrimitives.WriteUInt16BigEndian(packet.AsSpan(20), port);
        BinaryPrimitives.WriteUInt16BigEndian(packet.AsSpan(22), port);
        BinaryPrimitives.WriteUInt16BigEndian(packet.AsSpan(24), (ushort)(8 + data.Length));
        // A UDP checksum of zero means none.
        data.CopyTo(packet.AsSpan(28));
        return [.. new byte[TapDevice.VnetHeaderSize], .. Ethernet(to.Mac, from.Mac, 0x0800, packet)];
    }
}

/// <summary>Carries frames between pairs of TAPs on a thread of its own: the wire, or the daemons of a channel.</summary>
internal sealed class FramePump : IDisposable
{
    private readonly Epoll _epoll = new();
    private readonly Thread _thread;
    private readonly (TapDevice From, TapDevice To, Action? Drained)[] _ways;
    private volatile bool _stop;
    private long _largest;
    private long _frames;

    /// <param name="ways">From, to, and what to do when <c>From</c> is drained.</param>
    public FramePump(params (TapDevice From, TapDevice To, Action? Drained)[] ways)
    {
        _ways = ways;
        for (int i = 0; i < ways.Length; i++)
        {
            _epoll.Add(ways[i].From.FileDescriptor, EpollEvents.EPOLLIN, (ulong)i);
        }
        _thread = new Thread(Run) { IsBackground = true, Name = "pump" };
        _thread.Start();
    }

    /// <summary>Bytes of the largest frame, without its virtio_net_hdr.</summary>
    public int Largest => (int)Volatile.Read(ref _largest);

    public long Frames => Volatile.Read(ref _frames);

    public void Dispose()
    {
        _stop = true;
        _thread.Join();
        _epoll.Dispose();
    }

    private void Run()
    {
        byte[] buffer = new byte[Frame.Maximum];
        Span<epoll_event> ready = stackalloc epoll_event[8];
        while (!_stop)
        {
            int count = _epoll.Wait(ready, 20);
            for (int i = 0; i < count; i++)
            {
                (TapDevice from, TapDevice to, Action? drained) = _ways[(int)ready[i].data.u64];
                int length;
                while ((length = Frame.TryRead(from, buffer)) > 0)
                {
                    _largest = Math.Max(_largest, length - TapDevice.VnetHeaderSize);
                    _frames++;
                    _ = Frame.Write(to, buffer.AsSpan(0, length));
                }
                drained?.Invoke();
            }
        }
    }
}
