using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>Gets each message of an answer.</summary>
internal delegate void NetlinkHandler(ushort type, ReadOnlySpan<byte> payload);

/// <summary>Flags of requests (linux/netlink.h), those that are used here.</summary>
internal static class NetlinkFlags
{
    public const ushort NLM_F_REQUEST = 0x1;
    public const ushort NLM_F_ACK = 0x4;
    public const ushort NLM_F_DUMP = 0x300;
    public const ushort NLM_F_REPLACE = 0x100;
    public const ushort NLM_F_EXCL = 0x200;
    public const ushort NLM_F_CREATE = 0x400;
}

/// <summary>
/// A socket of netlink(7): one request at a time and its answer. Works on the network namespace of the thread that opened it.
/// Not for two threads at once.
/// </summary>
internal sealed unsafe class NetlinkSocket : IDisposable
{
    public const int NETLINK_ROUTE = 0;
    public const int NETLINK_SOCK_DIAG = 4;
    public const int NETLINK_NETFILTER = 12;

    private const int NETLINK_CAP_ACK = 10;
    private const int NETLINK_EXT_ACK = 11;

    private const ushort NLMSG_ERROR = 2;
    private const ushort NLMSG_DONE = 3;

    private readonly SafeFd _fd;
    private readonly byte[] _request = new byte[1024];
    // A dump arrives in pieces of at most 32 KiB.
    private readonly byte[] _answer = new byte[32768];
    private uint _sequence;

    /// <param name="protocol">NETLINK_*.</param>
    /// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
    public NetlinkSocket(int protocol = NETLINK_ROUTE)
    {
        _fd = Open(0, protocol);
        // Both only improve error messages: kernels that lack them (before 4.12) may say no.
        int one = 1;
        _ = LibC.setsockopt(_fd.Number, LibC.SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(int));
        _ = LibC.setsockopt(_fd.Number, LibC.SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(int));
    }

    /// <summary>Any ioctl(2) of sockets, too, can be asked of it.</summary>
    public int FileDescriptor => _fd.Number;

    /// <param name="flags">Besides SOCK_CLOEXEC.</param>
    /// <param name="protocol">NETLINK_*.</param>
    /// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
    public static SafeFd Open(int flags, int protocol = NETLINK_ROUTE)
    {
        int fd = LibC.socket(LibC.AF_NETLINK, LibC.SOCK_RAW | LibC.SOCK_CLOEXEC | flags, protocol);
        return fd >= 0
            ? new SafeFd(fd)
            : throw new NativeException("socket", protocol switch { NETLINK_ROUTE => "rtnetlink", NETLINK_NETFILTER => "nfnetlink", _ => "sock_diag" }, LibC.errno, "AF_NETLINK must be allowed (RestrictAddressFamilies=)");
    }

    /// <summary>Begins a request, in the one buffer that there is: it is to be sent before the next one begins.</summary>
    /// <param name="type">RTM_*.</param>
    /// <param name="flags">NLM_F_*, besides NLM_F_REQUEST.</param>
    public NetlinkMessage Begin(ushort type, int flags = 0) => new(_request, type, (ushort)(NLM_F_REQUEST | flags));

    public void Dispose() => _fd.Dispose();

    /// <summary>As <see cref="Try"/>.</summary>
    /// <exception cref="NativeException">The kernel refuses.</exception>
    public void Request(in NetlinkMessage message, string call, string subject, NetlinkHandler? handler = null)
    {
        NetlinkError error = Try(message, handler);
        if (error.Errno != 0)
        {
            throw error.ToException(call, subject);
        }
    }

