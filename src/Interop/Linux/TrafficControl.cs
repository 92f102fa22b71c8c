using System.Buffers.Binary;
using System.Runtime.InteropServices;
using static XenLoop.Interop.Errno;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>Where a traffic-control filter of a clsact qdisc looks at packets. The values are TC_H_MAKE(TC_H_CLSACT, minor).</summary>
internal enum TcHook : uint
{
    /// <summary>What the interface received, before the network layer sees it.</summary>
    Ingress = 0xFFFFFFF2,

    /// <summary>What the interface is about to transmit, before its qdisc.</summary>
    Egress = 0xFFFFFFF3,
}

/// <summary>A traffic-control filter as the kernel lists it.</summary>
/// <param name="Kind">The classifier, as <c>bpf</c>.</param>
/// <param name="Priority">Filters of lower numbers run first.</param>
/// <param name="Handle">Tells filters of one priority apart.</param>
/// <param name="Name">Of a cls_bpf filter: the name it was added with; else empty.</param>
/// <param name="Chain">Packets begin in chain 0; another is entered only by an action of a filter.</param>
internal readonly record struct TcFilter(string Kind, ushort Priority, uint Handle, string Name, uint Chain);

/// <summary>A qdisc as the kernel lists it.</summary>
/// <param name="Interface">Its index.</param>
/// <param name="Kind">As <c>fq_codel</c>; <c>clsact</c> and <c>ingress</c> only hold filters.</param>
/// <param name="Handle">By which filters name it; 0 for one that the kernel made by itself.</param>
/// <param name="Parent">What it hangs on; <see cref="Root"/> for what packets meet first.</param>
/// <param name="FlowMaxRate">Of fq: no flow is sent faster, in bytes a second; <see cref="uint.MaxValue"/> for no limit.</param>
/// <param name="SharesFilters">Its filters are in a block that several have.</param>
internal readonly record struct TcQdisc(int Interface, string Kind, uint Handle, uint Parent, uint FlowMaxRate = uint.MaxValue, bool SharesFilters = false)
{
    /// <summary>TC_H_ROOT.</summary>
    public const uint Root = 0xFFFFFFFF;

    /// <summary>It holds filters, and no packets: clsact, or ingress in the same place.</summary>
    public bool IsClsact => Parent == TrafficControl.TC_H_CLSACT;

    /// <summary>What it does to packets but to queue what the device has no room for (it shapes, delays, drops, classifies), in words that go on "is
    /// in the way"; null for nothing. What filters do, see <see cref="TrafficControl.HasFilters"/>.</summary>
    public string? Limit =>
        IsClsact ? null
        : Kind is not ("noqueue" or "noop" or "pfifo_fast" or "pfifo" or "bfifo" or "mq" or "fq_codel" or "fq") ? $"the qdisc {Kind}"
        : FlowMaxRate != uint.MaxValue ? $"the qdisc {Kind} with maxrate"
        : null;
}

/// <summary>
/// Traffic control (tc(8)) of the interfaces of a network namespace, that of the thread that opened this: the qdisc clsact, and
/// filters there. Not for two threads at once.
/// </summary>
internal sealed class TrafficControl : IDisposable
{
    /// <summary>For <see cref="ListQdiscs"/>.</summary>
    public const int AllInterfaces = 0;

