using System.Runtime.InteropServices;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Lab;

/// <summary>What a domain holds of its hypervisor; all zero when its daemon has cleaned up.</summary>
/// <param name="PagesGranted">Pages it grants.</param>
/// <param name="PagesLingering">Pages it has ended access to that a peer still maps: they cannot be used again yet.</param>
/// <param name="PagesMapped">Pages of others that it maps.</param>
/// <param name="Ports">Event channels it holds.</param>
internal readonly record struct BrokerUsage(int PagesGranted, int PagesLingering, int PagesMapped, int Ports);

/// <summary>
/// The lab's hypervisor: hands out memfds as granted pages and eventfds as event channels, to whom they were granted and to
/// nobody else. A socket per domain tells who asks; a thread per connection answers, under one lock. What a connection
/// holds ends with it, death notices included, as the kernel does it for a process.
/// </summary>
/// <remarks>Not here: gntalloc's limit of pages, and a limit of event channels.</remarks>
internal sealed class Broker : IDisposable
{
    private const int ThreadStack = 256 * 1024;

    private readonly Lock _lock = new();
    private readonly Dictionary<ushort, Domain> _domains = [];
    private readonly Dictionary<(ushort Granter, uint Reference), (Share Share, uint Page)> _grants = [];
    private readonly Dictionary<(ushort Owner, uint Port), Port> _ports = [];
    private uint _lastNumber;

    /// <summary>Looks on, if given. It is called with the lock held.</summary>
    public RequestObserver? Observer { get; set; }

    /// <summary>Creates a domain, whose programs connect to <paramref name="socketPath"/>.</summary>
    public void AddDomain(ushort domid, string socketPath)
    {
        Domain domain = new(domid, UnixSocket.Listen(socketPath));
        lock (_lock)
        {
            _domains.Add(domid, domain);
        }

        Start(() => Accept(domain), $"broker of domain {domid}");
    }

    /// <summary>Destroys a domain. As on Xen no death notice runs then, and what peers have mapped stays readable.</summary>
    public void RemoveDomain(ushort domid)
    {
        lock (_lock)
        {
            if (!_domains.Remove(domid, out Domain? domain))
            {
                return;
            }

            domain.Listener.Shutdown();
            foreach (Client client in domain.Clients.ToArray())
            {
                End(client, runNotices: false);
                client.Socket.Shutdown();
            }
        }
    }

    public BrokerUsage Count(ushort domid)
    {
        lock (_lock)
        {
            if (!_domains.TryGetValue(domid, out Domain? domain))
            {
                return default;
            }

            return new(
                domain.Clients.Sum(c => c.Shares.Values.Sum(s => s.References.Length)),
                domain.Lingering.Sum(s => s.Mapped),
                domain.Clients.Sum(c => c.Mappings.Values.Sum(m => m.Pages.Count)),
                domain.Clients.Sum(c => c.Ports.Count));
        }
    }

    public void Dispose()
    {
        ushort[] domids;
        lock (_lock)
        {
            domids = [.. _domains.Keys];
        }

        foreach (ushort domid in domids)
        {
            RemoveDomain(domid);
        }
    }

    private static void Start(Action action, string name) =>
        new Thread(() => action(), ThreadStack) { IsBackground = true, Name = name }.Start();

    private void Accept(Domain domain)
    {
        while (domain.Listener.Accept() is { } socket)
        {
            Client client = new(domain, socket);
            lock (_lock)
            {
                if (!_domains.ContainsValue(domain))
                {
                    socket.Dispose();
                    continue;
                }

                domain.Clients.Add(client);
            }

            Start(() => Serve(client), $"broker of domain {domain.Domid}");
        }

        domain.Listener.Dispose();
    }