    /// <summary>Sends and reads until the kernel has acknowledged, refused or answered. The kernel answers within the call, so nothing waits here.</summary>
    public NetlinkError Try(in NetlinkMessage message, NetlinkHandler? handler)
    {
        uint sequence = ++_sequence;
        ReadOnlySpan<byte> request = message.Finish(sequence);
        nlmsghdr asked = MemoryMarshal.Read<nlmsghdr>(request);
        bool oneAnswer = (asked.nlmsg_flags & (NLM_F_ACK | NLM_F_DUMP)) == 0;
        fixed (byte* pointer = request)
        {
            if (LibC.send(_fd.Number, pointer, request.Length, 0) < 0)
            {
                return new NetlinkError(LibC.errno, null);
            }
        }
        while (true)
        {
            int received;
            fixed (byte* pointer = _answer)
            {
                received = (int)LibC.recv(_fd.Number, pointer, _answer.Length, 0);
            }
            if (received < 0)
            {
                int errno = LibC.errno;
                if (errno == EINTR)
                {
                    continue;
                }
                return new NetlinkError(errno, null);
            }
            if (Read(_answer.AsSpan(0, received), sequence, oneAnswer, handler) is { } end)
            {
                return end;
            }
        }
    }

    /// <summary>Reads what was received at once.</summary>
    /// <returns>How the request ended; null when more is to come.</returns>
    internal static NetlinkError? Read(ReadOnlySpan<byte> received, uint sequence, bool oneAnswer, NetlinkHandler? handler)
    {
        while (received.Length >= Unsafe.SizeOf<nlmsghdr>())
        {
            nlmsghdr header = MemoryMarshal.Read<nlmsghdr>(received);
            int length = (int)header.nlmsg_len;
            if (length < Unsafe.SizeOf<nlmsghdr>() || length > received.Length)
            {
                break;
            }
            ReadOnlySpan<byte> payload = received[Unsafe.SizeOf<nlmsghdr>()..length];
            received = received[Math.Min(NetlinkMessage.Align(length), received.Length)..];
            // An answer to an earlier request that ended early.
            if (header.nlmsg_seq != sequence)
            {
                continue;
            }
            switch (header.nlmsg_type)
            {
                case NLMSG_ERROR:
                    return NetlinkError.Read(payload, header.nlmsg_flags);
                case NLMSG_DONE:
                    return default(NetlinkError);
                default:
                    handler?.Invoke(header.nlmsg_type, payload);
                    if (oneAnswer)
                    {
                        return default(NetlinkError);
                    }
                    break;
            }
        }
        return null;
    }
}

/// <summary>What the kernel answered: errno (0 is success) and, if it gave one, its reason in words.</summary>
internal readonly record struct NetlinkError(int Errno, string? Reason)
{
    private const ushort NLM_F_ACK_TLVS = 0x200;
    private const ushort NLMSGERR_ATTR_MSG = 1;

    public static NetlinkError Read(ReadOnlySpan<byte> payload, ushort flags)
    {
        _ = NetlinkAttributes.Behind(payload, out nlmsgerr error);
        string? reason = null;
        if ((flags & NLM_F_ACK_TLVS) != 0)
        {
            const ushort NLM_F_CAPPED = 0x100;
            int length = (int)Math.Min(error.request.nlmsg_len, (uint)payload.Length);
            int echoed = (flags & NLM_F_CAPPED) != 0 ? Unsafe.SizeOf<nlmsghdr>() : NetlinkMessage.Align(length);
            NetlinkAttributes attributes = new(payload[Math.Min(sizeof(int) + echoed, payload.Length)..]);
            while (attributes.MoveNext())
            {
                reason = attributes.Type == NLMSGERR_ATTR_MSG ? attributes.Text : reason;
            }
        }
        return new NetlinkError(-error.error, reason);
    }

    public NativeException ToException(string call, string subject, string? remedy = null)
    {
        remedy ??= Errno == EPERM ? "CAP_NET_ADMIN is needed" : null;
        string? said = Reason is null ? remedy : remedy is null ? $"The kernel says: {Reason}" : $"The kernel says: {Reason}. {remedy}";
        return new NativeException(call, subject, Errno, said);
    }

    /// <summary>struct nlmsgerr of linux/netlink.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct nlmsgerr
    {
        public int error;
        public nlmsghdr request;
    }
}
