using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace XenLoop.Tests.Fuzz;

/// <summary>An input as a row of steps. Beyond its end are zeros.</summary>
internal ref struct Script(ReadOnlySpan<byte> bytes)
{
    private ReadOnlySpan<byte> _rest = bytes;

    public readonly bool IsEmpty => _rest.IsEmpty;

    /// <summary>So many bytes, or what is left.</summary>
    public ReadOnlySpan<byte> Take(int count)
    {
        ReadOnlySpan<byte> taken = _rest[..Math.Min(count, _rest.Length)];
        _rest = _rest[taken.Length..];
        return taken;
    }

    public T Next<T>()
        where T : unmanaged
    {
        T value = default;
        Take(Unsafe.SizeOf<T>()).CopyTo(MemoryMarshal.AsBytes(new Span<T>(ref value)));
        return value;
    }
}