    private void Serve(Client client)
    {
        byte[] message = new byte[LabProtocol.MessageMax];
        SafeFd[] descriptors = new SafeFd[UnixSocket.DescriptorsMax];
        try
        {
            int length;
            while ((length = client.Socket.Receive(message, descriptors, out int descriptorCount)) >= Marshal.SizeOf<LabRequest>())
            {
                foreach (SafeFd descriptor in descriptors.AsSpan(0, descriptorCount))
                {
                    descriptor.Dispose();
                }

                LabRequest request = MemoryMarshal.Read<LabRequest>(message);
                uint[] references = MemoryMarshal
                    .Cast<byte, uint>(message.AsSpan(Marshal.SizeOf<LabRequest>(), length - Marshal.SizeOf<LabRequest>())).ToArray();
                lock (_lock)
                {
                    if (client.Ended)
                    {
                        break;
                    }

                    client.Request = Observer is null ? null : $"{request.Operation} {request.Argument} of {request.Peer}";
                    Observe(client, done: false);
                    try
                    {
                        Answer(client, request, references);
                    }
                    catch (Refusal)
                    {
                        Reply(client, new() { Errno = EINVAL });
                    }
                }
            }
        }
        catch (Exception e) when (e is NativeException or RequestLostException)
        {
            // The daemon died while it was being answered.
        }

        lock (_lock)
        {
            End(client, runNotices: true);
        }

        client.Socket.Dispose();
    }

    private void Answer(Client client, LabRequest request, uint[] references)
    {
        switch (request.Operation)
        {
            case LabOperation.Hello:
                Reply(client, new() { Value = client.Domid });
                break;
            case LabOperation.Share:
                Grant(client, request);
                break;
            case LabOperation.EndShare when client.Shares.TryGetValue(request.Argument, out Share? share):
                EndShare(client, share, runNotice: true);
                Reply(client, default);
                break;
            case LabOperation.SetNotice when client.Shares.TryGetValue(request.Argument, out Share? shared):
                Notice? notice = MakeNotice(client, request);
                shared.Notice?.Pair.Release();
                shared.Notice = notice;
                Reply(client, default);
                break;
            case LabOperation.IsDomainAlive:
                Reply(client, new() { Value = _domains.ContainsKey((ushort)request.Peer) ? 1u : 0u });
                break;
            case LabOperation.Map when references.Length == request.Count && references.Length > 0:
                Map(client, request, references);
                break;
            case LabOperation.Unmap when client.Mappings.TryGetValue(request.Argument, out Mapping? mapping):
                Unmap(client, mapping, runNotice: true);
                Reply(client, default);
                break;
            case LabOperation.AllocateUnbound:
                Port port = new(client.Domid, ++client.Domain.LastPort, (ushort)request.Peer, new Pair());
                _ports.Add((port.Owner, port.Number), port);
                client.Ports.Add(port.Number, port);
                Reply(client, new() { Value = port.Number }, port.Mine.Handle, port.Peers.Handle);
                break;
            case LabOperation.BindInterdomain:
                Bind(client, request);
                break;
            case LabOperation.Close when client.Ports.TryGetValue(request.Argument, out Port? closed):
                Close(client, closed);
                Reply(client, default);
                break;
            default:
                throw new Refusal();
        }
    }

    private void Grant(Client client, LabRequest request)
    {
        uint pages = request.Argument;
        if (pages is 0 or > LabProtocol.PagesMax)
        {
            throw new Refusal();
        }

        Notice? notice = MakeNotice(client, request);
        SafeFd memory = MemFd.Create($"granted by domain {client.Domid}", (long)pages * LabProtocol.PageSize);
        uint[] references = new uint[pages];
        Share share = new(++_lastNumber, client.Domain, (ushort)request.Peer, memory, references, notice);
        for (uint i = 0; i < pages; i++)
        {
            references[i] = ++client.Domain.LastReference;
            _grants.Add((client.Domid, references[i]), (share, i));
        }

        client.Shares.Add(share.Number, share);
        byte[] reply = new byte[Marshal.SizeOf<LabReply>() + (references.Length * sizeof(uint))];
        MemoryMarshal.Write(reply, new LabReply { Value = share.Number, Count = pages });
        MemoryMarshal.AsBytes<uint>(references).CopyTo(reply.AsSpan(Marshal.SizeOf<LabReply>()));
        Observe(client, done: true);
        client.Socket.Send(reply, memory);
    }

