using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>Memory shared with the kernel or another process through a descriptor, mapped until disposed.</summary>
internal sealed unsafe class MappedMemory : IDisposable
{
    private MappedMemory(byte* address, int length)
    {
        Address = address;
        Length = length;
    }

    public byte* Address { get; private set; }

    public int Length { get; }

    /// <summary>Maps from offset 0 (MAP_SHARED). The descriptor may be closed afterwards.</summary>
    /// <param name="fd">A file, a memfd, or a mappable BPF array.</param>
    /// <param name="length">Bytes; rounded up to whole pages by the kernel.</param>
    /// <param name="subject">Named in the error's message.</param>
    /// <exception cref="NativeException">The descriptor cannot be mapped.</exception>
    public static MappedMemory Map(int fd, int length, string subject) =>
        Map(fd, 0, length, LibC.PROT_READ | LibC.PROT_WRITE, subject);

    /// <summary>As <see cref="Map(int, int, string)"/>, from an offset on (a multiple of the page size), and not to be written.</summary>
    public static MappedMemory MapReadOnly(int fd, int offset, int length, string subject) =>
        Map(fd, offset, length, LibC.PROT_READ, subject);

    private static MappedMemory Map(int fd, int offset, int length, int protection, string subject)
    {
        void* address = LibC.mmap(null, length, protection, LibC.MAP_SHARED, fd, offset);
        return address == LibC.MAP_FAILED
            ? throw new NativeException("mmap", subject, LibC.errno)
            : new MappedMemory((byte*)address, length);
    }

    public void Dispose()
    {
        if (Address != null)
        {
            _ = LibC.munmap(Address, Length);
            Address = null;
        }
    }
}
