using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Settings;

namespace XenLoop.Guest.Channels;

/// <summary>
/// One of this guest's vifs that takes part: its interface, the divert at its egress, what is in the way of that, and the slots and TAPs
/// of its channels.
/// </summary>
internal sealed class VifPort : IDisposable
{
    // libpcap binds a socket with a filter that takes nothing, and gives it its own a moment later, which changes nothing that can be seen.
    private const int LooksAtNewCapture = 5;

    // Whose each slot is. As many as there may be channels; those of TAPs that are over are free when these are gone.
    private readonly ChannelTap?[] _slots = new ChannelTap?[GuestSettings.MostChannels];
    private readonly Links _links;
    private readonly TrafficControl _trafficControl;
    private readonly EgressObstacles _obstacles;
    private readonly List<ChannelTap> _taps = [];
    private LinkSettings _settings;
    private ulong _captures;
    private SilentSettings _silent;
    private int _looksLeft;
    private bool _failed;

    public VifPort(int vif, string interfaceName, MacAddress mac, Links links, TrafficControl trafficControl, BpfRingBuffer demands)
    {
        Vif = vif;
        InterfaceName = interfaceName;
        Mac = mac;
        (_links, _trafficControl) = (links, trafficControl);
        _obstacles = new EgressObstacles(trafficControl);
        Divert = VifDivert.Attach(interfaceName, mac, GuestSettings.MostChannels, vif, demands);
        Look();
    }

    public int Vif { get; }

    /// <summary>As it is called now.</summary>
    public string InterfaceName { get; private set; }

    /// <summary>The MAC address the toolstack gave the vif, by which peers know it.</summary>
    public MacAddress Mac { get; }

    public VifDivert Divert { get; }

    /// <summary>Bytes of the interface's longest packets.</summary>
    public int Mtu => _settings.Mtu;

    /// <summary>False when the interface went away, though there may be another in its place.</summary>
    public bool IsInPlace { get; private set; } = true;

    /// <summary>Why no packet of the interface may be diverted now, though all is well with its vif; null for no reason.</summary>
    public string? Obstacle { get; private set; }

    /// <summary>Whether something has changed of which the kernel does not tell: it takes a <see cref="Look"/>. Allocates nothing.</summary>
    public bool HasChanged()
    {
        if (_looksLeft > 0)
        {
            _looksLeft--;
            return true;
        }

        return _failed
            || !Divert.IsUnchanged
            || PacketSockets.CapturesFingerprint() != _captures
            || _links.FindSilentSettings(Divert.InterfaceIndex) != _silent;
    }

    /// <summary>Looks at the interface and at what is around it: is it still there, is there an obstacle, are its settings others?</summary>
    public void Look()
    {
        LinkInfo? link = _links.FindLink(Divert.InterfaceIndex);
        IsInPlace = link is not null;
        if (link is null)
        {
            return;
        }

        InterfaceName = link.Name;
        _silent = new SilentSettings(link.Gso, link.NativeXdpProgram);
        _failed = false;
        // First: what comes meanwhile is found the next time.
        ulong captures = PacketSockets.CapturesFingerprint();
        if (captures != _captures)
        {
            _captures = captures;
            _looksLeft = captures == 0 ? 0 : LooksAtNewCapture;
        }

        try
        {
            Obstacle = FindObstacle(link);
            Follow(LinkSettings.Of(link, _links));
        }
        catch (NativeException e)
        {
            Obstacle = e.Message;
            _failed = true;
        }
    }

    /// <summary>Looks at the TAPs of these indices, and at all of them for <see cref="NetlinkMonitor.Any"/>.</summary>
    /// <returns>True when one of them has a fault.</returns>
    public bool LookAtTaps(HashSet<int> changed)
    {
        bool faults = false;
        foreach (ChannelTap tap in _taps)
        {
            if (changed.Contains(LinkMonitor.Any) || changed.Contains(tap.Device.Index))
            {
                tap.Check(_links, _trafficControl, _obstacles);
                faults |= tap.Fault is not null;
            }
        }

        return faults;
    }

    /// <summary>The TAP of one channel: up, silent, with the settings of the vif's interface, its input re-injected at the vif's ingress.</summary>
    /// <param name="name">No other has it.</param>
    /// <param name="uso">See <see cref="TapDevice.Open"/>.</param>
    /// <param name="peer">The peer's MAC address.</param>
    /// <param name="reaper">Of those that are over.</param>
    public ChannelTap OpenTap(string name, bool uso, MacAddress peer, TapReaper reaper)
    {
        reaper.Wait(name);
        int slot = FindFreeSlot(reaper);
        TapDevice device = TapDevice.Open(name, uso);
        try
        {
            // Before it is up, for nothing may get in that the slot does not count.
            Divert.AttachFilter(device, Mac, peer, slot);
            device.BringUp(_links, _settings.Mtu, DivertSlot.QueueLength);
            LinkSettings made = LinkSettings.Of(_links.FindLink(device.Index)!, _links) with { Off = LinkFeatures.None };
            ChannelTap tap = new(device, slot, uso, made, Divert.AttachReinjection(device, slot));
            _taps.Add(tap);
            tap.Apply(_links, _settings);
            tap.Remember(_trafficControl);
            _slots[slot] = tap;
            return tap;
        }
        catch
        {
            _taps.RemoveAll(t => t.Device == device);
            device.Dispose();
            throw;
        }
    }

    /// <param name="tap">One of this vif's.</param>
    /// <param name="reaper">Removes it.</param>
    public void CloseTap(ChannelTap tap, TapReaper reaper)
    {
        _taps.Remove(tap);
        reaper.Add(tap);
    }

    public void Dispose() => Divert.Dispose();

    private int FindFreeSlot(TapReaper reaper)
    {
        int slot = Array.FindIndex(_slots, static tap => tap is not { IsGone: false });
        if (slot < 0)
        {
            reaper.Wait(null);
            slot = Array.FindIndex(_slots, static tap => tap is not { IsGone: false });
        }

        return slot;
    }

    private string? FindObstacle(LinkInfo link)
    {
        string? why = !link.IsUp ? $"{link.Name} is down"
            : !link.HasCarrier ? $"{link.Name} has no carrier"
            : link.Mac != Mac ? $"{link.Name} has the MAC address {link.Mac}, and its backend knows it as {Mac}"
            : null;
        if (why is not null)
        {
            return why;
        }

        return (Divert.Secure() ?? _obstacles.Find(link)) is { } passedBy ? $"{passedBy} would not meet what is diverted" : null;
    }

    private void Follow(in LinkSettings settings)
    {
        if (settings == _settings)
        {
            return;
        }

        _settings = settings;
        foreach (ChannelTap tap in _taps)
        {
            try
            {
                tap.Apply(_links, settings);
            }
            catch (NativeException e)
            {
                // This one's trouble alone: somebody has moved it, say.
                tap.Fail(e.Message);
            }
        }
    }
}
