using System.Buffers.Binary;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using XenLoop.Lab;

namespace XenLoop.Tests.Lab;

/// <summary>What became of a stream of numbered datagrams.</summary>
/// <param name="Sent">Datagrams.</param>
/// <param name="Lost">Never came.</param>
/// <param name="Twice">Came more than once.</param>
/// <param name="Late">Came after one that was sent later.</param>
/// <param name="Lateness">By how many places at most.</param>
/// <param name="LongestGap">Datagrams on end that never came, at most.</param>
internal readonly record struct DatagramAccount(int Sent, int Lost, int Twice, int Late, int Lateness, int LongestGap);

/// <summary>A stream of numbered UDP datagrams from one guest to another until it is asked how it went.</summary>
internal sealed class NumberedDatagrams
{
    private const int SO_RCVBUFFORCE = 33;
    private const int ReceiveBufferBytes = 64 << 20;
    private const int QuietMilliseconds = 700;

    private readonly Socket _sender;
    private readonly Socket _receiver;
    private readonly int _bytes;
    private readonly int _perSecond;
    private readonly Task<int> _sent;
    private readonly Task<List<int>> _received;
    private volatile bool _stop;
    private volatile int _count;

    private NumberedDatagrams(Socket sender, Socket receiver, int bytes, int perSecond)
    {
        (_sender, _receiver, _bytes, _perSecond) = (sender, receiver, bytes, perSecond);
        _received = Task.Factory.StartNew(Receive, TaskCreationOptions.LongRunning);
        _sent = Task.Factory.StartNew(Send, TaskCreationOptions.LongRunning);
    }

    /// <summary>Datagrams that have arrived.</summary>
    public int Received => _count;

    /// <param name="from">The sender.</param>
    /// <param name="to">The receiver.</param>
    /// <param name="bytes">Of each datagram.</param>
    /// <param name="perSecond">0 for as fast as the sender is let.</param>
    public static NumberedDatagrams Start(LabGuest from, LabGuest to, int bytes = 200, int perSecond = 3000)
    {
        Socket receiver = Open(to);
        receiver.SetRawSocketOption(1, SO_RCVBUFFORCE, BitConverter.GetBytes(ReceiveBufferBytes));
        receiver.Bind(new IPEndPoint(to.IPv4, 0));
        Socket sender = Open(from);
        sender.Connect(receiver.LocalEndPoint!);
        return new(sender, receiver, bytes, perSecond);

        static Socket Open(LabGuest guest) => Namespaces.Run(guest, () => new Socket(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp));
    }

    public async Task<DatagramAccount> StopAsync()
    {
        _stop = true;
        int sent = await _sent;
        List<int> received = await _received;
        _receiver.Dispose();
        bool[] seen = new bool[sent];
        int top = -1, late = 0, lateness = 0, twice = 0;
        foreach (int number in received)
        {
            if (number < top)
            {
                late++;
                lateness = Math.Max(lateness, top - number);
            }

            top = Math.Max(top, number);
            twice += seen[number] ? 1 : 0;
            seen[number] = true;
        }

        int gap = 0, longest = 0;
        foreach (bool came in seen)
        {
            gap = came ? 0 : gap + 1;
            longest = Math.Max(longest, gap);
        }

        return new(sent, seen.Count(s => !s), twice, late, lateness, longest);
    }

    private int Send()
    {
        using Socket socket = _sender;
        byte[] datagram = new byte[_bytes];
        Stopwatch watch = Stopwatch.StartNew();
        int number = 0;
        while (!_stop)
        {
            if (_perSecond != 0 && number > watch.Elapsed.TotalSeconds * _perSecond)
            {
                Thread.Sleep(1);
                continue;
            }

            BinaryPrimitives.WriteInt32LittleEndian(datagram, number++);
            socket.Send(datagram);
        }

        return number;
    }

    private List<int> Receive()
    {
        List<int> numbers = [];
        byte[] buffer = new byte[65536];
        _receiver.ReceiveTimeout = QuietMilliseconds;
        while (true)
        {
            try
            {
                _receiver.Receive(buffer);
                numbers.Add(BinaryPrimitives.ReadInt32LittleEndian(buffer));
                _count = numbers.Count;
            }
            catch (SocketException e) when (e.SocketErrorCode == SocketError.TimedOut)
            {
                if (_stop)
                {
                    return numbers;
                }
            }
        }
    }
}
