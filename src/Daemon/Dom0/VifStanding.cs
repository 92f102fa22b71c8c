using XenLoop.Interop.Linux;
using XenLoop.Protocol;

namespace XenLoop.Dom0;

/// <summary>What Dom0 would do to the frames of a vif on netfront's way. Where it would not just forward them, an introduction must not go round that.</summary>
/// <param name="Segment">What tells its L2 segment from others; null while it is on none.</param>
/// <param name="Ambiguity">Why its MAC address does not lead to it alone, in words; null when it does.</param>
/// <param name="Barrier">What in Dom0 restricts what it sends or gets, in words; null for nothing.</param>
/// <param name="IsIsolated">Its bridge forwards nothing between it and others that are isolated.</param>
/// <param name="Mtu">Bytes of the longest packet that its port hands on to it, unless that is a super-packet.</param>
internal sealed record VifStanding(string? Segment, string? Ambiguity = null, string? Barrier = null, bool IsIsolated = false, int Mtu = Introduction.UsualMtu)
{
    /// <summary>On no segment.</summary>
    public static readonly VifStanding Nowhere = new(Segment: null);

    /// <summary>For the administrator: why it does not meet all others; null when it does.</summary>
    public string? Restriction =>
        Ambiguity ?? Barrier ?? (IsIsolated ? "its bridge port is isolated: it meets only those that are not" : null);

    /// <summary>Decides it. Does nothing.</summary>
    /// <param name="vif">As the toolstack describes it.</param>
    /// <param name="facts">What the kernel says.</param>
    /// <param name="isTwin">Another vif on its segment has the same MAC address.</param>
    /// <param name="isElsewhere">Its bridge forwards frames for its MAC address to another port, or to none.</param>
    public static VifStanding Of(VifRecord vif, NetworkFacts facts, bool isTwin, bool isElsewhere)
    {
        string? segment = vif.Segment(facts.Ports);
        if (segment is null)
        {
            return Nowhere;
        }

        string? ambiguity = isTwin ? "another vif on its segment has the same MAC address"
            : isElsewhere ? "its bridge has learned its MAC address at another port"
            : null;
        if (vif.Backend != 0)
        {
            return new VifStanding(segment, ambiguity, ToolstacksBarrier(vif) ?? "what its driver domain does to its frames cannot be read from here", Mtu: Introduction.AnyMtu);
        }

        SwitchPort port = facts.Ports[vif.Interface];
        return new VifStanding(segment, ambiguity, ToolstacksBarrier(vif) ?? PortsBarrier(port) ?? FiltersBarrier(vif.Interface, port, facts), port.IsIsolated, port.Mtu);
    }

    private static string? ToolstacksBarrier(VifRecord vif) => vif.Forbidden ?? (vif.Rate is null ? null : $"its rate is limited (rate {vif.Rate})");

    private static string? PortsBarrier(SwitchPort port) =>
        !port.IsBridge ? $"it is a port of {port.Master}, whose flows cannot be read"
        : !port.IsUp ? "its interface in Dom0 is down"
        : !port.Forwards ? "its bridge port does not forward"
        : port.IsLocked ? "its bridge port is locked"
        : port.FiltersVlans && port.Pvid == 0 ? "its bridge port has no VLAN for untagged frames"
        : null;

    private static string? FiltersBarrier(string name, SwitchPort port, NetworkFacts facts) =>
        port.HasXdp ? "an XDP program looks at its frames"
        : facts.TrafficControl.GetValueOrDefault(port.Index) is { } what ? $"{what} looks at its frames"
        : facts.DeviceFilterOf(name) is { } device ? $"a filter of its interface ({device})"
        : facts.BridgeFilter is { } frames ? $"a filter of the bridges ({frames})"
        : facts.PacketFilter is { } packets && (facts.CallsIpTables || port.CallsIpTables) ? $"a packet filter that bridges call ({packets})"
        : null;
}
