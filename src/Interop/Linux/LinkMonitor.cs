using System.Buffers.Binary;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

/// <summary>
/// Tells which interfaces of the network namespace came, went or changed (rtnetlink(7), RTMGRP_LINK), if wanted with what hangs on
/// them of traffic control: who cares looks at these. Belongs to the namespace of the thread that opened it.
/// </summary>
internal sealed unsafe class LinkMonitor : IDisposable
{
    private const uint RTMGRP_LINK = 1;
    private const uint RTMGRP_TC = 8;
    // Behind the header, in struct ifinfomsg and in struct tcmsg alike.
    private const int InterfaceOffset = 20;

    /// <summary>In the place of an interface's index: so much has changed that the kernel did not say what.</summary>
    public const int Any = 0;

    private readonly SafeFd _fd;
    private readonly byte[] _buffer = new byte[4096];

    /// <param name="trafficControl">Qdiscs and filters count as well.</param>
    /// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
    public LinkMonitor(bool trafficControl = false)
    {
        _fd = NetlinkSocket.Open(LibC.SOCK_NONBLOCK);
        sockaddr_nl address = new() { nl_family = (ushort)LibC.AF_NETLINK, nl_groups = RTMGRP_LINK | (trafficControl ? RTMGRP_TC : 0) };
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
    /// <param name="changed">Gets the indices of the interfaces that did, and <see cref="Any"/>.</param>
    public bool TakeChanges(HashSet<int>? changed = null)
    {
        bool some = false;
        fixed (byte* pointer = _buffer)
        {
            while (true)
            {
                // One message each. Those that do not fit are cut, which is as well: their beginning says enough.
                long length = LibC.recv(_fd.Number, pointer, _buffer.Length, 0);
                if (length < 0 && LibC.errno != ENOBUFS)
                {
                    return some;
                }

                some = true;
                changed?.Add(length >= InterfaceOffset + sizeof(int) ? BinaryPrimitives.ReadInt32LittleEndian(_buffer.AsSpan(InterfaceOffset)) : Any);
            }
        }
    }

    public void Dispose() => _fd.Dispose();
}
