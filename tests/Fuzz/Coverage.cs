using System.Numerics;
using System.Runtime.InteropServices;
using System.Runtime.Intrinsics;
using SharpFuzz.Common;

namespace XenLoop.Tests.Fuzz;

/// <summary>
/// What code the inputs have reached. An edge is a step from one basic block to another, by a hash of both; how often an input takes it
/// counts by orders of magnitude (1, 2, 3, 4 to 7, 8 to 15, 16 to 31, 32 to 127, more), as American fuzzy lop has it.
/// </summary>
internal sealed unsafe class Coverage
{
    private const int Size = 1 << 16; // SharpFuzz's

    private readonly byte[] _seen = new byte[Size];
    private readonly List<(ushort Edge, byte Count)> _trace = [];

    /// <summary>To be called before any instrumented code runs.</summary>
    public static void Prepare()
    {
        Trace.SharedMem = (byte*)NativeMemory.AlignedAlloc(Size, 64);
        new Span<byte>(Trace.SharedMem, Size).Clear();
    }

    /// <summary>Reached so far, by any input that was added.</summary>
    public int Edges { get; private set; }

    /// <summary>To be called before each input.</summary>
    public static void Begin() => Trace.PrevLocation = 0;

    /// <summary>Takes what the input has hit since.</summary>
    /// <returns>True when it is news.</returns>
    public bool End()
    {
        byte* hits = Trace.SharedMem;
        _trace.Clear();
        bool news = false;
        for (int i = 0; i < Size; i += Vector256<byte>.Count)
        {
            uint hit = ~Vector256.Equals(Vector256.LoadAligned(hits + i), Vector256<byte>.Zero).ExtractMostSignificantBits();
            for (; hit != 0; hit &= hit - 1)
            {
                int edge = i + BitOperations.TrailingZeroCount(hit);
                int times = hits[edge];
                hits[edge] = 0;
                byte count = (byte)(1 << times switch { <= 3 => times - 1, <= 7 => 3, <= 15 => 4, <= 31 => 5, <= 127 => 6, _ => 7 });
                _trace.Add(((ushort)edge, count));
                news |= (_seen[edge] & count) == 0;
            }
        }

        return news;
    }

    /// <summary>The edges of the last input that none has reached before.</summary>
    public HashSet<ushort> Unseen() => [.. _trace.Where(t => _seen[t.Edge] == 0).Select(t => t.Edge)];

    /// <summary>Counts what the last input hit as seen.</summary>
    /// <returns>How many edges none had reached before.</returns>
    public int Add()
    {
        int before = Edges;
        foreach ((ushort edge, byte count) in _trace)
        {
            Edges += _seen[edge] == 0 ? 1 : 0;
            _seen[edge] |= count;
        }

        return Edges - before;
    }
}
