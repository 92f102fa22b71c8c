using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>
/// A network interface whose cable is a file descriptor: what the kernel transmits is read(2) from it, what is
/// write(2)n to it the kernel receives. One call carries one frame with a virtio_net_hdr before it, at most 64 KiB:
/// the stack hands over TCP (and UDP) super-packets unsegmented, with the checksum left to be filled in.
/// The interface lives as long as the descriptor: it vanishes with the process, however that ends.
/// </summary>
internal sealed unsafe partial class TapDevice : IDisposable
{
    /// <summary>Bytes of the virtio_net_hdr before each frame: the kernel's default, without num_buffers.</summary>
    public const int VnetHeaderSize = 10;

    private const int TUNSETIFF = 0x400454ca;
    private const int TUNSETOFFLOAD = 0x400454d0;
    private const int TUNSETFILTEREBPF = unchecked((int)0x800454e1);

    private const short IFF_TAP = 0x0002;
    private const short IFF_NO_PI = 0x1000;
    private const short IFF_VNET_HDR = 0x4000;
    // Never take over an interface that was there before (somebody's persistent TAP).
    private const short IFF_TUN_EXCL = unchecked((short)0x8000);

    private const int TUN_F_CSUM = 0x01;
    private const int TUN_F_TSO4 = 0x02;
    private const int TUN_F_TSO6 = 0x04;
    private const int TUN_F_TSO_ECN = 0x08;
    private const int TUN_F_USO4 = 0x20;
    private const int TUN_F_USO6 = 0x40;

    private readonly SafeFd _fd;

    private TapDevice(SafeFd fd, string name, int index)
    {
        _fd = fd;
        Name = name;
        Index = index;
    }

    /// <summary>Non-blocking. Valid until <see cref="Dispose"/>; only the owner closes it.</summary>
    public int FileDescriptor => _fd.Number;

    public string Name { get; }

    /// <summary>The interface's index in the network namespace of the thread that opened it.</summary>
    public int Index { get; }

    /// <summary>Creates the interface, down and without an address. See <see cref="BringUp"/>.</summary>
    /// <param name="name">At most 15 characters; <c>%d</c> is replaced by the first free number.</param>
    /// <param name="uso">Take UDP super-packets, too: only where <see cref="ProbeUso"/> says so.</param>
    /// <exception cref="NativeException">No tun driver, no CAP_NET_ADMIN, or the name is taken.</exception>
    public static TapDevice Open(string name, bool uso)
    {
        (SafeFd fd, string actualName) = Create(name);
        try
        {
            // TUNSETSNDBUF is left alone: the kernel's cheap allocation path needs the default (see docs/measurements.md).
            int errno = SetOffload(fd.Number, uso);
            if (errno != 0)
            {
                throw new NativeException(
                    "ioctl(TUNSETOFFLOAD)", actualName, errno,
                    uso ? "UDP segmentation offload needs Linux 6.2; switch it off" : null);
            }
            return new TapDevice(fd, actualName, IndexOf(actualName));
        }
        catch
        {
            fd.Dispose();
            throw;
        }
    }

    /// <summary>Can this kernel hand over UDP super-packets (Linux 6.2 and later)? Makes an interface for a moment to ask.</summary>
    /// <exception cref="NativeException">No TAP can be made at all.</exception>
    public static bool ProbeUso()
    {
        (SafeFd fd, _) = Create("xlprobe%d");
        using (fd)
        {
            return SetOffload(fd.Number, uso: true) == 0;
        }
    }

    /// <summary>
    /// Makes the interface ready to carry the frames of another one and sets it up. It never says a word of its own:
    /// no IPv6 link-local address and so no router solicitation, no multicast memberships, no ARP.
    /// </summary>
    /// <param name="links">Of the same network namespace.</param>
    /// <param name="mtu">Of the interface it stands in for.</param>
    /// <param name="queueLength">Packets that wait for <c>read</c>; one super-packet counts as one.</param>
    public void BringUp(Links links, int mtu, int queueLength)
    {
        // Before it is up, for the kernel makes the address and reports its groups in the moment it comes up.
        DisableIPv6();
        links.DisableAddressGeneration(Index);
        links.SetFlags(Index, LinkFlags.IFF_NOARP, LinkFlags.IFF_NOARP | LinkFlags.IFF_MULTICAST);
        links.SetMtu(Index, mtu);
        links.SetQueueLength(Index, queueLength);
        // The TAP has a queue of its own; a qdisc before it would cost a lock and delay nothing.
        links.TrySetNoQueue(Index);
        KeepToTheWriter();
        links.SetUp(Index);
    }

    /// <summary>Leaves to the kernel what another interface must not do: it fills in checksums and cuts super-packets before they are read.</summary>
    /// <param name="off">Of the interface this one stands in for; <see cref="LinkFeatures.None"/> for all that there is.</param>
    /// <param name="uso">As the interface was opened with.</param>
    public void SwitchOff(LinkFeatures off, bool uso)
    {
        int errno = SetOffload(_fd.Number, uso, off);
        if (errno != 0)
        {
            throw new NativeException("ioctl(TUNSETOFFLOAD)", Name, errno);
        }
    }

