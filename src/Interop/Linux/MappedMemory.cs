using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>Memory shared with the kernel or another process through a descriptor, mapped until disposed.</summary>
internal sealed unsafe class MappedMemory : IDisposable
{
    private MappedMemory(byte* address, long length)
    {
        Address = address;
        Length = length;
    }

    public byte* Address { get; private set; }

    public long Length { get; }

    /// <summary>Maps (MAP_SHARED). The descriptor may be closed afterwards.</summary>
    /// <param name="fd">A file, a memfd, or a mappable BPF array.</param>
    /// <param name="length">Bytes; rounded up to whole pages by the kernel.</param>
    /// <param name="subject">Named in the error's message.</param>
    /// <param name="offset">First byte, a multiple of the page size.</param>
    /// <exception cref="NativeException">The descriptor cannot be mapped.</exception>
    public static MappedMemory Map(int fd, long length, string subject, long offset = 0) =>
        new(Map(null, length, LibC.PROT_READ | LibC.PROT_WRITE, LibC.MAP_SHARED, fd, offset, subject), length);

    /// <summary>As <see cref="Map(int, long, string, long)"/>, and not to be written.</summary>
    public static MappedMemory MapReadOnly(int fd, long length, string subject, long offset = 0) =>
        new(Map(null, length, LibC.PROT_READ, LibC.MAP_SHARED, fd, offset, subject), length);

    /// <summary>Addresses only, unreadable until <see cref="Fill"/>.</summary>
    public static MappedMemory Reserve(long length) =>
        new(Map(null, length, LibC.PROT_NONE, LibC.MAP_PRIVATE | LibC.MAP_ANONYMOUS, -1, 0, "addresses"), length);

    /// <summary>Maps part of a descriptor's memory over a part of this.</summary>
    /// <param name="at">First byte here, a multiple of the page size.</param>
    /// <param name="fd">As <see cref="Map(int, long, string, long)"/> takes it.</param>
    /// <param name="offset">First byte there, a multiple of the page size.</param>
    /// <param name="length">Bytes.</param>
    /// <param name="subject">Named in the error's message.</param>
    public void Fill(long at, int fd, long offset, long length, string subject) =>
        _ = Map(Address + at, length, LibC.PROT_READ | LibC.PROT_WRITE, LibC.MAP_SHARED | LibC.MAP_FIXED, fd, offset, subject);

    public void Dispose()
    {
        if (Address != null)
        {
            // munmap of a range that mmap returned does not fail.
            _ = LibC.munmap(Address, (size_t)(ulong)Length);
            Address = null;
        }
    }

    private static byte* Map(byte* at, long length, int protection, int flags, int fd, long offset, string subject)
    {
        void* address = LibC.mmap(at, (size_t)(ulong)length, protection, flags, fd, offset);
        return address != LibC.MAP_FAILED ? (byte*)address : throw new NativeException("mmap", subject, LibC.errno);
    }
}
