using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Settings;

namespace XenLoop.Guest.Channels;

/// <summary>
/// One of this guest's vifs that takes part: its interface, the divert at its egress, and the slots (liveness stamps)
/// handed to its channels.
/// </summary>
internal sealed class VifPort : IDisposable
{
    private const int TapQueueLength = 1000;

    private readonly bool[] _slots = new bool[GuestSettings.MostChannels];
    private readonly Links _links;

    public VifPort(int vif, string interfaceName, MacAddress mac, Links links, BpfRingBuffer demands)
    {
        Vif = vif;
        InterfaceName = interfaceName;
        Mac = mac;
        _links = links;
        Divert = VifDivert.Attach(interfaceName, mac, GuestSettings.MostChannels, vif, demands);
    }

    public int Vif { get; }

    public string InterfaceName { get; }

    /// <summary>The MAC address the toolstack gave the vif, by which peers know it.</summary>
    public MacAddress Mac { get; }

    public VifDivert Divert { get; }

    /// <summary>False when the interface went away, though there may be another in its place.</summary>
    public bool IsInPlace { get; private set; } = true;

    /// <summary>Looks whether the interface is still there. To be called when links have changed.</summary>
    public void CheckPlace() => IsInPlace = _links.FindLink(InterfaceName)?.Index == Divert.InterfaceIndex;

    /// <summary>A free slot, or -1.</summary>
    public int TakeSlot()
    {
        int slot = Array.IndexOf(_slots, false);
        if (slot >= 0)
        {
            _slots[slot] = true;
        }

        return slot;
    }

    public void ReturnSlot(int slot) => _slots[slot] = false;

    /// <summary>The TAP of one channel: up, silent, its input re-injected at the vif's ingress.</summary>
    public ChannelTap OpenTap(string name, bool uso)
    {
        LinkInfo link = _links.FindLink(InterfaceName)
            ?? throw new NativeException("RTM_GETLINK", InterfaceName, Errno.ENODEV);
        TapDevice tap = TapDevice.Open(name, uso);
        try
        {
            tap.BringUp(_links, link.Mtu, TapQueueLength);
            return new ChannelTap(tap, Divert.AttachReinjection(tap));
        }
        catch
        {
            tap.Dispose();
            throw;
        }
    }

    public void Dispose() => Divert.Dispose();
}

/// <summary>A TAP, and what re-injects its input.</summary>
internal sealed record ChannelTap(TapDevice Device, IDisposable Reinjection) : IDisposable
{
    public void Dispose()
    {
        Reinjection.Dispose();
        Device.Dispose();
    }
}