    private const ushort RTM_NEWQDISC = 36;
    private const ushort RTM_DELQDISC = 37;
    private const ushort RTM_GETQDISC = 38;
    private const ushort RTM_NEWTFILTER = 44;
    private const ushort RTM_DELTFILTER = 45;
    private const ushort RTM_GETTFILTER = 46;
    private const ushort TCA_KIND = 1;
    private const ushort TCA_OPTIONS = 2;
    private const ushort TCA_CHAIN = 11;
    private const ushort TCA_INGRESS_BLOCK = 13;
    private const ushort TCA_EGRESS_BLOCK = 14;
    // What the kernel says instead of the interface of filters in a block that several share.
    private const int TCM_IFINDEX_MAGIC_BLOCK = -1;
    private const ushort TCA_BPF_ACT = 1;
    private const ushort TCA_BPF_FD = 6;
    private const ushort TCA_BPF_NAME = 7;
    private const ushort TCA_BPF_FLAGS = 8;
    private const uint TCA_BPF_FLAG_ACT_DIRECT = 1;
    private const ushort TCA_ACT_KIND = 1;
    private const ushort TCA_ACT_OPTIONS = 2;
    private const ushort TCA_MIRRED_PARMS = 2;
    private const int TCA_INGRESS_REDIR = 3;
    private const int TC_ACT_STOLEN = 4;
    private const ushort TCA_FQ_FLOW_MAX_RATE = 7;
    internal const uint TC_H_CLSACT = 0xFFFFFFF1;
    private const uint ClsactHandle = 0xFFFF0000;
    private const ushort ETH_P_ALL = 0x0003;
    private const string NeedsSchIngress = "The kernel needs the module sch_ingress (modprobe sch_ingress)";
    private const string NeedsClsBpf = "The kernel needs the module cls_bpf (modprobe cls_bpf)";

    private readonly NetlinkSocket _socket = new();

    public void Dispose() => _socket.Dispose();

