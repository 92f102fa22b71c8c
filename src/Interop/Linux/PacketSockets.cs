using System.Globalization;
using System.Runtime.InteropServices;
using Tmds.Linux;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>struct sock_filter of linux/filter.h: an instruction of classic BPF.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct sock_filter(ushort Code, byte JumpTrue, byte JumpFalse, uint K);

/// <summary>A packet(7) socket that gets what an interface transmits, too: it is bound to all protocols.</summary>
/// <param name="Inode">Tells it from all others.</param>
/// <param name="Interface">Index of the interface it is bound to; 0 for all.</param>
/// <param name="HasLinkHeader">Its frames begin with the link-layer header (SOCK_RAW).</param>
/// <param name="User">The user id it was made by.</param>
internal readonly record struct PacketSocket(uint Inode, int Interface, bool HasLinkHeader, uint User);

/// <summary>The packet sockets of the network namespace of the thread that calls.</summary>
internal static unsafe class PacketSockets
{
    private const ushort SOCK_DIAG_BY_FAMILY = 20;
    private const byte AF_PACKET = 17;
    private const uint PACKET_SHOW_FILTER = 0x20;
    private const ushort PACKET_DIAG_FILTER = 7;
    private const string ETH_P_ALL = "0003";
    private const string SOCK_DGRAM = "2";
    private const string Running = "1";

    // Of the thread, which may live in another namespace than the process's first one.
    private const string Table = "/proc/thread-self/net/packet";

    /// <summary>Those that get every protocol, and so what is transmitted. Empty where the kernel has no packet sockets.</summary>
    public static List<PacketSocket> ListCaptures()
    {
        List<PacketSocket> sockets = [];
        try
        {
            // sk RefCnt Type Proto Iface R Rmem User Inode, below a line that says so.
            foreach (string line in File.ReadLines(Table))
            {
                string[] fields = line.Split(' ', StringSplitOptions.RemoveEmptyEntries);
                if (fields is [_, _, string type, ETH_P_ALL, string link, Running, _, string user, string inode])
                {
                    sockets.Add(new PacketSocket(Parse(inode), (int)Parse(link), type != SOCK_DGRAM, Parse(user)));
                }
            }
        }
        catch (IOException)
        {
            // No AF_PACKET in this kernel, or not yet: no sockets.
        }

        return sockets;
    }

    /// <summary>A number that is another one when <see cref="ListCaptures"/> gives others, and 0 when it gives none. Allocates nothing.</summary>
    public static ulong CapturesFingerprint()
    {
        int fd;
        fixed (byte* path = "/proc/thread-self/net/packet\0"u8)
        {
            fd = LibC.open(path, LibC.O_RDONLY | LibC.O_CLOEXEC, default);
        }

        if (fd < 0)
        {
            return 0;
        }

        ulong fingerprint = 0;
        byte* buffer = stackalloc byte[4096];
        // Of the present line: the field's number, and the fields that count.
        int field = 0;
        bool inField = false, isNumber = true;
        ulong protocol = 0, link = 0, running = 0, inode = 0;
        for (long length; (length = (long)LibC.read(fd, buffer, 4096)) > 0;)
        {
            for (int i = 0; i < length; i++)
            {
                byte c = buffer[i];
                if (c is (byte)' ' or (byte)'\n')
                {
                    field += inField ? 1 : 0;
                    inField = false;
                    if (c == (byte)'\n')
                    {
                        if (isNumber && protocol == 3 && running == 1)
                        {
                            fingerprint += (((inode << 24) ^ link) * 0x9E3779B97F4A7C15) | 1;
                        }

                        (field, isNumber, protocol, link, running, inode) = (0, true, 0, 0, 0, 0);
                    }

                    continue;
                }

                inField = true;
                uint digit = c is >= (byte)'0' and <= (byte)'9' ? (uint)(c - '0') : c is >= (byte)'a' and <= (byte)'f' ? (uint)(c - 'a' + 10) : 16;
                switch (field)
                {
                    case 3:
                        // Not the line that names the fields.
                        isNumber &= digit < 16;
                        protocol = (protocol << 4) | digit;
                        break;
                    case 4:
                        link = (link * 10) + digit;
                        break;
                    case 5:
                        running = (running * 10) + digit;
                        break;
                    case 8:
                        inode = (inode * 10) + digit;
                        break;
                    default:
                        break;
                }
            }
        }

        _ = LibC.close(fd);
        return fingerprint;
    }

    /// <summary>The filter that lets packets into a socket.</summary>
    /// <returns>Empty for a socket without one; also for one that is not to be had: of extended BPF, or of a kernel without packet_diag.</returns>
    public static sock_filter[] FilterOf(uint inode)
    {
        sock_filter[] filter = [];
        using NetlinkSocket socket = new(NetlinkSocket.NETLINK_SOCK_DIAG);
        NetlinkMessage message = socket.Begin(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP);
        message.Append(new packet_diag_req { sdiag_family = AF_PACKET, pdiag_show = PACKET_SHOW_FILTER });
        NetlinkError error = socket.Try(message, (type, payload) =>
        {
            if (type == SOCK_DIAG_BY_FAMILY && ReadFilter(payload, inode) is { } found)
            {
                filter = found;
            }
        });
        return error.Errno is 0 or ENOENT or EINVAL ? filter : throw error.ToException("SOCK_DIAG_BY_FAMILY", "AF_PACKET");
    }

    /// <summary>Null for another socket's, and for one without a filter.</summary>
    internal static sock_filter[]? ReadFilter(ReadOnlySpan<byte> payload, uint inode)
    {
        sock_filter[]? filter = null;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out packet_diag_msg header);
        while (header.pdiag_ino == inode && attributes.MoveNext())
        {
            if (attributes.Type == PACKET_DIAG_FILTER)
            {
                filter = MemoryMarshal.Cast<byte, sock_filter>(attributes.Data).ToArray();
            }
        }

        return filter;
    }

    private static uint Parse(string field) => uint.TryParse(field, NumberStyles.None, CultureInfo.InvariantCulture, out uint value) ? value : 0;

    /// <summary>struct packet_diag_req of linux/packet_diag.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct packet_diag_req
    {
        public byte sdiag_family;
        public byte sdiag_protocol;
        private readonly ushort _pad;
        public uint pdiag_ino;
        public uint pdiag_show;
        private readonly uint _pdiag_cookie0;
        private readonly uint _pdiag_cookie1;
    }

    /// <summary>struct packet_diag_msg of linux/packet_diag.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct packet_diag_msg
    {
        public byte pdiag_family;
        public byte pdiag_type;
        public ushort pdiag_num;
        public uint pdiag_ino;
        private readonly uint _pdiag_cookie0;
        private readonly uint _pdiag_cookie1;
    }
}
