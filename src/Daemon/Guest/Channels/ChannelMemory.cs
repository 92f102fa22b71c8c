using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Ring;

namespace XenLoop.Guest.Channels;

/// <summary>
/// What the two sides of a channel share: control page, ring pages, event channel. The listener makes it, the
/// connector maps it. Released in the order that leaves nothing dangling: memory first (which tells the peer), port last.
/// </summary>
internal sealed unsafe class ChannelMemory
{
    private readonly GrantedPages? _granted;
    private readonly SharedMemory _control;
    private readonly SharedMemory _rings;
    private readonly uint _ringBytes;
    private readonly bool _listener;

    private ChannelMemory(GrantedPages? granted, EventChannel events, SharedMemory control, SharedMemory rings, uint ringBytes)
    {
        _granted = granted;
        _listener = granted is not null;
        Events = events;
        _control = control;
        _rings = rings;
        _ringBytes = ringBytes;
    }

    public EventChannel Events { get; }

    public uint GrantReference => _control.References[0];

    public uint RingBytes => _ringBytes;

    /// <summary>The peer's liveness byte.</summary>
    public byte* PeerAlive => _listener ? &Page->ConnectorAlive : &Page->ListenerAlive;

    private ControlPage* Page => (ControlPage*)_control.Address;

    /// <summary>The listener's side: grants everything to <paramref name="peer"/>, in pages that it was granted before, if it has not let go of them.</summary>
    /// <exception cref="NativeException">Too few pages, grants or ports even for the smallest rings.</exception>
    public static ChannelMemory Listen(IHypervisor hypervisor, KeptMemory kept, ushort peer, ulong session, uint ringBytes, TimeSpan now)
    {
        EventChannel events = hypervisor.EventChannels.AllocateUnbound(peer);
        GrantedPages? before = kept.Take(peer), pages = before;
        try
        {
            // Fresh ones are zeros, and take no memory before something is in them.
            pages?.Wipe();
            pages ??= GrantedPages.Share(hypervisor, peer, ringBytes);
            pages.Control.SetDeathNotice(new DeathNotice(ControlPage.ListenerAliveOffset, events));
            ControlPage* page = (ControlPage*)pages.Control.Address;
            page->Magic = ControlPage.MagicValue;
            page->Version = ControlPage.CurrentVersion;
            page->RingBytes = pages.RingBytes;
            page->Session = session;
            page->ListenerAlive = 1;
            // Until the connector is there it counts as alive: only its death clears the byte.
            page->ConnectorAlive = 1;
            for (int i = 0; i < pages.Rings.References.Length; i++)
            {
                page->RingReferences[i] = pages.Rings.References[i];
            }

            return new ChannelMemory(pages, events, pages.Control, pages.Rings, pages.RingBytes);
        }
        catch
        {
            if (before is not null)
            {
                kept.Put(peer, before, now);
            }
            else
            {
                // Nobody was told of them.
                pages?.Dispose();
            }

            events.Dispose();
            throw;
        }
    }

    /// <summary>The connector's side: maps what the listener granted, believing nothing it says.</summary>
    /// <exception cref="PeerViolationException">The control page does not say what an honest listener says.</exception>
    /// <exception cref="NativeException">The reference or the port is not ours to use.</exception>
    public static ChannelMemory Connect(IHypervisor hypervisor, ushort peer, ulong session, uint reference, uint port)
    {
        EventChannel events = hypervisor.EventChannels.BindInterdomain(peer, port);
        SharedMemory? control = null;
        try
        {
            control = hypervisor.Grants.Map(peer, [reference], new DeathNotice(ControlPage.ConnectorAliveOffset, events));
            // One copy; what is checked is what is used.
            ControlPage copy = *(ControlPage*)control.Address;
            if (copy.Magic != ControlPage.MagicValue || copy.Version != ControlPage.CurrentVersion)
            {
                throw new PeerViolationException($"control page with magic {copy.Magic:x8}, version {copy.Version}");
            }

            if (copy.Session != session)
            {
                throw new PeerViolationException("control page of another session");
            }

            if (!ControlPage.IsValidRingSize(copy.RingBytes))
            {
                throw new PeerViolationException($"ring of {copy.RingBytes} bytes");
            }

            int pages = (int)(2 * copy.RingBytes / ControlPage.PageSize);
            SharedMemory rings = hypervisor.Grants.Map(peer, new ReadOnlySpan<uint>(copy.RingReferences, pages));
            return new ChannelMemory(null, events, control, rings, copy.RingBytes);
        }
        catch
        {
            control?.Dispose();
            events.Dispose();
            throw;
        }
    }

    /// <summary>The ring from this side to the peer.</summary>
    public RingProducer CreateProducer() => _listener
        ? new RingProducer(_rings.Address, _ringBytes, &Page->Producer0, &Page->Consumer0)
        : new RingProducer(_rings.Address + _ringBytes, _ringBytes, &Page->Producer1, &Page->Consumer1);

    /// <summary>The ring from the peer to this side.</summary>
    public RingConsumer CreateConsumer() => _listener
        ? new RingConsumer(_rings.Address + _ringBytes, _ringBytes, &Page->Consumer1, &Page->Producer1)
        : new RingConsumer(_rings.Address, _ringBytes, &Page->Consumer0, &Page->Producer0);

    /// <summary>Gives everything back, except what the peer holds on to.</summary>
    /// <param name="kept">Gets that.</param>
    /// <param name="peer">Of the channel.</param>
    /// <param name="isLetGo">See <see cref="KeptMemory.Return"/>.</param>
    /// <param name="now">See <see cref="Loop.Deadline"/>.</param>
    public void Release(KeptMemory kept, ushort peer, bool isLetGo, TimeSpan now)
    {
        if (_granted is null)
        {
            _rings.Dispose();
            _control.Dispose();
        }
        else
        {
            // As at the death of this process; and the port is not to be held by a page that outlives it.
            Volatile.Write(ref Page->ListenerAlive, 0);
            Events.Notify();
            _granted.Control.SetDeathNotice(null);
            kept.Return(peer, _granted, isLetGo, now);
        }

        Events.Dispose();
    }
}
