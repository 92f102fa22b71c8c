using System.Buffers.Binary;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>What a bridge's forwarding table has an entry for: an address, in a VLAN (0 where the bridge does not look at VLANs).</summary>
internal sealed record FdbKey(int Bridge, int Vlan, MacAddress Mac);

/// <summary>Where a bridge forwards frames for an address to.</summary>
/// <param name="Port">The index of the port's interface, or of the bridge's.</param>
/// <param name="IsLocal">To nobody: the address is an interface's of this host.</param>
internal sealed record FdbEntry(int Port, bool IsLocal);

/// <summary>
/// The forwarding tables of the bridges of a network namespace, that of the thread that opened this: of the addresses asked for, and
/// of no others, it tells each change. Not for two threads at once.
/// </summary>
internal sealed unsafe class BridgeFdb : IDisposable
{
    private const uint RTMGRP_NEIGH = 4;
    private const ushort RTM_NEWNEIGH = 28;
    private const ushort RTM_DELNEIGH = 29;
    private const ushort RTM_GETNEIGH = 30;
    private const ushort NDA_LLADDR = 2;
    private const ushort NDA_VLAN = 5;
    private const ushort NDA_MASTER = 9;
    private const ushort NUD_PERMANENT = 0x80;
    private const byte AF_BRIDGE = 7;
    private const int SO_ATTACH_FILTER = 26;

    // Classic BPF, linux/filter.h.
    private const ushort BPF_LD_W_ABS = 0x20, BPF_LD_H_ABS = 0x28, BPF_LD_B_ABS = 0x30, BPF_JEQ_K = 0x15, BPF_JA = 0x05, BPF_RET_K = 0x06;
    // A conditional jump reaches 255 instructions further.
    private const int Chunk = 200;
    // BPF_MAXINSNS is 4096, and in the worst case an address takes seven.
    private const int MostAddresses = 580;

    private readonly NetlinkSocket _socket = new();
    private readonly SafeFd _changes;
    private readonly byte[] _buffer = new byte[4096];

    /// <exception cref="NativeException">The kernel gives no netlink socket.</exception>
    public BridgeFdb()
    {
        try
        {
            _changes = NetlinkMonitor.Open(NetlinkSocket.NETLINK_ROUTE, RTMGRP_NEIGH);
        }
        catch
        {
            _socket.Dispose();
            throw;
        }

        Follow([]);
    }

    /// <summary>Readable after a change; then call <see cref="TakeChanges"/>.</summary>
    public int FileDescriptor => _changes.Number;

    /// <summary>Hears of these addresses from now on, and of no others: a guest that floods a bridge with addresses wakes nobody.</summary>
    public void Follow(IReadOnlyCollection<FdbKey> addresses)
    {
        int errno = Attach(Filter(addresses));
        // ENOMEM: it is more than the kernel has room for (net.core.optmem_max). Then all bridges' changes come, and are dropped by who asked.
        errno = errno == ENOMEM ? Attach(Filter(null)) : errno;
        if (errno != 0)
        {
            throw new NativeException("setsockopt(SO_ATTACH_FILTER)", "changes of forwarding tables", errno);
        }
    }

    /// <summary>Where a bridge forwards frames for the address to; null when it has not learned that.</summary>
    public FdbEntry? Find(FdbKey key)
    {
        Span<byte> bytes = stackalloc byte[MacAddress.Length];
        key.Mac.CopyTo(bytes);
        NetlinkMessage message = _socket.Begin(RTM_GETNEIGH);
        message.Append(new ndmsg { ndm_family = AF_BRIDGE });
        message.Attribute(NDA_LLADDR, bytes);
        message.Attribute(NDA_MASTER, key.Bridge);
        if (key.Vlan != 0)
        {
            message.Attribute(NDA_VLAN, (ushort)key.Vlan);
        }

        FdbEntry? entry = null;
        NetlinkError error = _socket.Try(message, (type, payload) =>
        {
            if (type == RTM_NEWNEIGH && TryRead(payload, out _, out FdbEntry? found))
            {
                entry = found;
            }
        });
        // ENODEV and EINVAL: the bridge has gone. EOPNOTSUPP: Linux before 5.0, of which only changes are known.
        return error.Errno is 0 or ENOENT or ENODEV or EINVAL or EOPNOTSUPP ? entry : throw error.ToException("RTM_GETNEIGH", $"{key.Mac} on bridge {key.Bridge}");
    }

    /// <summary>Takes the changes of what is followed: each with the entry that there is now, or null when it went.</summary>
    /// <returns>False when there were too many, and some are lost: look at all.</returns>
    public bool TakeChanges(Action<FdbKey, FdbEntry?> changed)
    {
        bool complete = true;
        while (true)
        {
            int received;
            fixed (byte* pointer = _buffer)
            {
                received = (int)LibC.recv(_changes.Number, pointer, _buffer.Length, 0);
            }

            if (received < 0)
            {
                if (LibC.errno is not (ENOBUFS or EINTR))
                {
                    return complete;
                }

                complete &= LibC.errno == EINTR;
                continue;
            }

            // The kernel sends each change by itself.
            ReadOnlySpan<byte> message = _buffer.AsSpan(0, received);
            if (message.Length < Unsafe.SizeOf<nlmsghdr>())
            {
                continue;
            }

            ushort type = MemoryMarshal.Read<nlmsghdr>(message).nlmsg_type;
            if (type is RTM_NEWNEIGH or RTM_DELNEIGH && TryRead(message[Unsafe.SizeOf<nlmsghdr>()..], out FdbKey? key, out FdbEntry? entry))
            {
                changed(key, type == RTM_NEWNEIGH ? entry : null);
            }
        }
    }

