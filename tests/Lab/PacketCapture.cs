using System.Buffers.Binary;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Lab;

namespace XenLoop.Tests.Lab;

/// <summary>A packet socket in a guest, as programs that capture have.</summary>
internal sealed unsafe class PacketCapture : IDisposable
{
    public const ushort ETH_P_ALL = 0x0003;
    public const ushort ETH_P_IP = 0x0800;

    private readonly SafeFd _fd;

    private PacketCapture(SafeFd fd) => _fd = fd;

    /// <param name="guest">Where.</param>
    /// <param name="protocol">ETH_P_ALL gets what is transmitted, too.</param>
    /// <param name="link">An interface; null for all.</param>
    /// <param name="filter">Classic BPF; in force before the first packet.</param>
    public static PacketCapture Open(LabGuest guest, ushort protocol, string? link, params sock_filter[] filter) => Namespaces.Run(guest, () =>
    {
        const int AF_PACKET = 17, SOL_SOCKET = 1, SO_ATTACH_FILTER = 26;
        using Links links = new();
        PacketCapture capture = new(new SafeFd(Check(LibC.socket(AF_PACKET, LibC.SOCK_RAW | LibC.SOCK_CLOEXEC | LibC.SOCK_NONBLOCK, 0), "socket")));
        if (filter.Length > 0)
        {
            fixed (sock_filter* code = filter)
            {
                // struct sock_fprog: the length, then the address.
                nint* program = stackalloc nint[2] { filter.Length, (nint)code };
                Check(LibC.setsockopt(capture._fd.Number, SOL_SOCKET, SO_ATTACH_FILTER, program, 16), "setsockopt(SO_ATTACH_FILTER)");
            }
        }

        sockaddr_ll address = new()
        {
            sll_family = AF_PACKET,
            sll_protocol = BinaryPrimitives.ReverseEndianness(protocol),
            sll_ifindex = link is null ? 0 : links.FindLink(link)!.Index,
        };
        Check(LibC.bind(capture._fd.Number, (sockaddr*)&address, sizeof(sockaddr_ll)), "bind");
        return capture;
    });

    /// <summary>The next frame that is there; null for none.</summary>
    public byte[]? TryRead()
    {
        byte[] buffer = new byte[65536];
        fixed (byte* pointer = buffer)
        {
            long length = (long)LibC.recv(_fd.Number, pointer, buffer.Length, 0);
            return length < 0 ? null : buffer[..(int)length];
        }
    }

    public void Dispose() => _fd.Dispose();

    private static int Check(int result, string call) => result >= 0 ? result : throw new NativeException(call, "AF_PACKET", LibC.errno);

    [StructLayout(LayoutKind.Sequential)]
    private struct sockaddr_ll
    {
        public ushort sll_family;
        public ushort sll_protocol;
        public int sll_ifindex;
        public ushort sll_hatype;
        public byte sll_pkttype;
        public byte sll_halen;
        public ulong sll_addr;
    }
}
