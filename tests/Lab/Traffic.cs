using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text.RegularExpressions;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>A <c>ping</c> from one guest to another that runs until it is asked how it went.</summary>
internal sealed partial class Ping
{
    private readonly LabProcess _process;

    private Ping(LabProcess process) => _process = process;

    public static Ping Start(LabGuest from, LabGuest to, double interval = 0.005) =>
        new(from.Start(string.Create(CultureInfo.InvariantCulture, $"exec ping -n -D -i {interval} {to.IPv4}")));

    /// <summary>So many packets; all of them must be answered.</summary>
    public static async Task MustAsync(LabGuest from, LabGuest to, int count = 1)
    {
        (int exit, string output) = await from.RunAsync($"ping -n -q -c {count} -i 0.01 -W 5 {to.IPv4}");
        Assert.True(exit == 0 && output.Contains(" 0% packet loss", StringComparison.Ordinal), output);
    }

    /// <summary>Replies so far.</summary>
    public int Replies => Reply().Count(_process.Output);

    /// <summary>Ends it.</summary>
    /// <returns>Packets without a reply, and the longest time between two replies, in seconds.</returns>
    public async Task<(int Lost, double LongestGap, string Summary)> StopAsync()
    {
        _process.Signal(LibC.SIGINT);
        await _process.WaitForExitAsync();
        string output = _process.Output;
        Match summary = Summary().Match(output);
        Assert.True(summary.Success, output);
        Match[] replies = [.. Reply().Matches(output).Cast<Match>()];
        double[] times = [.. replies.Select(m => double.Parse(m.Groups[1].ValueSpan, CultureInfo.InvariantCulture))];
        double gap = times.Zip(times.Skip(1), (a, b) => b - a).DefaultIfEmpty(double.PositiveInfinity).Max();
        HashSet<int> answered = [.. replies.Select(m => int.Parse(m.Groups[2].ValueSpan, CultureInfo.InvariantCulture))];
        int sent = int.Parse(summary.Groups[1].ValueSpan, CultureInfo.InvariantCulture);
        // The signal may come between the last requests and their replies; a busy machine has two on the way.
        int last = answered.DefaultIfEmpty().Max();
        int counted = sent - last <= 2 ? last : sent;
        int[] lost = [.. Enumerable.Range(1, counted).Where(s => !answered.Contains(s))];
        return (lost.Length, gap, $"{summary.Value}; without a reply: {string.Join(' ', lost)}");
    }

    [GeneratedRegex("^\\[([0-9.]+)\\] [0-9]+ bytes from .*icmp_seq=([0-9]+) ", RegexOptions.Multiline)]
    private static partial Regex Reply();

    [GeneratedRegex("([0-9]+) packets transmitted, ([0-9]+) received.*")]
    private static partial Regex Summary();
}

/// <summary>A TCP connection between two guests that carries random bytes one way until it is asked how it went.</summary>
internal sealed class TcpStream
{
    private const int TimeoutMilliseconds = 30_000;

    private readonly Socket _sender;
    private readonly Socket _receiver;
    private readonly bool _hash;
    private readonly Task<string> _sent;
    private readonly Task<string> _received;
    private long _bytes;
    private volatile bool _stop;

    private TcpStream(Socket sender, Socket receiver, bool hash)
    {
        (_sender, _receiver, _hash) = (sender, receiver, hash);
        _received = Task.Factory.StartNew(Receive, TaskCreationOptions.LongRunning);
        _sent = Task.Factory.StartNew(Send, TaskCreationOptions.LongRunning);
    }

    /// <summary>Bytes that have arrived.</summary>
    public long Bytes => Interlocked.Read(ref _bytes);

    /// <param name="from">The sender.</param>
    /// <param name="to">The receiver.</param>
    /// <param name="hash">Compare what is sent with what arrives; costs more than sending.</param>
    /// <param name="address">Of the receiver, if not that of its eth0.</param>
    public static TcpStream Open(LabGuest from, LabGuest to, bool hash = true, IPAddress? address = null)
    {
        using Socket listener = Namespaces.Run(to, () => new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp));
        listener.Bind(new IPEndPoint(address ?? to.IPv4, 0));
        listener.Listen();
        Socket sender = Namespaces.Run(from, () => new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp));
        sender.Connect(listener.LocalEndPoint!);
        Socket receiver = listener.Accept();
        sender.SendTimeout = receiver.ReceiveTimeout = TimeoutMilliseconds;
        return new TcpStream(sender, receiver, hash);
    }

    /// <summary>Ends it, and compares.</summary>
    public async Task StopAsync()
    {
        _stop = true;
        Assert.Equal(await _sent, await _received);
    }

    private string Send()
    {
        using Socket socket = _sender;
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        // No power of two: blocks and the ring's size do not fall together.
        byte[] block = RandomNumberGenerator.GetBytes(256 * 1024 - 7);
        while (!_stop)
        {
            for (int sent = 0; sent < block.Length;)
            {
                sent += socket.Send(block.AsSpan(sent));
            }

            Hash(hash, block);
        }

        return Convert.ToHexString(hash.GetHashAndReset());
    }

    private string Receive()
    {
        using Socket socket = _receiver;
        using IncrementalHash hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        byte[] block = new byte[256 * 1024];
        int length;
        while ((length = socket.Receive(block)) > 0)
        {
            Hash(hash, block.AsSpan(0, length));
            Interlocked.Add(ref _bytes, length);
        }

        return Convert.ToHexString(hash.GetHashAndReset());
    }

    private void Hash(IncrementalHash hash, ReadOnlySpan<byte> bytes)
    {
        if (_hash)
        {
            hash.AppendData(bytes);
        }
    }
}