    public void Dispose()
    {
        _changes.Dispose();
        _socket.Dispose();
    }

    /// <summary>Lets through what tells of these addresses, or of all when they are null or too many.</summary>
    private static List<ulong> Filter(IReadOnlyCollection<FdbKey>? addresses)
    {
        // At 16 is ndmsg.ndm_family; a bridge's first attribute, at 28, is NDA_LLADDR: its length and type, and at 32 the address.
        List<ulong> filter = [Instruction(BPF_LD_B_ABS, 16), Instruction(BPF_JEQ_K, AF_BRIDGE, 1), Instruction(BPF_RET_K, 0)];
        if (addresses is null || addresses.Count > MostAddresses)
        {
            filter.Add(Instruction(BPF_RET_K, uint.MaxValue));
            return filter;
        }

        // Loads are big-endian, whatever the machine.
        filter.Add(Instruction(BPF_LD_W_ABS, 28));
        filter.Add(Instruction(BPF_JEQ_K, 0x0a00_0200, 1));
        filter.Add(Instruction(BPF_RET_K, uint.MaxValue));
        // By the first two bytes, which most have in common, so that an address takes one instruction.
        Span<byte> bytes = stackalloc byte[MacAddress.Length];
        Dictionary<int, List<uint>> groups = [];
        foreach (FdbKey key in addresses)
        {
            key.Mac.CopyTo(bytes);
            ushort first = BinaryPrimitives.ReadUInt16BigEndian(bytes);
            if (!groups.TryGetValue(first, out List<uint>? rest))
            {
                groups[first] = rest = [];
            }

            rest.Add(BinaryPrimitives.ReadUInt32BigEndian(bytes[2..]));
        }

        foreach ((int first, List<uint> rest) in groups)
        {
            filter.Add(Instruction(BPF_LD_H_ABS, 32));
            filter.Add(Instruction(BPF_JEQ_K, (uint)first, 1));
            int over = filter.Count;
            filter.Add(0);
            filter.Add(Instruction(BPF_LD_W_ABS, 34));
            for (int i = 0; i < rest.Count; i += Chunk)
            {
                int count = Math.Min(Chunk, rest.Count - i);
                for (int j = 0; j < count; j++)
                {
                    // Over those that follow, and the jump behind them.
                    filter.Add(Instruction(BPF_JEQ_K, rest[i + j], count - j));
                }

                filter.Add(Instruction(BPF_JA, 1));
                filter.Add(Instruction(BPF_RET_K, uint.MaxValue));
            }

            filter[over] = Instruction(BPF_JA, (uint)(filter.Count - over - 1));
        }

        filter.Add(Instruction(BPF_RET_K, 0));
        return filter;
    }

    /// <summary>struct sock_filter of linux/filter.h: code, how many to skip when it is equal and when it is not (here none), k.</summary>
    private static ulong Instruction(ushort code, uint k, int skip = 0) => code | ((ulong)skip << 16) | ((ulong)k << 32);

    /// <returns>errno; 0 when it is in place.</returns>
    private int Attach(List<ulong> filter)
    {
        fixed (ulong* first = CollectionsMarshal.AsSpan(filter))
        {
            sock_fprog program = new() { len = (ushort)filter.Count, filter = first };
            return LibC.setsockopt(_changes.Number, LibC.SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(sock_fprog)) < 0 ? LibC.errno : 0;
        }
    }

    /// <summary>False for what is no bridge's entry, as the addresses that an interface's own filter lets through.</summary>
    internal static bool TryRead(ReadOnlySpan<byte> payload, [NotNullWhen(true)] out FdbKey? key, [NotNullWhen(true)] out FdbEntry? entry)
    {
        int bridge = 0, vlan = 0;
        MacAddress mac = default;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out ndmsg header);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case NDA_LLADDR when attributes.Data.Length == MacAddress.Length:
                    mac = MacAddress.Read(attributes.Data);
                    break;
                case NDA_MASTER:
                    bridge = attributes.Value<int>();
                    break;
                case NDA_VLAN:
                    vlan = attributes.Value<ushort>();
                    break;
                default:
                    break;
            }
        }

        key = new FdbKey(bridge, vlan, mac);
        entry = new FdbEntry(header.ndm_ifindex, (header.ndm_state & NUD_PERMANENT) != 0);
        return header.ndm_family == AF_BRIDGE && bridge != 0;
    }

    /// <summary>struct ndmsg of linux/neighbour.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct ndmsg
    {
        public byte ndm_family;
        private readonly byte _pad1;
        private readonly ushort _pad2;
        public int ndm_ifindex;
        public ushort ndm_state;
        public byte ndm_flags;
        public byte ndm_type;
    }

    /// <summary>struct sock_fprog of linux/filter.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct sock_fprog
    {
        public ushort len;
        public ulong* filter;
    }
}
