using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using XenLoop.Interop.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>
/// Echo requests from one vif to another by their link-local addresses, which reach all that is on a segment, whatever its
/// subnets. This process sends them: their times are known, and hundreds of pairs cost no process each.
/// </summary>
internal sealed class Echo : IDisposable
{
    private const byte EchoRequest = 128;
    private const byte EchoReply = 129;
    private const int HeaderBytes = 8;

    private static int _lastIdentifier;

    private readonly Socket _socket;
    private readonly ushort _identifier = (ushort)Interlocked.Increment(ref _lastIdentifier);
    private readonly HashSet<ushort> _replies = [];
    private ushort _sent;

    private Echo(Socket socket) => _socket = socket;

    /// <summary>Requests without an answer so far.</summary>
    public int Missing => _sent - Replies;

    public int Replies
    {
        get
        {
            Span<byte> packet = stackalloc byte[256];
            while (_socket.Poll(0, SelectMode.SelectRead))
            {
                // A raw socket gets whatever the peer says: other echoes' replies, and neighbour discovery.
                int length = _socket.Receive(packet);
                if (length >= HeaderBytes && packet[0] == EchoReply && Word(packet, 4) == _identifier)
                {
                    _replies.Add(Word(packet, 6));
                }
            }

            return _replies.Count;
        }
    }

    public static Echo Open(LabVif from, LabVif to) => new(Namespaces.Run(from.Guest, () =>
    {
        using Links links = new();
        long scope = links.FindLink(from.Interface)!.Index;
        Socket socket = new(AddressFamily.InterNetworkV6, SocketType.Raw, ProtocolType.IcmpV6);
        Stopwatch watch = Stopwatch.StartNew();
        while (!TryBind(socket, new(Scoped(from.LinkLocal, scope), 0)))
        {
            // The kernel gives a new interface its address when it gets round to it.
            Assert.True(watch.ElapsedMilliseconds < 3000, $"{from.Guest.Name} has no {from.LinkLocal} at {from.Interface}");
            Thread.Sleep(5);
        }

        socket.Connect(Scoped(to.LinkLocal, scope), 0);
        return socket;
    }));

    /// <summary>One request more.</summary>
    public void Send()
    {
        // What has arrived is taken, or hundreds of replies would fill the socket. The kernel fills in the checksum.
        _ = Replies;
        ushort sequence = ++_sent;
        _socket.Send([EchoRequest, 0, 0, 0, (byte)(_identifier >> 8), (byte)_identifier, (byte)(sequence >> 8), (byte)sequence]);
    }

    /// <summary>Sends at this rate for so long.</summary>
    public async Task SendAsync(double perSecond, double seconds)
    {
        using PeriodicTimer timer = new(TimeSpan.FromSeconds(1 / perSecond));
        for (int left = (int)(perSecond * seconds); left > 0; left--)
        {
            Send();
            await timer.WaitForNextTickAsync();
        }
    }

    /// <summary>Sends at this rate until cancelled.</summary>
    public async Task SendAsync(double perSecond, CancellationToken cancellation)
    {
        while (!cancellation.IsCancellationRequested)
        {
            await SendAsync(perSecond, 1 / perSecond);
        }
    }

    public void Dispose() => _socket.Dispose();

    private static bool TryBind(Socket socket, IPEndPoint endPoint)
    {
        try
        {
            socket.Bind(endPoint);
            return true;
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.AddressNotAvailable)
        {
            return false;
        }
    }

    private static IPAddress Scoped(IPAddress address, long scope) => new(address.GetAddressBytes(), scope);

    private static ushort Word(ReadOnlySpan<byte> packet, int offset) => (ushort)((packet[offset] << 8) | packet[offset + 1]);
}
