using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>Where a program is attached by a TCX link (linux/bpf.h).</summary>
internal enum BpfAttachType : uint
{
    BPF_TCX_INGRESS = 46,
    BPF_TCX_EGRESS = 47,
}

/// <summary>bpf(2): maps, programs and links, each a descriptor that keeps its object alive.</summary>
internal static unsafe partial class Bpf
{
    private const int BPF_MAP_CREATE = 0;
    private const int BPF_MAP_LOOKUP_ELEM = 1;
    private const int BPF_MAP_UPDATE_ELEM = 2;
    private const int BPF_MAP_DELETE_ELEM = 3;
    private const int BPF_PROG_LOAD = 5;
    private const int BPF_PROG_GET_FD_BY_ID = 13;
    private const int BPF_OBJ_GET_INFO_BY_FD = 15;
    private const int BPF_PROG_QUERY = 16;
    private const int BPF_LINK_CREATE = 28;

    private const uint BPF_MAP_TYPE_HASH = 1;
    private const uint BPF_MAP_TYPE_ARRAY = 2;
    private const uint BPF_MAP_TYPE_RINGBUF = 27;
    private const uint BPF_F_NO_PREALLOC = 1 << 0;
    private const uint BPF_F_MMAPABLE = 1 << 10;
    private const uint BPF_PROG_TYPE_SOCKET_FILTER = 1;
    private const uint BPF_PROG_TYPE_SCHED_CLS = 3;
    private const int BPF_OBJ_NAME_LEN = 16;
    private const int LogSize = 64 * 1024;
    // BPF_MPROG_MAX: the kernel lets no more programs be attached to one hook.
    private const int MostPrograms = 64;

    private const int RLIMIT_MEMLOCK = 8;

    /// <param name="name">At most 15 characters; shown by bpftool.</param>
    /// <param name="keySize">Bytes.</param>
    /// <param name="valueSize">Bytes.</param>
    /// <param name="entries">At most so many; each is allocated when it is added.</param>
    /// <exception cref="NativeException">The kernel has no bpf(2), or the process may not use it.</exception>
    public static SafeFd CreateHash(string name, int keySize, int valueSize, int entries) =>
        CreateMap(name, BPF_MAP_TYPE_HASH, keySize, valueSize, entries, BPF_F_NO_PREALLOC);

    /// <summary>See <see cref="BpfRingBuffer"/>.</summary>
    public static SafeFd CreateRingBuffer(string name, int bytes) =>
        CreateMap(name, BPF_MAP_TYPE_RINGBUF, 0, 0, bytes, 0);

    /// <summary>An array that can be mapped into the process, so that kernel and process share the values.</summary>
    /// <param name="name">At most 15 characters; shown by bpftool.</param>
    /// <param name="valueSize">Bytes, a multiple of 8.</param>
    /// <param name="entries">Number of values.</param>
    /// <exception cref="NativeException">The kernel is older than 5.5, or the process may not use bpf(2).</exception>
    public static SafeFd CreateMappableArray(string name, int valueSize, int entries) =>
        CreateMap(name, BPF_MAP_TYPE_ARRAY, sizeof(uint), valueSize, entries, BPF_F_MMAPABLE);

    /// <summary>False when there is no such key.</summary>
    public static bool Lookup<TKey, TValue>(SafeFd map, TKey key, out TValue value)
        where TKey : unmanaged
        where TValue : unmanaged
    {
        value = default;
        fixed (TValue* pointer = &value)
        {
            map_elem_attr attribute = new() { map_fd = (uint)map.Number, key = (ulong)&key, value = (ulong)pointer };
            return Element("BPF_MAP_LOOKUP_ELEM", BPF_MAP_LOOKUP_ELEM, map, &attribute);
        }
    }

    /// <summary>Adds or replaces. A replaced hash element is exchanged as a whole: a program sees the old one or the new one.</summary>
    /// <exception cref="NativeException">E2BIG: the map is full.</exception>
    public static void Update<TKey, TValue>(SafeFd map, TKey key, in TValue value)
        where TKey : unmanaged
        where TValue : unmanaged
    {
        fixed (TValue* pointer = &value)
        {
            map_elem_attr attribute = new() { map_fd = (uint)map.Number, key = (ulong)&key, value = (ulong)pointer };
            _ = Element("BPF_MAP_UPDATE_ELEM", BPF_MAP_UPDATE_ELEM, map, &attribute);
        }
    }

