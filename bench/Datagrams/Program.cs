using System.Buffers.Binary;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;

// Datagrams with segmentation offload (UDP_SEGMENT, UDP_GRO of udp(7)), as QUIC sends them: no program that Debian 13 has measures these.
//   datagrams receive PORT
//   datagrams send ADDRESS PORT BYTES MEGABYTES    so many megabytes in datagrams of so many bytes, as fast as they go; prints how
//                                                  many bytes arrived, and within how many microseconds
const int SOL_UDP = 17;
const int UDP_SEGMENT = 103;
const int UDP_GRO = 104;
const int SOL_SOCKET = 1;
const int SO_RCVBUFFORCE = 33;
const int MostBytes = 65507; // of one call

using Socket socket = new(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp);
switch (args)
{
    case ["receive", string port]:
        Receive(Number(port));
        return 0;
    case ["send", string address, string port, string bytes, string megabytes]:
        return Send(new IPEndPoint(IPAddress.Parse(address), Number(port)), Number(bytes), Number(megabytes) * 1_000_000L);
    default:
        Console.Error.WriteLine("usage: datagrams receive PORT\n       datagrams send ADDRESS PORT BYTES MEGABYTES");
        return 2;
}

static int Number(string text) => int.Parse(text, CultureInfo.InvariantCulture);

void Set(int level, int option, int value)
{
    byte[] bytes = new byte[sizeof(int)];
    BinaryPrimitives.WriteInt32LittleEndian(bytes, value);
    socket.SetRawSocketOption(level, option, bytes);
}

void Receive(int port)
{
    Set(SOL_UDP, UDP_GRO, 1);
    Set(SOL_SOCKET, SO_RCVBUFFORCE, 4 * 1024 * 1024); // as servers have it that expect so much
    socket.Bind(new IPEndPoint(IPAddress.Any, port));
    byte[] buffer = new byte[ushort.MaxValue];
    SocketAddress from = new(AddressFamily.InterNetwork);
    long received = 0, first = 0, last = 0;
    while (true)
    {
        int length = socket.ReceiveFrom(buffer, SocketFlags.None, from);
        if (length > 1)
        {
            last = Stopwatch.GetTimestamp();
            first = received == 0 ? last : first;
            received += length;
            continue;
        }

        // How many were they?
        long microseconds = (long)Stopwatch.GetElapsedTime(first, last).TotalMicroseconds;
        _ = socket.SendTo(Encoding.ASCII.GetBytes(string.Create(CultureInfo.InvariantCulture, $"{received} {microseconds}")), SocketFlags.None, from);
        received = 0;
    }
}

int Send(IPEndPoint to, int bytes, long all)
{
    socket.Connect(to);
    Set(SOL_UDP, UDP_SEGMENT, bytes);
    byte[] datagrams = new byte[MostBytes / bytes * bytes];
    for (long sent = 0; sent < all; sent += datagrams.Length)
    {
        _ = socket.Send(datagrams);
    }

    Thread.Sleep(100); // until they have arrived
    socket.ReceiveTimeout = 1000;
    _ = socket.Send(new byte[1]);
    byte[] answer = new byte[64];
    Console.WriteLine(Encoding.ASCII.GetString(answer, 0, socket.Receive(answer)));
    return 0;
}