    private void Map(Client client, LabRequest request, uint[] references)
    {
        List<(Share Share, uint Page)> pages = [];
        List<(Share Share, LabRun Run)> runs = [];
        foreach (uint reference in references)
        {
            if (!_grants.TryGetValue(((ushort)request.Peer, reference), out (Share Share, uint Page) page)
                || page.Share.Peer != client.Domid)
            {
                throw new Refusal();
            }

            pages.Add(page);
            if (runs.Count > 0
                && runs[^1].Share == page.Share
                && runs[^1].Run.FirstPage + runs[^1].Run.Pages == page.Page)
            {
                runs[^1] = (page.Share, runs[^1].Run with { Pages = runs[^1].Run.Pages + 1 });
            }
            else
            {
                runs.Add((page.Share, new() { FirstPage = page.Page, Pages = 1 }));
            }
        }

        Mapping mapping = new(++_lastNumber, pages, MakeNotice(client, request));
        client.Mappings.Add(mapping.Number, mapping);
        foreach ((Share share, _) in pages)
        {
            share.Mapped++;
        }

        Reply(client, new() { Value = mapping.Number, Count = (uint)runs.Count });
        Span<byte> message = stackalloc byte[Marshal.SizeOf<LabRun>()];
        foreach ((Share share, LabRun run) in runs)
        {
            MemoryMarshal.Write(message, run);
            client.Socket.Send(message, share.Memory);
        }
    }

    private void Bind(Client client, LabRequest request)
    {
        if (!_ports.TryGetValue(((ushort)request.Peer, request.Argument), out Port? remote)
            || remote.Peer != client.Domid
            || remote.Bound)
        {
            throw new Refusal();
        }

        remote.Bound = true;
        Port port = new(client.Domid, ++client.Domain.LastPort, remote.Owner, remote.Pair, remote);
        _ports.Add((port.Owner, port.Number), port);
        client.Ports.Add(port.Number, port);

        // Events sent before somebody listened are lost; binding raises one.
        port.Mine.Drain();
        port.Mine.Signal();
        Reply(client, new() { Value = port.Number }, port.Mine.Handle, port.Peers.Handle);
    }

    private static Notice? MakeNotice(Client client, LabRequest request)
    {
        if (request.NoticeOffset == LabProtocol.NoNotice)
        {
            return null;
        }

        // The notice holds the event channel: the port may be closed first.
        return request.NoticeOffset < LabProtocol.PageSize && client.Ports.TryGetValue(request.NoticePort, out Port? port)
            ? new((int)request.NoticeOffset, port, port.Pair.Hold())
            : throw new Refusal();
    }

    /// <summary>Takes away all that a connection holds.</summary>
    private void End(Client client, bool runNotices)
    {
        if (client.Ended)
        {
            return;
        }

        client.Ended = true;
        foreach (Mapping mapping in client.Mappings.Values.ToArray())
        {
            Unmap(client, mapping, runNotices);
        }

        foreach (Share share in client.Shares.Values.ToArray())
        {
            EndShare(client, share, runNotices);
        }

        foreach (Port port in client.Ports.Values.ToArray())
        {
            Close(client, port);
        }

        client.Domain.Clients.Remove(client);
    }

    private void EndShare(Client client, Share share, bool runNotice)
    {
        Run(share.Notice, share.Memory, 0, runNotice);
        client.Shares.Remove(share.Number);
        foreach (uint reference in share.References)
        {
            _grants.Remove((client.Domid, reference));
        }

        share.Ended = true;
        if (share.Mapped > 0)
        {
            client.Domain.Lingering.Add(share);
        }
        else
        {
            share.Memory.Dispose();
        }
    }

    private static void Unmap(Client client, Mapping mapping, bool runNotice)
    {
        Run(mapping.Notice, mapping.Pages[0].Share.Memory, mapping.Pages[0].Page, runNotice);
        client.Mappings.Remove(mapping.Number);
        foreach ((Share share, _) in mapping.Pages)
        {
            if (--share.Mapped == 0 && share.Ended)
            {
                share.Domain.Lingering.Remove(share);
                share.Memory.Dispose();
            }
        }
    }

    private void Close(Client client, Port port)
    {
        _ports.Remove((port.Owner, port.Number));
        client.Ports.Remove(port.Number);
        if (port.Remote is { } remote)
        {
            remote.Bound = false;
        }

        port.Pair.Release();
    }

