using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>The process's standard output, which tells when it fails: the runtime's own says nothing of a reader that has gone.</summary>
internal static unsafe class StandardOutput
{
    private const int STDOUT_FILENO = 1;

    /// <summary>Writes all of it.</summary>
    /// <exception cref="NativeException">It cannot be written: a full disk, or a reader that has gone (EPIPE).</exception>
    public static void Write(ReadOnlySpan<byte> bytes)
    {
        while (!bytes.IsEmpty)
        {
            long written;
            fixed (byte* data = bytes)
            {
                written = LibC.write(STDOUT_FILENO, data, bytes.Length);
            }

            if (written < 0 && LibC.errno != Errno.EINTR)
            {
                throw new NativeException("write", "standard output", LibC.errno);
            }

            bytes = bytes[(int)Math.Max(0, written)..];
        }
    }
}
