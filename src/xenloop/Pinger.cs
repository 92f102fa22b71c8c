using System.Buffers.Binary;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;

namespace XenLoop.Command;

/// <summary>Sends echo requests of ICMP and waits for the answers, with a clock finer than milliseconds. Needs root.</summary>
internal sealed class Pinger : IDisposable
{
    private const int TimeoutMilliseconds = 1000;
    private const int PauseMilliseconds = 20;
    private const int HeaderLength = 8;
    private const int PayloadLength = 56;

    private readonly IPEndPoint _peer;
    private readonly Socket _socket;
    private readonly bool _isIPv6;
    private readonly ushort _id = (ushort)Random.Shared.Next(1, ushort.MaxValue);
    private ushort _sequence;

    public Pinger(IPAddress address)
    {
        _peer = new IPEndPoint(address, 0);
        _isIPv6 = address.AddressFamily == AddressFamily.InterNetworkV6;
        try
        {
            _socket = new Socket(address.AddressFamily, SocketType.Raw, _isIPv6 ? ProtocolType.IcmpV6 : ProtocolType.Icmp);
        }
        catch (SocketException e)
        {
            throw new CommandException(ExitCode.NotPermitted, $"no raw socket: {e.Message}; run it as root (sudo xenloop)");
        }
    }

    /// <summary>So many, with a pause between two of them.</summary>
    /// <returns>Seconds of each; null for one that was not answered.</returns>
    public List<double?> RoundTrips(int count)
    {
        List<double?> times = [];
        for (int i = 0; i < count; i++)
        {
            times.Add(RoundTrip());
            Thread.Sleep(PauseMilliseconds);
        }

        return times;
    }

    /// <summary>One.</summary>
    /// <returns>Seconds; null when there was no answer within a second.</returns>
    public double? RoundTrip()
    {
        byte[] request = new byte[HeaderLength + PayloadLength];
        request[0] = _isIPv6 ? (byte)128 : (byte)8;
        BinaryPrimitives.WriteUInt16BigEndian(request.AsSpan(4), _id);
        BinaryPrimitives.WriteUInt16BigEndian(request.AsSpan(6), ++_sequence);
        if (!_isIPv6)
        {
            // Of IPv6 the kernel makes it, for it covers addresses.
            BinaryPrimitives.WriteUInt16BigEndian(request.AsSpan(2), Checksum(request));
        }

        byte[] answer = new byte[1500];
        long began = Stopwatch.GetTimestamp();
        try
        {
            _socket.SendTo(request, _peer);
            while (Stopwatch.GetElapsedTime(began).TotalMilliseconds is var passed && passed < TimeoutMilliseconds)
            {
                _socket.ReceiveTimeout = Math.Max(1, TimeoutMilliseconds - (int)passed);
                EndPoint from = new IPEndPoint(_isIPv6 ? IPAddress.IPv6Any : IPAddress.Any, 0);
                int length = _socket.ReceiveFrom(answer, ref from);
                double seconds = Stopwatch.GetElapsedTime(began).TotalSeconds;
                if (IsAnswer(answer.AsSpan(0, length)))
                {
                    return seconds;
                }
            }
        }
        catch (SocketException)
        {
            // No answer in time, or no way there: lost.
        }

        return null;
    }

    public void Dispose() => _socket.Dispose();

    private bool IsAnswer(ReadOnlySpan<byte> packet)
    {
        // Of IPv4 the header comes along.
        ReadOnlySpan<byte> message = _isIPv6 || packet.Length < 20 ? packet : packet[Math.Min(packet.Length, (packet[0] & 0xf) * 4)..];
        return message.Length >= HeaderLength
            && message[0] == (_isIPv6 ? 129 : 0)
            && BinaryPrimitives.ReadUInt16BigEndian(message[4..]) == _id
            && BinaryPrimitives.ReadUInt16BigEndian(message[6..]) == _sequence;
    }

    private static ushort Checksum(ReadOnlySpan<byte> message)
    {
        uint sum = 0;
        for (int i = 0; i + 1 < message.Length; i += 2)
        {
            sum += BinaryPrimitives.ReadUInt16BigEndian(message[i..]);
        }

        sum = (sum >> 16) + (sum & 0xffff);
        return (ushort)~(sum + (sum >> 16));
    }
}