    /// <summary>Adds the qdisc whose only purpose is to hold filters at ingress and egress.</summary>
    /// <returns>False when it is there already.</returns>
    public bool AddClsact(int index)
    {
        NetlinkMessage message = BeginQdisc(RTM_NEWQDISC, index, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        NetlinkError error = _socket.Try(message, null);
        if (error.Errno == EEXIST)
        {
            if (!HasClsact(index))
            {
                throw new NativeException("RTM_NEWQDISC(clsact)", $"interface {index}", EEXIST,
                    "Another qdisc stands in its place: replace it by clsact, which does the same and has an egress side as well (tc qdisc del dev ... ingress)");
            }
            return false;
        }
        if (error.Errno != 0)
        {
            throw error.ToException("RTM_NEWQDISC(clsact)", $"interface {index}", error.Errno is ENOENT or EOPNOTSUPP ? NeedsSchIngress : null);
        }
        return true;
    }

    public bool HasClsact(int index) => ListQdiscs(index).Exists(q => q is { IsClsact: true, Kind: "clsact" });

    /// <summary>Whether the qdisc has filters of its own, which it would ask before it queues a packet.</summary>
    public bool HasFilters(in TcQdisc qdisc) =>
        qdisc.IsClsact
            ? ListFilters(qdisc.Interface, TcHook.Ingress).Count + ListFilters(qdisc.Interface, TcHook.Egress).Count > 0
            // Its own handle, or none: then only the root can be named by filters.
            : (qdisc.Parent == TcQdisc.Root || qdisc.Handle != 0) && ListFilters(qdisc.Interface, qdisc.Handle).Count > 0;

    /// <summary>All qdiscs of an interface, or of all for <see cref="AllInterfaces"/>.</summary>
    public List<TcQdisc> ListQdiscs(int index)
    {
        List<TcQdisc> qdiscs = [];
        NetlinkMessage message = _socket.Begin(RTM_GETQDISC, NLM_F_DUMP);
        message.Append(new tcmsg { tcm_ifindex = index });
        _socket.Request(message, "RTM_GETQDISC", index == AllInterfaces ? "all interfaces" : $"interface {index}", (type, payload) =>
        {
            // Older kernels list the qdiscs of every interface.
            if (type == RTM_NEWQDISC && ReadQdisc(payload) is var qdisc && (index == AllInterfaces || qdisc.Interface == index))
            {
                qdiscs.Add(qdisc);
            }
        });
        return qdiscs;
    }

    /// <summary>Removes clsact with all filters, whoever added them. Nothing to do when it is not there.</summary>
    public void DeleteClsact(int index)
    {
        NetlinkMessage message = BeginQdisc(RTM_DELQDISC, index, NLM_F_ACK);
        NetlinkError error = _socket.Try(message, null);
        if (error.Errno is not (0 or ENOENT or EINVAL or ENODEV))
        {
            throw error.ToException("RTM_DELQDISC(clsact)", $"interface {index}");
        }
    }

    /// <summary>Adds or replaces a cls_bpf filter in direct-action mode: the program's return value is the verdict.</summary>
    /// <param name="index">Of the interface; it has clsact.</param>
    /// <param name="hook">Which side of clsact.</param>
    /// <param name="priority">Filters of lower priority numbers run first.</param>
    /// <param name="handle">Together with the priority tells one filter from all others.</param>
    /// <param name="program">Descriptor of a BPF_PROG_TYPE_SCHED_CLS program; the filter keeps the program alive.</param>
    /// <param name="name">Shown by <c>tc filter show</c>.</param>
    /// <param name="replace">Replace a filter with the same priority and handle, if there is one; else that is an error.</param>
    public void AddBpfFilter(int index, TcHook hook, ushort priority, uint handle, int program, string name, bool replace = false)
    {
        NetlinkMessage message = BeginFilter(RTM_NEWTFILTER, index, hook, priority, handle, (ushort)(NLM_F_ACK | NLM_F_CREATE | (replace ? 0 : NLM_F_EXCL)));
        message.Attribute(TCA_KIND, "bpf");
        int options = message.Begin(TCA_OPTIONS);
        message.Attribute(TCA_BPF_FD, program);
        message.Attribute(TCA_BPF_NAME, name);
        message.Attribute(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT);
        message.End(options);
        AddFilter(message, index, NeedsClsBpf);
    }

    /// <summary>Adds a cls_bpf filter whose program decides which packets go to the ingress of another interface (act_mirred).</summary>
    /// <param name="index">Of the interface; it has clsact.</param>
    /// <param name="hook">Which side of clsact.</param>
    /// <param name="priority">Filters of lower priority numbers run first.</param>
    /// <param name="handle">Together with the priority tells one filter from all others.</param>
    /// <param name="program">Descriptor of a BPF_PROG_TYPE_SCHED_CLS program that returns -1 for a match.</param>
    /// <param name="name">Shown by <c>tc filter show</c>.</param>
    /// <param name="target">Index of the interface that shall have received the packets.</param>
    public void AddIngressRedirect(int index, TcHook hook, ushort priority, uint handle, int program, string name, int target)
    {
        NetlinkMessage message = BeginFilter(RTM_NEWTFILTER, index, hook, priority, handle, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL);
        message.Attribute(TCA_KIND, "bpf");
        int options = message.Begin(TCA_OPTIONS);
        int actions = message.Begin(TCA_BPF_ACT);
        int first = message.Begin(1);
        message.Attribute(TCA_ACT_KIND, "mirred");
        int mirred = message.Begin(TCA_ACT_OPTIONS);
        message.Attribute(TCA_MIRRED_PARMS, new tc_mirred { action = TC_ACT_STOLEN, eaction = TCA_INGRESS_REDIR, ifindex = (uint)target });
        message.End(mirred);
        message.End(first);
        message.End(actions);
        message.Attribute(TCA_BPF_FD, program);
        message.Attribute(TCA_BPF_NAME, name);
        message.End(options);
        AddFilter(message, index, "The kernel needs the modules cls_bpf and act_mirred (modprobe cls_bpf act_mirred)");
    }

    /// <summary>Removes one filter. False when it is not there.</summary>
    public bool DeleteFilter(int index, TcHook hook, ushort priority, uint handle)
    {
        NetlinkMessage message = BeginFilter(RTM_DELTFILTER, index, hook, priority, handle, NLM_F_ACK);
        message.Attribute(TCA_KIND, "bpf");
        NetlinkError error = _socket.Try(message, null);
        return error.Errno switch
        {
            0 => true,
            ENOENT or ENODEV or EINVAL => false,
            _ => throw error.ToException("RTM_DELTFILTER", $"interface {index}"),
        };
    }

    /// <summary>All filters at one side of clsact, everybody's, in the order in which they run. Empty where there is no clsact.</summary>
    public List<TcFilter> ListFilters(int index, TcHook hook)
    {
        return HasClsact(index) ? ListFilters(index, (uint)hook) : [];
    }

    /// <summary>All filters of a qdisc, in the order in which they run. Empty for a qdisc that has none by its nature.</summary>
    /// <param name="index">Of the interface.</param>
    /// <param name="parent">The qdisc's handle; 0 for the root qdisc, or one side of clsact.</param>
    public List<TcFilter> ListFilters(int index, uint parent)
    {
        List<TcFilter> filters = [];
        NetlinkMessage message = BeginFilter(RTM_GETTFILTER, index, (TcHook)parent, 0, 0, NLM_F_DUMP);
        _socket.Request(message, "RTM_GETTFILTER", $"interface {index}", (type, payload) =>
        {
            if (type == RTM_NEWTFILTER && ReadFilter(payload, index) is { } filter)
            {
                filters.Add(filter);
            }
        });
        return filters;
    }

    /// <summary>Null for another interface's.</summary>
    internal static TcFilter? ReadFilter(ReadOnlySpan<byte> payload, int index)
    {
        string kind = "";
        string name = "";
        uint chain = 0;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out tcmsg filter);
        // Each chain of filters is announced by an entry of its own, with handle 0.
        if ((filter.tcm_ifindex != index && filter.tcm_ifindex != TCM_IFINDEX_MAGIC_BLOCK) || filter.tcm_handle == 0)
        {
            return null;
        }
        while (attributes.MoveNext())
        {
            if (attributes.Type == TCA_KIND)
            {
                kind = attributes.Text;
            }
            else if (attributes.Type == TCA_CHAIN)
            {
                chain = attributes.Value<uint>();
            }
            else if (attributes.Type == TCA_OPTIONS && kind == "bpf")
            {
                NetlinkAttributes options = new(attributes.Data);
                while (options.MoveNext())
                {
                    name = options.Type == TCA_BPF_NAME ? options.Text : name;
                }
            }
        }
        return new TcFilter(kind, (ushort)(filter.tcm_info >> 16), filter.tcm_handle, name, chain);
    }

