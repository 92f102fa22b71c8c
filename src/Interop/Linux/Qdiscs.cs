using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using static XenLoop.Interop.Linux.NetlinkFlags;

namespace XenLoop.Interop.Linux;

/// <summary>A queueing discipline of an interface.</summary>
/// <param name="Interface">Its index.</param>
/// <param name="Kind">As <c>fq_codel</c>; <c>clsact</c> and <c>ingress</c> only hold filters.</param>
/// <param name="SharesFilters">Its filters are in a block that several have.</param>
internal sealed record Qdisc(int Interface, string Kind, bool SharesFilters);

/// <summary>Lists the qdiscs of all interfaces of the network namespace of the thread that opened the socket.</summary>
internal static class Qdiscs
{
    private const ushort RTM_NEWQDISC = 36;
    private const ushort RTM_GETQDISC = 38;
    private const ushort TCA_KIND = 1;
    private const ushort TCA_INGRESS_BLOCK = 13;
    private const ushort TCA_EGRESS_BLOCK = 14;

    /// <exception cref="NativeException">The kernel refuses.</exception>
    public static List<Qdisc> List(NetlinkSocket socket)
    {
        List<Qdisc> qdiscs = [];
        NetlinkMessage message = socket.Begin(RTM_GETQDISC, NLM_F_DUMP);
        message.Append(default(tcmsg));
        socket.Request(message, "RTM_GETQDISC", "all interfaces", (type, payload) =>
        {
            if (type != RTM_NEWQDISC)
            {
                return;
            }

            string kind = "";
            bool shares = false;
            NetlinkAttributes attributes = new(payload[Unsafe.SizeOf<tcmsg>()..]);
            while (attributes.MoveNext())
            {
                kind = attributes.Type == TCA_KIND ? attributes.Text : kind;
                shares |= attributes.Type is TCA_INGRESS_BLOCK or TCA_EGRESS_BLOCK;
            }

            qdiscs.Add(new Qdisc(MemoryMarshal.Read<tcmsg>(payload).tcm_ifindex, kind, shares));
        });
        return qdiscs;
    }
}
