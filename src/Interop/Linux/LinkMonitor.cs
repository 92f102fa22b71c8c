using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

/// <summary>
/// Tells that some interface of the network namespace came, went or changed (rtnetlink(7), RTMGRP_LINK). It does not say
/// which: who cares looks at all. Belongs to the namespace of the thread that opened it.
/// </summary>
internal sealed unsafe class LinkMonitor : IDisposable
{
    private const uint RTMGRP_LINK = 1;

    private readonly SafeFd _fd;
    private readonly byte[] _buffer = new byte[4096];

    /// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
    public LinkMonitor()
    {
        _fd = NetlinkSocket.Open(LibC.SOCK_NONBLOCK);
        sockaddr_nl address = new() { nl_family = (ushort)LibC.AF_NETLINK, nl_groups = RTMGRP_LINK };
        if (LibC.bind(_fd.Number, (sockaddr*)&address, sizeof(sockaddr_nl)) < 0)
        {
            int errno = LibC.errno;
            _fd.Dispose();
            throw new NativeException("bind", "rtnetlink RTMGRP_LINK", errno);
        }
    }

    /// <summary>Readable after a change; then call <see cref="TakeChanges"/>.</summary>
    public int FileDescriptor => _fd.Number;

    /// <summary>True when anything changed since the last call.</summary>
    public bool TakeChanges()
    {
        bool changed = false;
        fixed (byte* pointer = _buffer)
        {
            // Messages that do not fit are cut, which is as well: only that there was one counts. ENOBUFS: there were too many.
            while ((long)LibC.recv(_fd.Number, pointer, _buffer.Length, 0) >= 0 || LibC.errno == ENOBUFS)
            {
                changed = true;
            }
        }

        return changed;
    }

    public void Dispose() => _fd.Dispose();
}
