using System.Globalization;
using System.Net.Sockets;
using System.Text;

namespace XenLoop.Rig;

/// <summary>
/// One virtio serial port of Dom0, behind which a <c>rig-answer</c> (see image/common) runs one script after the other.
/// </summary>
internal sealed class CommandPort(Socket socket) : IDisposable
{
    private readonly NetworkStream _stream = new(socket, ownsSocket: true);

    /// <summary>A request as <c>rig-answer</c> reads it.</summary>
    public static byte[] Request(string id, string script, ReadOnlySpan<byte> input)
    {
        byte[] body = Encoding.UTF8.GetBytes(script);
        return [.. Encoding.ASCII.GetBytes($"{id} {body.Length} {input.Length}\n"), .. body, .. input];
    }

    /// <summary>What <c>rig-answer</c> wrote.</summary>
    public static async Task<CommandResult> ReadResultAsync(Stream stream)
    {
        string[] head = (await ReadLineAsync(stream)).Split(' ');
        int[] numbers = Array.ConvertAll(head, field => int.Parse(field, CultureInfo.InvariantCulture));
        byte[] output = new byte[numbers[1]];
        await stream.ReadExactlyAsync(output);
        byte[] error = new byte[numbers[2]];
        await stream.ReadExactlyAsync(error);
        return new CommandResult(numbers[0], output, error);
    }

    /// <summary>Sends a request and waits for its result, however long that takes.</summary>
    public async Task<CommandResult> ExchangeAsync(byte[] request)
    {
        await _stream.WriteAsync(request);
        return await ReadResultAsync(_stream);
    }

    public void Dispose() => _stream.Dispose();

    private static async Task<string> ReadLineAsync(Stream stream)
    {
        // A head is some ten bytes: not worth a buffer that would have to be shared with what follows.
        StringBuilder line = new();
        byte[] one = new byte[1];
        while (true)
        {
            await stream.ReadExactlyAsync(one);
            if (one[0] == '\n')
            {
                return line.ToString();
            }

            line.Append((char)one[0]);
        }
    }
}