    private static unsafe void Run(Notice? notice, SafeFd memory, uint page, bool run)
    {
        if (notice is null)
        {
            return;
        }

        if (run)
        {
            using (MappedMemory mapped = MappedMemory.Map(memory.Number, LabProtocol.PageSize, "a memfd", (long)page * LabProtocol.PageSize))
            {
                Volatile.Write(ref mapped.Address[notice.ByteOffset], 0);
            }

            notice.Port.Peers.Signal();
        }

        notice.Pair.Release();
    }

    private void Reply(Client client, LabReply reply, params ReadOnlySpan<SafeFd> descriptors)
    {
        Observe(client, done: true);
        Span<byte> message = stackalloc byte[Marshal.SizeOf<LabReply>()];
        MemoryMarshal.Write(message, reply);
        client.Socket.Send(message, descriptors);
    }

    /// <exception cref="RequestLostException">The observer wants it so.</exception>
    private void Observe(Client client, bool done)
    {
        if (client.Request is { } request && Observer?.Invoke(client.Domid, request, done) == false)
        {
            throw new RequestLostException();
        }
    }

    /// <summary>The request is refused, as Xen refuses it: EINVAL.</summary>
    private sealed class Refusal : Exception;

    private sealed class Domain(ushort domid, UnixSocket listener)
    {
        public ushort Domid { get; } = domid;

        public UnixSocket Listener { get; } = listener;

        public List<Client> Clients { get; } = [];

        public List<Share> Lingering { get; } = [];

        // Xen keeps the first eight references for itself.
        public uint LastReference { get; set; } = 8;

        public uint LastPort { get; set; }
    }

    private sealed class Client(Domain domain, UnixSocket socket)
    {
        public Domain Domain { get; } = domain;

        public ushort Domid => Domain.Domid;

        public UnixSocket Socket { get; } = socket;

        public Dictionary<uint, Share> Shares { get; } = [];

        public Dictionary<uint, Mapping> Mappings { get; } = [];

        public Dictionary<uint, Port> Ports { get; } = [];

        public bool Ended { get; set; }

        /// <summary>What is being carried out, for the observer; null when there is none.</summary>
        public string? Request { get; set; }
    }

    private sealed class Share(uint number, Domain domain, ushort peer, SafeFd memory, uint[] references, Notice? notice)
    {
        public uint Number { get; } = number;

        public Domain Domain { get; } = domain;

        public ushort Peer { get; } = peer;

        public SafeFd Memory { get; } = memory;

        public uint[] References { get; } = references;

        public Notice? Notice { get; set; } = notice;

        /// <summary>Mapped pages, each as often as it is mapped.</summary>
        public int Mapped { get; set; }

        public bool Ended { get; set; }
    }

    private sealed record Mapping(uint Number, List<(Share Share, uint Page)> Pages, Notice? Notice);

    private sealed record Notice(int ByteOffset, Port Port, Pair Pair);

    /// <summary>The two directions of an event channel, kept while either port or a notice needs them.</summary>
    private sealed class Pair
    {
        private int _holders = 1;

        public EventFd ToListener { get; } = new();

        public EventFd ToConnector { get; } = new();

        public Pair Hold()
        {
            _holders++;
            return this;
        }

        public void Release()
        {
            if (--_holders == 0)
            {
                ToListener.Dispose();
                ToConnector.Dispose();
            }
        }
    }

    private sealed class Port
    {
        /// <summary>The listener's.</summary>
        public Port(ushort owner, uint number, ushort peer, Pair pair)
        {
            (Owner, Number, Peer, Pair) = (owner, number, peer, pair);
            (Mine, Peers) = (pair.ToListener, pair.ToConnector);
        }

        /// <summary>The connector's, bound to <paramref name="remote"/>.</summary>
        public Port(ushort owner, uint number, ushort peer, Pair pair, Port remote)
        {
            (Owner, Number, Peer, Pair, Remote) = (owner, number, peer, pair.Hold(), remote);
            (Mine, Peers) = (pair.ToConnector, pair.ToListener);
        }

        public ushort Owner { get; }

        public uint Number { get; }

        public ushort Peer { get; }

        public Pair Pair { get; }

        public Port? Remote { get; }

        /// <summary>The connector has bound this listener's port.</summary>
        public bool Bound { get; set; }

        public EventFd Mine { get; }

        public EventFd Peers { get; }
    }
}
