using System.Buffers.Binary;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

/// <summary>
/// Tells that something changed of which the kernel tells groups of netlink(7) sockets. Belongs to the network namespace of the thread that
/// opened it.
/// </summary>
internal unsafe class NetlinkMonitor : IDisposable
{
    // Behind the header, in struct ifinfomsg, in struct tcmsg and in struct ifaddrmsg alike.
    private const int InterfaceOffset = 20;

    /// <summary>In the place of an interface's index: so much has changed that the kernel did not say what.</summary>
    public const int Any = 0;

    private readonly SafeFd _fd;
    private readonly byte[] _buffer = new byte[4096];

    /// <param name="protocol">NETLINK_*, see <see cref="NetlinkSocket"/>.</param>
    /// <param name="groups">A bit for each group.</param>
    /// <exception cref="NativeException">The kernel gives no such socket.</exception>
    public NetlinkMonitor(int protocol, uint groups)
    {
        _fd = Open(protocol, groups);
    }

    /// <summary>Readable after a change; then call <see cref="TakeChanges"/>.</summary>
    public int FileDescriptor => _fd.Number;

    /// <summary>A socket that hears of changes, and never blocks.</summary>
    /// <exception cref="NativeException">The kernel gives no such socket.</exception>
    public static SafeFd Open(int protocol, uint groups)
    {
        SafeFd fd = NetlinkSocket.Open(LibC.SOCK_NONBLOCK, protocol);
        sockaddr_nl address = new() { nl_family = (ushort)LibC.AF_NETLINK, nl_groups = groups };
        if (LibC.bind(fd.Number, (sockaddr*)&address, sizeof(sockaddr_nl)) < 0)
        {
            int errno = LibC.errno;
            fd.Dispose();
            throw new NativeException("bind", $"netlink {protocol}, groups {groups:x}", errno);
        }

        return fd;
    }

    /// <summary>True when anything changed since the last call.</summary>
    /// <param name="changed">Of rtnetlink: gets the indices of the interfaces that did, and <see cref="Any"/>.</param>
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

/// <summary>
/// Tells which interfaces of the network namespace came, went or changed (rtnetlink(7), RTMGRP_LINK), if wanted with what hangs on
/// them of traffic control and of addresses: who cares looks at these.
/// </summary>
/// <param name="trafficControl">Qdiscs and filters count as well.</param>
/// <param name="addresses">IP addresses count as well.</param>
/// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
internal sealed class LinkMonitor(bool trafficControl = false, bool addresses = false)
    : NetlinkMonitor(
        NetlinkSocket.NETLINK_ROUTE,
        RTMGRP_LINK | (trafficControl ? RTMGRP_TC : 0) | (addresses ? RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR : 0))
{
    private const uint RTMGRP_LINK = 1;
    private const uint RTMGRP_TC = 8;
    private const uint RTMGRP_IPV4_IFADDR = 0x10;
    private const uint RTMGRP_IPV6_IFADDR = 0x100;
}
