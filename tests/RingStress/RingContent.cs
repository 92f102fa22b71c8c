using XenLoop.Ring;

namespace XenLoop.Tests.RingStress;

/// <summary>
/// Content of record number <c>n</c>: a run of one random block, from a place that depends on <c>n</c>. Comparing with
/// it finds a lost, repeated, reordered or damaged record, and costs little more than a copy.
/// </summary>
internal static unsafe class RingContent
{
    private static readonly byte[] _block = MakeBlock();

    public static ReadOnlySpan<byte> Of(ulong number, uint length) =>
        _block.AsSpan((int)(number * 0x9e3779b97f4a7c15 >> 48), (int)length);

    public static void Fill(in RingSegments segments, ulong number, uint length)
    {
        ReadOnlySpan<byte> content = Of(number, length);
        int first = (int)Math.Min(length, segments.FirstLength);
        content[..first].CopyTo(new Span<byte>(segments.First, first));
        content[first..].CopyTo(new Span<byte>(segments.Second, (int)segments.SecondLength));
    }

    public static bool Matches(in RingSegments segments, ulong number, uint length)
    {
        ReadOnlySpan<byte> content = Of(number, length);
        return segments.Length == length
            && content[..(int)segments.FirstLength].SequenceEqual(new ReadOnlySpan<byte>(segments.First, (int)segments.FirstLength))
            && content[(int)segments.FirstLength..].SequenceEqual(new ReadOnlySpan<byte>(segments.Second, (int)segments.SecondLength));
    }

    private static byte[] MakeBlock()
    {
        byte[] block = new byte[0x10000 + RingRecord.MaxPayload];
        new Random(1).NextBytes(block);
        return block;
    }
}
