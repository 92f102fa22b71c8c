using System.Buffers.Binary;
using System.Text;

namespace XenLoop.Tests.Fuzz;

/// <summary>Makes inputs of others: some changes, one upon the other.</summary>
/// <param name="random">Says which.</param>
/// <param name="longest">So many bytes they have at most.</param>
/// <param name="tokens">See <see cref="Target"/>.</param>
internal sealed class Mutator(Random random, int longest, string[] tokens)
{
    private static readonly uint[] _numbers =
        [0, 1, 2, 3, 4, 7, 8, 15, 16, 20, 32, 64, 100, 127, 128, 255, 256, 1024, 4096, 32767, 32768, 65535, 65536, 0x7fffffff, 0x80000000, 0xfffffff8, 0xffffffff];

    private readonly byte[][] _tokens = [.. tokens.Select(Encoding.Latin1.GetBytes)];
    private readonly byte[] _buffer = new byte[longest];
    private int _length;

    /// <summary>Valid until the next one.</summary>
    public ReadOnlySpan<byte> Mutate(byte[] input, byte[] other)
    {
        _length = Math.Min(input.Length, longest);
        input.AsSpan(0, _length).CopyTo(_buffer);
        for (int changes = 1 << random.Next(3); changes > 0; changes--)
        {
            Change(other);
        }

        return _buffer.AsSpan(0, _length);
    }

    private void Change(byte[] other)
    {
        int at = random.Next(_length + 1);
        int some = Math.Min(1 + random.Next(1 << random.Next(7)), _length - at);
        Span<byte> rest = _buffer.AsSpan(at, _length - at);
        Span<byte> number = stackalloc byte[sizeof(uint)];
        switch (random.Next(11))
        {
            case 0 when at < _length:
                rest[0] ^= (byte)(1 << random.Next(8));
                break;
            case 1 when at < _length:
                rest[0] = (byte)random.Next(256);
                break;
            case 2 when at < _length:
                rest[0] += (byte)random.Next(-16, 17);
                break;
            case 3:
                Splice(at, some, []);
                break;
            case 4:
                Splice(at, 0, _buffer.AsSpan(at, some).ToArray());
                break;
            case 5:
                // What is here, elsewhere.
                Splice(random.Next(_length + 1), 0, _buffer.AsSpan(at, some).ToArray());
                break;
            case 6:
                Splice(at, 0, Part(other));
                break;
            case 7:
                Splice(at, some, Part(other));
                break;
            case 8 or 9 when _tokens.Length > 0:
                byte[] token = _tokens[random.Next(_tokens.Length)];
                Splice(at, random.Next(2) == 0 ? 0 : Math.Min(token.Length, _length - at), token);
                break;
            default:
                uint value = _numbers[random.Next(_numbers.Length)];
                BinaryPrimitives.WriteUInt32LittleEndian(number, random.Next(4) == 0 ? BinaryPrimitives.ReverseEndianness(value) : value);
                int bytes = 1 << random.Next(3);
                Splice(at, Math.Min(bytes, _length - at), number[..bytes]);
                break;
        }
    }

    private ReadOnlySpan<byte> Part(byte[] other)
    {
        int at = random.Next(other.Length + 1);
        return other.AsSpan(at, random.Next(Math.Min(other.Length - at, 64) + 1));
    }

    /// <summary>Puts bytes in the place of others. What does not fit any more is cut.</summary>
    private void Splice(int at, int removed, ReadOnlySpan<byte> bytes)
    {
        bytes = bytes[..Math.Min(bytes.Length, longest - at)];
        int tail = Math.Min(_length - at - removed, longest - at - bytes.Length);
        _buffer.AsSpan(at + removed, tail).CopyTo(_buffer.AsSpan(at + bytes.Length));
        bytes.CopyTo(_buffer.AsSpan(at));
        _length = at + bytes.Length + tail;
    }
}
