using System.Diagnostics;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

/// <summary>What epoll waits for, and what it reports. Names and values are the kernel's.</summary>
[Flags]
internal enum EpollEvents : uint
{
    None = 0,
    EPOLLIN = 0x1,
    EPOLLOUT = 0x4,
    EPOLLERR = 0x8,
    EPOLLHUP = 0x10,
    EPOLLRDHUP = 0x2000,
    EPOLLET = 1u << 31,
}

/// <summary>
/// An epoll instance. <see cref="Wait"/> belongs to one thread; the other methods may be called from any.
/// Does not own the descriptors that are added; a descriptor leaves by itself when its last copy is closed.
/// </summary>
internal sealed unsafe class Epoll : IDisposable
{
    private readonly SafeFd _fd;

    /// <exception cref="NativeException">The process is out of descriptors.</exception>
    public Epoll()
    {
        int fd = LibC.epoll_create1(LibC.EPOLL_CLOEXEC);
        if (fd < 0)
        {
            throw new NativeException("epoll_create1", "epoll", LibC.errno, "Raise the limit of open files (LimitNOFILE=)");
        }
        _fd = new SafeFd(fd);
    }

    public int FileDescriptor => _fd.Number;

    /// <param name="fd">Watched, not owned.</param>
    /// <param name="events">What to wait for; errors and hang-ups are always reported.</param>
    /// <param name="token">Comes back in <c>epoll_event.data.u64</c>.</param>
    public void Add(int fd, EpollEvents events, ulong token) => Control("EPOLL_CTL_ADD", LibC.EPOLL_CTL_ADD, fd, events, token);

    public void Modify(int fd, EpollEvents events, ulong token) => Control("EPOLL_CTL_MOD", LibC.EPOLL_CTL_MOD, fd, events, token);

    public void Remove(int fd) => Control("EPOLL_CTL_DEL", LibC.EPOLL_CTL_DEL, fd, EpollEvents.None, 0);

    /// <summary>Waits until something is ready and fills <paramref name="ready"/>; allocates nothing.</summary>
    /// <param name="ready">Filled from the start, as far as events are there.</param>
    /// <param name="timeoutMilliseconds">0 looks without waiting, -1 waits for ever.</param>
    /// <returns>The number of events, 0 when the time is over. Signals do not end the wait.</returns>
    public int Wait(Span<epoll_event> ready, int timeoutMilliseconds)
    {
        long begin = timeoutMilliseconds > 0 ? Stopwatch.GetTimestamp() : 0;
        int timeout = timeoutMilliseconds;
        fixed (epoll_event* buffer = ready)
        {
            while (true)
            {
                int count = LibC.epoll_wait(_fd.Number, buffer, ready.Length, timeout);
                if (count >= 0)
                {
                    return count;
                }
                int errno = LibC.errno;
                if (errno != EINTR)
                {
                    throw new NativeException("epoll_wait", "epoll", errno);
                }
                if (timeoutMilliseconds > 0)
                {
                    timeout = Math.Max(0, timeoutMilliseconds - (int)Stopwatch.GetElapsedTime(begin).TotalMilliseconds);
                }
            }
        }
    }

    public void Dispose() => _fd.Dispose();

    private void Control(string call, int operation, int fd, EpollEvents events, ulong token)
    {
        epoll_event request = default;
        request.events = (int)events;
        request.data.u64 = token;
        if (LibC.epoll_ctl(_fd.Number, operation, fd, &request) < 0)
        {
            throw new NativeException($"epoll_ctl({call})", $"descriptor {fd}", LibC.errno);
        }
    }
}