    /// <summary>Has a program look at each frame before it gets into the queue. The interface keeps the program alive.</summary>
    /// <param name="program">See <see cref="Bpf.LoadSocketFilter"/>: it says how many bytes are let in, 0 for none.</param>
    /// <exception cref="NativeException">The kernel is older than 4.16.</exception>
    public void SetFilter(SafeFd program)
    {
        int number = program.Number;
        if (LibC.ioctl(_fd.Number, TUNSETFILTEREBPF, &number) < 0)
        {
            throw new NativeException("ioctl(TUNSETFILTEREBPF)", Name, LibC.errno);
        }
    }

    /// <summary>Closes the descriptor and with it removes the interface.</summary>
    public void Dispose() => _fd.Dispose();

    /// <summary>
    /// Frames that arrive belong to another interface before the network layer sees them, so IPv6 is of no use here, and on
    /// a router it would report its multicast groups. Where /proc/sys is read-only or IPv6 is missing, nothing is lost:
    /// the reports go to group addresses, which no channel carries.
    /// </summary>
    private void DisableIPv6()
    {
        try
        {
            File.WriteAllText($"/proc/sys/net/ipv6/conf/{Name}/disable_ipv6", "1");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
        }
    }

    /// <summary>
    /// Where received packets are spread over CPUs (RPS, <c>net.core.rps_default_mask</c>), they pass a backlog that may drop them: the thread that
    /// writes a frame is to deliver it. Where /sys is read-only that is as it is.
    /// </summary>
    private void KeepToTheWriter()
    {
        try
        {
            File.WriteAllText($"/sys/class/net/{Name}/queues/rx-0/rps_cpus", "0");
        }
        catch (Exception exception) when (exception is IOException or UnauthorizedAccessException)
        {
        }
    }

    private static (SafeFd Fd, string Name) Create(string name)
    {
        ifreq request = default;
        if (!Encoding.ASCII.TryGetBytes(name, new Span<byte>(request.ifr_name, IFNAMSIZ - 1), out _) || name.Length == 0)
        {
            throw new ArgumentException($"'{name}' is no interface name", nameof(name));
        }
        int number;
        fixed (byte* path = "/dev/net/tun"u8)
        {
            number = LibC.open(path, LibC.O_RDWR | LibC.O_NONBLOCK | LibC.O_CLOEXEC, default);
        }
        if (number < 0)
        {
            int errno = LibC.errno;
            throw new NativeException("open", "/dev/net/tun", errno, errno switch
            {
                ENOENT or ENODEV or ENXIO => "The tun driver is missing: modprobe tun",
                EPERM => "The container or the unit must allow the device",
                _ => null,
            });
        }
        SafeFd fd = new(number);
        request.ifr_flags = (short)(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | IFF_TUN_EXCL);
        if (LibC.ioctl(number, TUNSETIFF, &request) < 0)
        {
            int errno = LibC.errno;
            fd.Dispose();
            throw new NativeException("ioctl(TUNSETIFF)", name, errno, errno switch
            {
                EBUSY => "An interface of this name exists already: is another xenloopd running?",
                EPERM => "CAP_NET_ADMIN is needed",
                EINVAL => "The name is not valid, or the tun driver is too old",
                _ => null,
            });
        }
        return (fd, Encoding.ASCII.GetString(MemoryMarshal.CreateReadOnlySpanFromNullTerminated(request.ifr_name)));
    }

    private static int SetOffload(int fd, bool uso, LinkFeatures off = LinkFeatures.None)
    {
        int offload = 0;
        // Nothing is cut whose checksums are not filled in afterwards.
        if ((off & LinkFeatures.Checksum) == 0)
        {
            bool tso4 = (off & LinkFeatures.Tso4) == 0, tso6 = (off & LinkFeatures.Tso6) == 0;
            offload = TUN_F_CSUM | (tso4 ? TUN_F_TSO4 : 0) | (tso6 ? TUN_F_TSO6 : 0);
            // The kernel takes ECN only with TSO, and of USO4 and USO6 both or none.
            offload |= (tso4 || tso6) && (off & LinkFeatures.TsoEcn) == 0 ? TUN_F_TSO_ECN : 0;
            offload |= uso && (off & LinkFeatures.Uso) == 0 ? TUN_F_USO4 | TUN_F_USO6 : 0;
        }

        return LibC.ioctl(fd, TUNSETOFFLOAD, offload) < 0 ? LibC.errno : 0;
    }

    private static int IndexOf(string name)
    {
        Span<byte> text = stackalloc byte[IFNAMSIZ];
        text.Clear();
        Encoding.ASCII.GetBytes(name, text);
        uint index;
        fixed (byte* pointer = text)
        {
            index = if_nametoindex(pointer);
        }
        if (index == 0)
        {
            throw new NativeException("if_nametoindex", name, Marshal.GetLastPInvokeError());
        }
        return (int)index;
    }

    internal const int IFNAMSIZ = 16;

    /// <summary>struct ifreq of linux/if.h, with the one member of the union that is used here.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct ifreq
    {
        public fixed byte ifr_name[IFNAMSIZ];
        public short ifr_flags;
        private fixed byte ifr_ifru_rest[22];
    }

    /// <summary>unsigned int if_nametoindex(const char *ifname);</summary>
    [LibraryImport("libc", SetLastError = true)]
    [UnmanagedCallConv(CallConvs = [typeof(CallConvCdecl)])]
    private static partial uint if_nametoindex(byte* ifname);
}