    /// <summary>False when there is no such key.</summary>
    public static bool Delete<TKey>(SafeFd map, TKey key)
        where TKey : unmanaged
    {
        map_elem_attr attribute = new() { map_fd = (uint)map.Number, key = (ulong)&key };
        return Element("BPF_MAP_DELETE_ELEM", BPF_MAP_DELETE_ELEM, map, &attribute);
    }

    /// <summary>Has the kernel verify and compile a traffic-control program (BPF_PROG_TYPE_SCHED_CLS).</summary>
    /// <param name="name">At most 15 characters; shown by bpftool.</param>
    /// <param name="instructions">See <see cref="BpfProgram"/>.</param>
    /// <exception cref="NativeException">With the end of the verifier's log, which says why.</exception>
    public static SafeFd LoadClassifier(string name, ReadOnlySpan<BpfInstruction> instructions) => Load(BPF_PROG_TYPE_SCHED_CLS, name, instructions);

    /// <summary>As <see cref="LoadClassifier"/>, a program that says how many bytes of a packet are let through (BPF_PROG_TYPE_SOCKET_FILTER).</summary>
    public static SafeFd LoadSocketFilter(string name, ReadOnlySpan<BpfInstruction> instructions) => Load(BPF_PROG_TYPE_SOCKET_FILTER, name, instructions);

    private static SafeFd Load(uint type, string name, ReadOnlySpan<BpfInstruction> instructions)
    {
        prog_load_attr attribute = new() { prog_type = type, insn_cnt = (uint)instructions.Length };
        CopyName(name, attribute.prog_name);
        fixed (BpfInstruction* code = instructions)
        fixed (byte* license = "Dual MIT/GPL\0"u8)
        {
            attribute.insns = (ulong)code;
            attribute.license = (ulong)license;
            int fd = CallWithMemory(BPF_PROG_LOAD, &attribute, sizeof(prog_load_attr));
            if (fd >= 0)
            {
                return new SafeFd(fd);
            }
            int errno = LibC.errno;
            throw new NativeException("bpf(BPF_PROG_LOAD)", name, errno, Remedy(errno) ?? VerifierLog(attribute));
        }
    }

    /// <summary>Attaches a program to an interface, behind those that are there. Closing the descriptor detaches it.</summary>
    /// <exception cref="NativeException">EINVAL: the kernel is older than 6.6.</exception>
    public static SafeFd CreateTcxLink(SafeFd program, int interfaceIndex, BpfAttachType type)
    {
        link_create_attr attribute = new() { prog_fd = (uint)program.Number, target_ifindex = (uint)interfaceIndex, attach_type = (uint)type };
        int fd = Call(BPF_LINK_CREATE, &attribute, sizeof(link_create_attr));
        return fd >= 0
            ? new SafeFd(fd)
            : throw new NativeException($"bpf(BPF_LINK_CREATE {type})", $"interface {interfaceIndex}", LibC.errno);
    }

    /// <summary>The programs that are attached to an interface by TCX, by their numbers, in the order in which they run.</summary>
    /// <exception cref="NativeException">EINVAL: the kernel is older than 6.6. ENODEV: there is no such interface.</exception>
    public static uint[] ListTcxPrograms(int interfaceIndex, BpfAttachType type)
    {
        uint* ids = stackalloc uint[MostPrograms];
        return QueryTcx(interfaceIndex, type, ids) is >= 0 and int count
            ? new ReadOnlySpan<uint>(ids, count).ToArray()
            : throw new NativeException($"bpf(BPF_PROG_QUERY {type})", $"interface {interfaceIndex}", LibC.errno);
    }

    /// <summary>Whether a program is attached to an interface by TCX and runs after all others. Allocates nothing.</summary>
    public static bool IsLastTcxProgram(int interfaceIndex, BpfAttachType type, uint programId)
    {
        uint* ids = stackalloc uint[MostPrograms];
        return QueryTcx(interfaceIndex, type, ids) is > 0 and int count && ids[count - 1] == programId;
    }

