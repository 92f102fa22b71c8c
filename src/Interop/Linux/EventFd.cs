using static Tmds.Linux.LibC;

namespace XenLoop.Interop.Linux;

/// <summary>An eventfd(2): a counter that makes its descriptor readable while it is not zero. Neither call blocks or allocates.</summary>
internal sealed unsafe class EventFd : IDisposable
{
    public EventFd()
    {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd < 0)
        {
            throw new NativeException("eventfd", "a new descriptor", errno);
        }

        Handle = new SafeFd(fd);
    }

    /// <summary>Takes over a descriptor that another process made.</summary>
    public EventFd(SafeFd handle) => Handle = handle;

    public SafeFd Handle { get; }

    /// <summary>Readable (poll, epoll) after a <see cref="Signal"/> until <see cref="Drain"/>.</summary>
    public int FileDescriptor => Handle.Number;

    /// <summary>Makes the descriptor readable. Any thread may call it; not after Dispose.</summary>
    public void Signal()
    {
        // The one failure is EAGAIN at 2^64 - 2 untaken signals, and then the descriptor is readable already.
        ulong one = 1;
        _ = write(FileDescriptor, &one, sizeof(ulong));
    }

    /// <summary>Takes all signals; false if there was none.</summary>
    public bool Drain()
    {
        ulong count;
        return (long)read(FileDescriptor, &count, sizeof(ulong)) == sizeof(ulong);
    }

    public void Dispose() => Handle.Dispose();
}
