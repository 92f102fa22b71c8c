using System.Text;
using XenLoop.Interop;
using XenLoop.Interop.Linux;

namespace XenLoop.Command;

/// <summary>What is printed cannot be written.</summary>
internal sealed class OutputException(NativeException cause) : Exception(cause.Message)
{
    /// <summary>Whoever was to read it has gone, which is no fault of anybody's.</summary>
    public bool IsReaderGone { get; } = cause.Errno == Errno.EPIPE;
}

/// <summary>Standard output, with an exception of its own. Buffered: what is printed must be flushed.</summary>
internal sealed class Output : Stream
{
    public override bool CanRead => false;

    public override bool CanSeek => false;

    public override bool CanWrite => true;

    public override long Length => throw new NotSupportedException();

    public override long Position
    {
        get => throw new NotSupportedException();
        set => throw new NotSupportedException();
    }

    /// <summary>Has the console print through this.</summary>
    public static void Use() => Console.SetOut(new StreamWriter(new Output(), new UTF8Encoding(false), 64 * 1024));

    public override void Write(ReadOnlySpan<byte> buffer)
    {
        try
        {
            StandardOutput.Write(buffer);
        }
        catch (NativeException e)
        {
            throw new OutputException(e);
        }
    }

    public override void Write(byte[] buffer, int offset, int count) => Write(buffer.AsSpan(offset, count));

    public override void Flush()
    {
        // Nothing is held here.
    }

    public override int Read(byte[] buffer, int offset, int count) => throw new NotSupportedException();

    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();

    public override void SetLength(long value) => throw new NotSupportedException();
}
