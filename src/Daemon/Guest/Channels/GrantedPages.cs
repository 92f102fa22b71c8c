using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Ring;
using XenLoop.Service;

namespace XenLoop.Guest.Channels;

/// <summary>What a listener grants to one peer: a control page and the pages of two rings. Good for one session after another.</summary>
internal sealed unsafe class GrantedPages : IDisposable
{
    private GrantedPages(SharedMemory control, SharedMemory rings, uint ringBytes) => (Control, Rings, RingBytes) = (control, rings, ringBytes);

    public SharedMemory Control { get; }

    public SharedMemory Rings { get; }

    /// <summary>Of each of both.</summary>
    public uint RingBytes { get; }

    /// <summary>How many.</summary>
    public int Count => Control.References.Length + Rings.References.Length;

    /// <summary>The peer has let go of the control page, which an honest one unmaps last; its kernel has said so.</summary>
    public bool IsLetGo => Volatile.Read(ref ((ControlPage*)Control.Address)->ConnectorAlive) == 0;

    /// <exception cref="NativeException">Too few pages or grants even for the smallest rings.</exception>
    public static GrantedPages Share(IHypervisor hypervisor, ushort peer, uint ringBytes)
    {
        SharedMemory control = hypervisor.Grants.Share(peer, 1);
        try
        {
            return new GrantedPages(control, ShareRings(hypervisor, peer, ref ringBytes), ringBytes);
        }
        catch
        {
            control.Dispose();
            throw;
        }
    }

    /// <summary>As new: the peer may have kept its mappings, and what it writes there now it could as well write into its own.</summary>
    public void Wipe()
    {
        new Span<byte>(Control.Address, Control.Length).Clear();
        new Span<byte>(Rings.Address, Rings.Length).Clear();
    }

    public void Dispose()
    {
        Rings.Dispose();
        Control.Dispose();
    }

    // A guest short of grantable pages gets smaller rings rather than none.
    private static SharedMemory ShareRings(IHypervisor hypervisor, ushort peer, ref uint ringBytes)
    {
        while (true)
        {
            try
            {
                return hypervisor.Grants.Share(peer, (int)(2 * ringBytes / ControlPage.PageSize));
            }
            catch (NativeException e) when (ringBytes > ControlPage.MinRingBytes)
            {
                ringBytes /= 2;
                Log.Warning($"domain {peer}: rings of {ringBytes / 1024} KiB, because: {e.Message}");
            }
        }
    }
}
