using XenLoop.Divert;
using XenLoop.Interop.Linux;

namespace XenLoop.Guest.Channels;

/// <summary>
/// The TAP of one channel: it stands in for the vif's interface, whose settings hold for it, too. Whoever else changes it takes packets
/// from the channel: then the channel is to be closed, and the next one has a TAP as it should be.
/// </summary>
internal sealed class ChannelTap : IDisposable
{
    private readonly IDisposable _reinjection;
    private readonly bool _uso;
    private LinkSettings _settings;
    private int _filters;
    private bool _gone;

    /// <param name="device">Becomes this one's.</param>
    /// <param name="slot">Of the divert; it counts this TAP's frames, and is another's when this one is gone.</param>
    /// <param name="uso">As it was opened with.</param>
    /// <param name="settings">Of the vif's interface; they hold already, but for the offloads.</param>
    /// <param name="reinjection">Of what is written to it.</param>
    public ChannelTap(TapDevice device, int slot, bool uso, in LinkSettings settings, IDisposable reinjection)
    {
        (Device, Slot, _uso, _settings, _reinjection) = (device, slot, uso, settings, reinjection);
    }

    public TapDevice Device { get; }

    public int Slot { get; }

    /// <summary>It has been disposed. For any thread.</summary>
    public bool IsGone => Volatile.Read(ref _gone);

    /// <summary>What somebody else has done to it; null for nothing.</summary>
    public ChannelFault? Fault { get; private set; }

    /// <summary>Sets the limits, and leaves to the kernel what the interface leaves to it.</summary>
    /// <param name="links">Of the same namespace.</param>
    /// <param name="settings">Of the vif's interface, as they are now.</param>
    public void Apply(Links links, in LinkSettings settings)
    {
        LinkSettings before = _settings;
        // Before it is done: the kernel tells of each change.
        _settings = settings;
        if (before.Mtu != settings.Mtu)
        {
            links.SetMtu(Device.Index, settings.Mtu);
        }

        if (before.Gso != settings.Gso)
        {
            links.SetGsoLimits(Device.Index, settings.Gso);
        }

        if (before.Off != settings.Off)
        {
            Device.SwitchOff(settings.Off, _uso);
        }
    }

    /// <summary>Remembers what hangs on it now, as the daemon has made it.</summary>
    public void Remember(TrafficControl trafficControl) => _filters = CountFilters(trafficControl);

    /// <summary>Compares it with what it should be.</summary>
    public void Check(Links links, TrafficControl trafficControl, EgressObstacles obstacles)
    {
        string? found = links.FindLink(Device.Index) switch
        {
            null => "it is not in this network namespace any more",
            { Name: string name } when name != Device.Name => $"somebody has named it {name}",
            { IsUp: false } => "somebody has set it down",
            { Master: not 0 and int master } => $"somebody has made it a port of {links.FindLink(master)?.Name}",
            { Mtu: int mtu } when mtu != _settings.Mtu => $"somebody has set its MTU to {mtu}",
            { NativeXdpProgram: not 0 } => "somebody has attached an XDP program to it",
            _ when obstacles.FindQdisc(Device.Index) is { } qdisc => $"somebody has added {qdisc} to it",
            _ when CountFilters(trafficControl) is int filters && filters != _filters =>
                filters < _filters ? "somebody has removed the filter by which frames arrive" : "somebody has added a filter to it",
            _ => null,
        };
        if (found is not null)
        {
            Fail(found);
        }
    }

    /// <summary>It is not as it was made: its channel is to close.</summary>
    public void Fail(string found) => Fault = new ChannelFault(FaultOf.Self, $"the channel's TAP {Device.Name} is not as it was made: {found}");

    public void Dispose()
    {
        try
        {
            _reinjection.Dispose();
            Device.Dispose();
        }
        finally
        {
            Volatile.Write(ref _gone, true);
        }
    }

    private int CountFilters(TrafficControl trafficControl) =>
        trafficControl.ListFilters(Device.Index, TcHook.Ingress).Count + trafficControl.ListFilters(Device.Index, TcHook.Egress).Count;
}

/// <summary>Settings of a vif's interface that hold for what stands in for it.</summary>
/// <param name="Mtu">Bytes.</param>
/// <param name="Gso">Limits of super-packets.</param>
/// <param name="Off">What the interface must not do.</param>
internal readonly record struct LinkSettings(int Mtu, GsoLimits Gso, LinkFeatures Off)
{
    // What a TAP hands over goes into the ring with a header of 64 KiB at most; gso_max_size can be more (BIG TCP).
    private const uint MostBytes = 65536;

    /// <exception cref="Interop.NativeException">The interface has gone.</exception>
    public static LinkSettings Of(LinkInfo link, Links links) => new(
        link.Mtu,
        new GsoLimits(Math.Min(link.Gso.MaxSize, MostBytes), Math.Min(link.Gso.MaxSegments, ushort.MaxValue), Math.Min(link.Gso.IPv4MaxSize, MostBytes)),
        links.FeaturesSwitchedOff(link.Name));
}