    /// <param name="interfaceIndex">Of the interface.</param>
    /// <param name="type">Which hook.</param>
    /// <param name="ids">Room for <see cref="MostPrograms"/>.</param>
    /// <returns>How many there are; below zero for an error, which is in errno.</returns>
    private static int QueryTcx(int interfaceIndex, BpfAttachType type, uint* ids)
    {
        prog_query_attr attribute = new()
        {
            target_ifindex = (uint)interfaceIndex,
            attach_type = (uint)type,
            prog_ids = (ulong)ids,
            prog_cnt = MostPrograms,
        };
        return Call(BPF_PROG_QUERY, &attribute, sizeof(prog_query_attr)) >= 0 ? (int)attribute.prog_cnt : -1;
    }

    /// <summary>The program's number, by which the kernel lists it.</summary>
    public static uint IdOf(SafeFd program) => Info(program.Number).id;

    /// <summary>The name a program was loaded with; empty where it has none, or has gone.</summary>
    public static string NameOf(uint programId)
    {
        get_fd_by_id_attr attribute = new() { prog_id = programId };
        int fd = Call(BPF_PROG_GET_FD_BY_ID, &attribute, sizeof(get_fd_by_id_attr));
        if (fd < 0)
        {
            return "";
        }
        using SafeFd program = new(fd);
        prog_info info = Info(fd);
        return Encoding.ASCII.GetString(MemoryMarshal.CreateReadOnlySpanFromNullTerminated(info.name));
    }

    private static prog_info Info(int program)
    {
        prog_info info = default;
        info_attr attribute = new() { bpf_fd = (uint)program, info_len = (uint)sizeof(prog_info), info = (ulong)&info };
        return Call(BPF_OBJ_GET_INFO_BY_FD, &attribute, sizeof(info_attr)) >= 0
            ? info
            : throw new NativeException("bpf(BPF_OBJ_GET_INFO_BY_FD)", $"program descriptor {program}", LibC.errno);
    }

    private static SafeFd CreateMap(string name, uint type, int keySize, int valueSize, int entries, uint flags)
    {
        map_create_attr attribute = new()
        {
            map_type = type,
            key_size = (uint)keySize,
            value_size = (uint)valueSize,
            max_entries = (uint)entries,
            map_flags = flags,
        };
        CopyName(name, attribute.map_name);
        int fd = CallWithMemory(BPF_MAP_CREATE, &attribute, sizeof(map_create_attr));
        if (fd < 0)
        {
            int errno = LibC.errno;
            throw new NativeException("bpf(BPF_MAP_CREATE)", name, errno, Remedy(errno));
        }
        return new SafeFd(fd);
    }

    private static bool Element(string name, int command, SafeFd map, map_elem_attr* attribute)
    {
        if (Call(command, attribute, sizeof(map_elem_attr)) >= 0)
        {
            return true;
        }
        int errno = LibC.errno;
        return errno == ENOENT ? false : throw new NativeException($"bpf({name})", $"map descriptor {map.Number}", errno);
    }

    private static string? Remedy(int errno) => errno switch
    {
        EPERM => "CAP_BPF and CAP_NET_ADMIN are needed (CAP_SYS_ADMIN before Linux 5.8), and the kernel must not be locked down",
        ENOSYS => "The kernel was built without CONFIG_BPF_SYSCALL",
        _ => null,
    };

    private static string? VerifierLog(prog_load_attr attribute)
    {
        byte[] log = new byte[LogSize];
        fixed (byte* pointer = log)
        {
            attribute.log_level = 1;
            attribute.log_size = LogSize;
            attribute.log_buf = (ulong)pointer;
            int fd = Call(BPF_PROG_LOAD, &attribute, sizeof(prog_load_attr));
            if (fd >= 0)
            {
                _ = LibC.close(fd);
                return null;
            }
        }
        string text = Encoding.ASCII.GetString(log.AsSpan(0, Math.Max(0, log.AsSpan().IndexOf((byte)0)))).Trim();
        const int LastWords = 1200;
        return text.Length == 0 ? null : $"The verifier says: {(text.Length > LastWords ? text[^LastWords..] : text)}";
    }