    internal static TcQdisc ReadQdisc(ReadOnlySpan<byte> payload)
    {
        string kind = "";
        uint maxRate = uint.MaxValue;
        bool shares = false;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out tcmsg qdisc);
        while (attributes.MoveNext())
        {
            shares |= attributes.Type is TCA_INGRESS_BLOCK or TCA_EGRESS_BLOCK;
            if (attributes.Type == TCA_KIND)
            {
                kind = attributes.Text;
            }
            else if (attributes.Type == TCA_OPTIONS && kind == "fq")
            {
                NetlinkAttributes options = new(attributes.Data);
                while (options.MoveNext())
                {
                    maxRate = options.Type == TCA_FQ_FLOW_MAX_RATE ? options.Value<uint>() : maxRate;
                }
            }
        }
        return new TcQdisc(qdisc.tcm_ifindex, kind, qdisc.tcm_handle, qdisc.tcm_parent, maxRate, shares);
    }

    private NetlinkMessage BeginQdisc(ushort type, int index, ushort flags)
    {
        NetlinkMessage message = _socket.Begin(type, flags);
        message.Append(new tcmsg { tcm_ifindex = index, tcm_parent = TC_H_CLSACT, tcm_handle = ClsactHandle });
        message.Attribute(TCA_KIND, "clsact");
        return message;
    }

    private NetlinkMessage BeginFilter(ushort type, int index, TcHook hook, ushort priority, uint handle, ushort flags)
    {
        NetlinkMessage message = _socket.Begin(type, flags);
        uint protocol = priority == 0 ? 0u : BinaryPrimitives.ReverseEndianness(ETH_P_ALL);
        message.Append(new tcmsg { tcm_ifindex = index, tcm_parent = (uint)hook, tcm_handle = handle, tcm_info = ((uint)priority << 16) | protocol });
        return message;
    }

    private void AddFilter(in NetlinkMessage message, int index, string remedy)
    {
        NetlinkError error = _socket.Try(message, null);
        if (error.Errno != 0)
        {
            throw error.ToException("RTM_NEWTFILTER(bpf)", $"interface {index}", error.Errno is ENOENT or EOPNOTSUPP ? remedy : null);
        }
    }

    /// <summary>struct tc_mirred of linux/tc_act/tc_mirred.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct tc_mirred
    {
        public uint index;
        public uint capab;
        public int action;
        public int refcnt;
        public int bindcnt;
        public int eaction;
        public uint ifindex;
    }
}
