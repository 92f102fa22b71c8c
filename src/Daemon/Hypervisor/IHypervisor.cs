using XenLoop.Interop.Xen;

namespace XenLoop.Hypervisor;

/// <summary>
/// What the daemon needs of the machine beneath it. Two implementations: real Xen (<see cref="RealXen"/>), and
/// the lab's, outside of what ships, whose grants are memfds and whose event channels are eventfds.
/// XenStore has one implementation only, libxenstore: the lab speaks its wire protocol.
/// </summary>
internal interface IHypervisor : IDisposable
{
    /// <summary>True in Dom0 (<c>control_d</c> among the capabilities): the daemon introduces guests.</summary>
    bool IsControlDomain { get; }

    /// <summary>Opens a connection to XenStore; the caller closes it.</summary>
    XenStore OpenXenStore();

    IGrantTable Grants { get; }

    IEventChannels EventChannels { get; }

    /// <summary>The network interface that is vif number <paramref name="vif"/> of this domain, or null while there is none.</summary>
    string? FindVifInterface(int vif);
}

/// <summary>This machine has no hypervisor of the kind, and will not get one while it runs.</summary>
internal sealed class NoHypervisorException(string message) : Exception(message);

/// <summary>Grants memory to a peer and maps what a peer granted. Memory comes zeroed and holds nothing else.</summary>
internal interface IGrantTable
{
    /// <summary>Allocates <paramref name="pages"/> zeroed pages and grants each to <paramref name="peer"/>, read-write.</summary>
    /// <param name="peer">Domid of the domain that may map the pages.</param>
    /// <param name="pages">Number of 4096-byte pages, at least 1.</param>
    /// <param name="onDeath">If given (one page only): what the kernel does when this process ends without closing.</param>
    /// <exception cref="Interop.NativeException">No page or grant is free, or the driver is missing.</exception>
    SharedMemory Share(ushort peer, int pages, DeathNotice? onDeath = null);

    /// <summary>Maps pages that <paramref name="peer"/> granted, contiguously in the order given.</summary>
    /// <param name="peer">Domid of the granter.</param>
    /// <param name="references">Grant references, one per page.</param>
    /// <param name="onDeath">If given (one page only): what the kernel does when this process ends without closing.</param>
    /// <exception cref="Interop.NativeException">A reference is not granted to this domain.</exception>
    SharedMemory Map(ushort peer, ReadOnlySpan<uint> references, DeathNotice? onDeath = null);
}

/// <summary>
/// Memory shared with a peer domain. The peer can change any byte at any time.
/// <see cref="Dispose"/> unmaps (connector) or ends access (listener); nothing may touch it afterwards.
/// </summary>
internal abstract unsafe class SharedMemory : IDisposable
{
    public byte* Address { get; protected init; }

    /// <summary>Bytes, a multiple of 4096.</summary>
    public int Length { get; protected init; }

    /// <summary>The grant references, one per page, as the granter publishes them.</summary>
    public uint[] References { get; protected init; } = [];

    /// <summary>Of one page that this domain granted: another notice in the place of the one it has; null for none. It holds the port of the old one no more.</summary>
    /// <exception cref="Interop.NativeException">The port is not this process's.</exception>
    public abstract void SetDeathNotice(DeathNotice? notice);

    public abstract void Dispose();
}

/// <summary>At the death of the process: this byte of the page is cleared, then an event is sent on the port.</summary>
internal readonly record struct DeathNotice(int ByteOffset, EventChannel Channel);

internal interface IEventChannels
{
    /// <summary>A port that <paramref name="remote"/> may bind to (the listener's side).</summary>
    EventChannel AllocateUnbound(ushort remote);

    /// <summary>Binds to the port that <paramref name="remote"/> offers (the connector's side). Raises one local event at once.</summary>
    EventChannel BindInterdomain(ushort remote, uint remotePort);

    /// <summary>False when there is no such domain any more, and so nothing that it maps.</summary>
    bool IsDomainAlive(ushort domid);
}

/// <summary>One event channel with a descriptor of its own. One reader; <see cref="Notify"/> from any thread.</summary>
internal abstract class EventChannel : IDisposable
{
    /// <summary>Readable (poll, epoll) when an event is pending.</summary>
    public int FileDescriptor { get; protected init; }

    /// <summary>The local port; the listener publishes it.</summary>
    public uint Port { get; protected init; }

    /// <summary>Sends one event to the peer. Never blocks; nobody listening is no error.</summary>
    public abstract void Notify();

    /// <summary>Takes the pending event, if any, and unmasks the port, so that the next event is seen. Call only when the descriptor is readable.</summary>
    public abstract void Acknowledge();

    public abstract void Dispose();
}
