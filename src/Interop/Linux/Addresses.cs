using System.Runtime.InteropServices;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>The IP addresses of the interfaces of the network namespace of the thread that opened this. Not for two threads at once.</summary>
internal sealed class Addresses : IDisposable
{
    private const ushort RTM_NEWADDR = 20;
    private const ushort RTM_DELADDR = 21;
    private const ushort RTM_GETADDR = 22;
    private const ushort IFA_ADDRESS = 1;
    private const ushort IFA_LOCAL = 2;

    private readonly NetlinkSocket _socket = new();

    public void Dispose() => _socket.Dispose();

    /// <summary>Takes every address away from some interfaces, and with them the routes that come of these.</summary>
    /// <param name="indexes">Of the interfaces.</param>
    /// <returns>Those that had an address.</returns>
    public HashSet<int> Remove(IReadOnlySet<int> indexes)
    {
        List<(ifaddrmsg Header, byte[] Local, byte[] Address)> found = [];
        NetlinkMessage message = _socket.Begin(RTM_GETADDR, NLM_F_DUMP);
        message.Append(default(ifaddrmsg));
        _socket.Request(message, "RTM_GETADDR", "all interfaces", (type, payload) =>
        {
            if (type == RTM_NEWADDR && Read(payload) is var one && indexes.Contains(one.Header.ifa_index))
            {
                found.Add(one);
            }
        });

        HashSet<int> had = [];
        foreach ((ifaddrmsg header, byte[] local, byte[] address) in found)
        {
            had.Add(header.ifa_index);
            message = _socket.Begin(RTM_DELADDR, NLM_F_ACK);
            message.Append(header);
            // IPv6 has the second alone; for IPv4 it is the other end of a point-to-point link.
            if (local.Length > 0)
            {
                message.Attribute(IFA_LOCAL, local);
            }
            message.Attribute(IFA_ADDRESS, address);
            NetlinkError error = _socket.Try(message, null);
            // Gone already: whoever made it was as quick, or it was a secondary address of one that went before.
            if (error.Errno is not (0 or EADDRNOTAVAIL or ENODEV))
            {
                throw error.ToException("RTM_DELADDR", $"interface {header.ifa_index}");
            }
        }
        return had;
    }

    internal static (ifaddrmsg Header, byte[] Local, byte[] Address) Read(ReadOnlySpan<byte> payload)
    {
        byte[] local = [];
        byte[] address = [];
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out ifaddrmsg header);
        while (attributes.MoveNext())
        {
            local = attributes.Type == IFA_LOCAL ? attributes.Data.ToArray() : local;
            address = attributes.Type == IFA_ADDRESS ? attributes.Data.ToArray() : address;
        }
        return (header, local, address);
    }

    /// <summary>struct ifaddrmsg of linux/if_addr.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct ifaddrmsg
    {
        public byte ifa_family;
        public byte ifa_prefixlen;
        public byte ifa_flags;
        public byte ifa_scope;
        public int ifa_index;
    }
}
