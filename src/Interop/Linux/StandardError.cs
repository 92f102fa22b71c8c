using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>The process's standard error without the runtime's buffers and encodings.</summary>
internal static unsafe class StandardError
{
    private const int STDERR_FILENO = 2;

    /// <summary>Writes in one call, so that lines of several processes do not mix. Whatever fails, there is nobody to tell.</summary>
    public static void Write(ReadOnlySpan<byte> bytes)
    {
        fixed (byte* data = bytes)
        {
            _ = LibC.write(STDERR_FILENO, data, bytes.Length);
        }
    }
}
