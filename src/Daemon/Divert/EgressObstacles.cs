using System.Globalization;
using XenLoop.Interop.Linux;

namespace XenLoop.Divert;

/// <summary>
/// What a packet would have met behind the divert on its way out of an interface, and does not meet in a channel: a qdisc that holds
/// packets back or drops them, an XDP program in the driver, a socket that captures. Where there is one, nothing may be diverted.
/// </summary>
/// <param name="trafficControl">Of the interface's namespace.</param>
internal sealed class EgressObstacles(TrafficControl trafficControl)
{
    // Of the capture that was found last, for it takes a look at every process.
    private (uint Inode, string Text) _description;

    /// <summary>The first that there is, in words that go on "is in the way"; null for none.</summary>
    /// <param name="link">The interface, as it is now.</param>
    public string? Find(LinkInfo link) => FindXdp(link) ?? FindQdisc(link.Index) ?? FindCapture(link.Index);

    /// <summary>An XDP program in the driver.</summary>
    public static string? FindXdp(LinkInfo link) => link.NativeXdpProgram is not 0 and uint program
        ? string.Create(CultureInfo.InvariantCulture, $"the XDP program {program} ({Bpf.NameOf(program)}) in the driver of {link.Name}")
        : null;

    /// <summary>A qdisc that shapes, delays, drops or classifies. Those that only queue what the device has no room for are none, for a channel
    /// has queues of its own.</summary>
    public string? FindQdisc(int interfaceIndex)
    {
        foreach (TcQdisc qdisc in trafficControl.ListQdiscs(interfaceIndex))
        {
            // What hangs on clsact, see EgressHook.
            if (!qdisc.IsClsact && (qdisc.Limit ?? (trafficControl.HasFilters(qdisc) ? $"a filter of the qdisc {qdisc.Kind}" : null)) is { } obstacle)
            {
                return obstacle;
            }
        }

        return null;
    }

    private string? FindCapture(int interfaceIndex)
    {
        List<PacketSocket> sockets = PacketSockets.ListCaptures();
        foreach (PacketSocket socket in sockets)
        {
            // The filter is asked for each time: libpcap begins with one that takes nothing.
            if ((socket.Interface == 0 || socket.Interface == interfaceIndex)
                && CaptureFilter.MayMiss(PacketSockets.FilterOf(socket.Inode), socket.HasLinkHeader))
            {
                if (_description.Inode != socket.Inode)
                {
                    _description = (socket.Inode, Describe(socket));
                }

                return _description.Text;
            }
        }

        return null;
    }

    private static string Describe(in PacketSocket socket)
    {
        string link = socket.Interface == 0 ? "all interfaces" : "it";
        return SocketOwner.Find(socket.Inode) is (int pid, string name)
            ? string.Create(CultureInfo.InvariantCulture, $"{name} (process {pid}), which captures on {link}")
            : string.Create(CultureInfo.InvariantCulture, $"a process of user {socket.User} that captures on {link} (packet socket {socket.Inode})");
    }
}