    /// <summary>Kernels before 5.11 count BPF's memory against RLIMIT_MEMLOCK and say EPERM: raised when that happens, and not before.</summary>
    private static int CallWithMemory(int command, void* attribute, int size)
    {
        int result = Call(command, attribute, size);
        if (result >= 0 || LibC.errno != EPERM)
        {
            return result;
        }
        rlimit unlimited = new() { rlim_cur = ulong.MaxValue, rlim_max = ulong.MaxValue };
        _ = setrlimit(RLIMIT_MEMLOCK, &unlimited);
        return Call(command, attribute, size);
    }

    private static int Call(int command, void* attribute, int size) =>
        (int)LibC.syscall(SYS_bpf, command, attribute, size);

    private static int SYS_bpf => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 280 : 321;

    private static void CopyName(string name, byte* destination)
    {
        _ = Encoding.ASCII.GetBytes(name, new Span<byte>(destination, BPF_OBJ_NAME_LEN - 1));
    }

    /// <summary>union bpf_attr for BPF_MAP_CREATE.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct map_create_attr
    {
        public uint map_type;
        public uint key_size;
        public uint value_size;
        public uint max_entries;
        public uint map_flags;
        public uint inner_map_fd;
        public uint numa_node;
        public fixed byte map_name[BPF_OBJ_NAME_LEN];
    }

    /// <summary>union bpf_attr for BPF_MAP_*_ELEM.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct map_elem_attr
    {
        public uint map_fd;
        public ulong key;
        public ulong value;
        public ulong flags;
    }

    /// <summary>union bpf_attr for BPF_PROG_LOAD.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct prog_load_attr
    {
        public uint prog_type;
        public uint insn_cnt;
        public ulong insns;
        public ulong license;
        public uint log_level;
        public uint log_size;
        public ulong log_buf;
        public uint kern_version;
        public uint prog_flags;
        public fixed byte prog_name[BPF_OBJ_NAME_LEN];
    }

    /// <summary>union bpf_attr for BPF_LINK_CREATE.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct link_create_attr
    {
        public uint prog_fd;
        public uint target_ifindex;
        public uint attach_type;
        public uint flags;
    }

    /// <summary>union bpf_attr for BPF_PROG_QUERY.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct prog_query_attr
    {
        public uint target_ifindex;
        public uint attach_type;
        public uint query_flags;
        public uint attach_flags;
        public ulong prog_ids;
        public uint prog_cnt;
        private readonly uint _pad;
        public ulong prog_attach_flags;
        public ulong link_ids;
        public ulong link_attach_flags;
        public ulong revision;
    }

    /// <summary>union bpf_attr for BPF_PROG_GET_FD_BY_ID.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct get_fd_by_id_attr
    {
        public uint prog_id;
        public uint next_id;
        public uint open_flags;
    }

    /// <summary>union bpf_attr for BPF_OBJ_GET_INFO_BY_FD.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct info_attr
    {
        public uint bpf_fd;
        public uint info_len;
        public ulong info;
    }

    /// <summary>struct bpf_prog_info, as far as it is used here: the kernel fills in as much as there is room for.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct prog_info
    {
        public uint type;
        public uint id;
        public fixed byte tag[8];
        public uint jited_prog_len;
        public uint xlated_prog_len;
        public ulong jited_prog_insns;
        public ulong xlated_prog_insns;
        public ulong load_time;
        public uint created_by_uid;
        public uint nr_map_ids;
        public ulong map_ids;
        public fixed byte name[BPF_OBJ_NAME_LEN];
    }

    /// <summary>struct rlimit of sys/resource.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct rlimit
    {
        public ulong rlim_cur;
        public ulong rlim_max;
    }

    /// <summary>int setrlimit(int resource, const struct rlimit *rlim);</summary>
    [LibraryImport("libc", SetLastError = true)]
    [UnmanagedCallConv(CallConvs = [typeof(CallConvCdecl)])]
    private static partial int setrlimit(int resource, rlimit* rlim);
}
