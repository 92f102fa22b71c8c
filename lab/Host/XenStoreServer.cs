using System.Collections.Immutable;
using System.Globalization;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Text;
using System.Threading.Channels;
using XenLoop.Interop.Xen;

namespace XenLoop.Lab;

/// <summary>
/// The lab's xenstored: XenStore's wire protocol over unix sockets, one listening socket per domain, which is how a
/// client's identity is known. The real libxenstore and the xenstore-* tools talk to it. One lock guards everything.
/// </summary>
/// <remarks>
/// Transactions conflict with any change by others, where xenstored looks at the nodes touched, and read what they
/// read at their start. Not here: memory and rate limits, XS_CONTROL, and stub domains (XS_SET_TARGET).
/// </remarks>
internal sealed class XenStoreServer : IAsyncDisposable
{
    private const int WatchesMax = 128;
    private const int TransactionsMax = 10;

    private readonly Lock _lock = new();
    private readonly XenStoreTree _tree = new();
    private readonly Dictionary<ushort, Domain> _domains = [];
    private readonly List<Connection> _connections = [];
    private readonly Dictionary<string, ImmutableArray<XenStorePermission>> _special = new()
    {
        ["@introduceDomain"] = [new(0, XenStoreAccess.None)],
        ["@releaseDomain"] = [new(0, XenStoreAccess.None)],
    };

    /// <summary>Looks on, if given. It is called with the lock held.</summary>
    public RequestObserver? Observer { get; set; }

    /// <summary>
    /// As oxenstored (XCP-ng) does it: it knows no directory in parts, and what is too long for a message it refuses a guest, but sends
    /// whole to who comes by the socket: libxenstore gives the connection up.
    /// </summary>
    public bool IsOxenstored
    {
        get => !_tree.NamesCount;
        set => _tree.NamesCount = !value;
    }

    /// <summary>How long each request waits for its turn: a busy xenstored. No connection waits for another's requests.</summary>
    public TimeSpan Delay { get; set; }

    /// <summary>Introduces a domain, whose programs connect to <paramref name="socketPath"/>. Dom0 comes first.</summary>
    /// <param name="domid">The new domain.</param>
    /// <param name="socketPath">Where its programs will connect.</param>
    /// <param name="writeNodes">Writes what is to be there when others hear of the domain.</param>
    public void AddDomain(ushort domid, string socketPath, Action? writeNodes = null)
    {
        Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        listener.Bind(new UnixDomainSocketEndPoint(socketPath));
        listener.Listen(64);
        Domain domain = new(domid, listener);
        lock (_lock)
        {
            _domains.Add(domid, domain);
            _tree.AddDomain(domid);
            writeNodes?.Invoke();
            FireSpecial("@introduceDomain");
        }

        domain.Accepting = AcceptAsync(domain);
    }

    /// <summary>Releases a domain that is gone: its connections end, its nodes go, @releaseDomain fires.</summary>
    public async Task RemoveDomainAsync(ushort domid)
    {
        Domain domain;
        lock (_lock)
        {
            if (!_domains.Remove(domid, out domain!))
            {
                return;
            }

            foreach (Connection connection in _connections.Where(c => c.Domid == domid).ToArray())
            {
                Drop(connection);
            }

            _tree.RemoveDomain(domid);
            foreach (string name in _special.Keys.ToArray())
            {
                _special[name] = _special[name].RemoveAll(p => p.Domid == domid);
            }

            FireChanges();
            FireSpecial("@releaseDomain");
        }

        domain.Listener.Dispose();
        await domain.Accepting;
    }

    /// <summary>As Dom0 reads; null when there is no such node.</summary>
    public string? Read(string path)
    {
        try
        {
            lock (_lock)
            {
                return Encoding.UTF8.GetString(_tree.Read(0, path).Value);
            }
        }
        catch (XenStoreRefusal e) when (e.Error == "ENOENT")
        {
            return null;
        }
    }

    /// <summary>As Dom0 writes; with permissions, if given.</summary>
    public void Write(string path, string value, params (ushort Domid, XenStoreAccess Access)[] permissions)
    {
        lock (_lock)
        {
            _tree.Write(0, path, Encoding.UTF8.GetBytes(value));
            if (permissions.Length > 0)
            {
                _tree.SetPermissions(0, path, [.. permissions.Select(p => new XenStorePermission(p.Domid, p.Access))]);
            }

            FireChanges();
        }
    }

    /// <summary>As Dom0 removes, with all below; no node is no error.</summary>
    public void Remove(string path)
    {
        try
        {
            lock (_lock)
            {
                _tree.Remove(0, path);
                FireChanges();
            }
        }
        catch (XenStoreRefusal e) when (e.Error == "ENOENT")
        {
            // Neither the node nor the one above it.
        }
    }

    /// <summary>As libxl removes a device: with the nodes above that are left without children and have no value.</summary>
    public void CleanUp(string path)
    {
        lock (_lock)
        {
            Remove(path);
            for (int end = path.LastIndexOf('/'); end > 0; end = path.LastIndexOf('/', end - 1))
            {
                string above = path[..end];
                if (Read(above) != "" || _tree.Read(0, above).Children.Count > 0)
                {
                    return;
                }

                Remove(above);
            }
        }
    }

    /// <summary>Does all that is to be seen at once.</summary>
    public void Atomically(Action change)
    {
        lock (_lock)
        {
            change();
        }
    }

    /// <summary>What a domain uses of its quotas.</summary>
    public (int Nodes, int Watches, int Connections) Count(ushort domid)
    {
        lock (_lock)
        {
            return (
                _tree.CountNodes(domid),
                CountWatches(domid),
                _connections.Count(c => c.Domid == domid));
        }
    }

    public async ValueTask DisposeAsync()
    {
        ushort[] domids;
        lock (_lock)
        {
            domids = [.. _domains.Keys.OrderDescending()];
        }

        foreach (ushort domid in domids)
        {
            await RemoveDomainAsync(domid);
        }
    }

    private async Task AcceptAsync(Domain domain)
    {
        try
        {
            while (true)
            {
                Connection connection = new(domain.Domid, await domain.Listener.AcceptAsync());
                lock (_lock)
                {
                    if (!_domains.ContainsKey(domain.Domid))
                    {
                        connection.Socket.Dispose();
                        return;
                    }

                    _connections.Add(connection);
                }

                _ = ServeAsync(connection);
                _ = SendAsync(connection);
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // The domain is gone.
        }
    }

    private async Task ServeAsync(Connection connection)
    {
        byte[] header = new byte[Marshal.SizeOf<XenStoreHeader>()];
        byte[] payload = new byte[XenStoreHeader.PayloadMax];
        try
        {
            while (await ReceiveAsync(connection.Socket, header))
            {
                XenStoreHeader request = MemoryMarshal.Read<XenStoreHeader>(header);
                if (request.Length > XenStoreHeader.PayloadMax
                    || !await ReceiveAsync(connection.Socket, payload.AsMemory(0, (int)request.Length)))
                {
                    break;
                }

                if (Delay > TimeSpan.Zero)
                {
                    await Task.Delay(Delay);
                }

                lock (_lock)
                {
                    if (connection.Dropped)
                    {
                        break;
                    }

                    connection.Request = Describe(request, payload.AsSpan(0, (int)request.Length));
                    Observe(connection, done: false);
                    Answer(connection, request, payload.AsSpan(0, (int)request.Length));
                }
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException or RequestLostException)
        {
            // The client is gone, or is dropped.
        }

        lock (_lock)
        {
            Drop(connection);
        }
    }

    private static async Task<bool> ReceiveAsync(Socket socket, Memory<byte> buffer)
    {
        while (buffer.Length > 0)
        {
            int length = await socket.ReceiveAsync(buffer);
            if (length == 0)
            {
                return false;
            }

            buffer = buffer[length..];
        }

        return true;
    }

    /// <summary>A client that reads slowly delays nobody: what it is sent waits in its queue.</summary>
    private static async Task SendAsync(Connection connection)
    {
        try
        {
            await foreach (byte[] message in connection.Outgoing.Reader.ReadAllAsync())
            {
                for (int sent = 0; sent < message.Length;)
                {
                    sent += await connection.Socket.SendAsync(message.AsMemory(sent));
                }
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
            // The client is gone, or is dropped.
        }
    }

    private void Drop(Connection connection)
    {
        connection.Dropped = true;
        connection.Watches.Clear();
        connection.Transactions.Clear();
        connection.Outgoing.Writer.TryComplete();
        connection.Socket.Dispose();
        _connections.Remove(connection);
    }

    private void Answer(Connection connection, XenStoreHeader request, ReadOnlySpan<byte> payload)
    {
        try
        {
            XenStoreTree tree = _tree;
            if (request.TransactionId != 0
                && request.Type is not (XenStoreMessage.Watch or XenStoreMessage.Unwatch)
                && !connection.Transactions.TryGetValue(request.TransactionId, out Transaction? transaction))
            {
                throw new XenStoreRefusal("ENOENT");
            }
            else if (connection.Transactions.TryGetValue(request.TransactionId, out transaction))
            {
                tree = transaction.Tree;
            }

            Answer(connection, request, payload, tree);
        }
        catch (XenStoreRefusal e)
        {
            Send(connection, request with { Type = XenStoreMessage.Error }, e.Error + '\0');
        }
    }

    private void Answer(Connection connection, XenStoreHeader request, ReadOnlySpan<byte> payload, XenStoreTree tree)
    {
        ushort domid = connection.Domid;
        switch (request.Type)
        {
            case XenStoreMessage.Directory:
                XenStoreNode directory = tree.Read(domid, OnePath(connection, payload));
                if (directory.ChildBytes > XenStoreHeader.PayloadMax && (!IsOxenstored || domid != 0))
                {
                    throw new XenStoreRefusal("E2BIG");
                }

                Send(connection, request, string.Concat(directory.Children.Keys.Select(name => name + '\0')));
                break;
            case XenStoreMessage.DirectoryPart when !IsOxenstored:
                Send(connection, request, DirectoryPart(connection, payload, tree));
                break;
            case XenStoreMessage.Read:
                Send(connection, request, tree.Read(domid, OnePath(connection, payload)).Value);
                break;
            case XenStoreMessage.GetPerms:
                ImmutableArray<XenStorePermission> permissions = tree.Read(domid, OnePath(connection, payload)).Permissions;
                Send(connection, request, string.Concat(permissions.Select(p => $"{p}\0")));
                break;
            case XenStoreMessage.Write:
                int end = payload.IndexOf((byte)0);
                if (end < 0)
                {
                    throw new XenStoreRefusal("EINVAL");
                }

                tree.Write(domid, Canonical(connection, Encoding.UTF8.GetString(payload[..end])), payload[(end + 1)..].ToArray());
                Acknowledge(connection, request);
                break;
            case XenStoreMessage.Mkdir:
                tree.MakeDirectory(domid, OnePath(connection, payload));
                Acknowledge(connection, request);
                break;
            case XenStoreMessage.Rm:
                tree.Remove(domid, OnePath(connection, payload));
                Acknowledge(connection, request);
                break;
            case XenStoreMessage.SetPerms:
                SetPermissions(connection, payload, tree);
                Acknowledge(connection, request);
                break;
            case XenStoreMessage.Watch:
                Watch watch = AddWatch(connection, payload);
                Acknowledge(connection, request);
                watch.Fire(connection, watch.Path);
                break;
            case XenStoreMessage.Unwatch:
                string[] unwatch = Strings(payload, 2);
                string unwatched = Canonical(connection, unwatch[0]);
                if (connection.Watches.RemoveAll(w => w.Path == unwatched && w.Token == unwatch[1]) == 0)
                {
                    throw new XenStoreRefusal("ENOENT");
                }

                Acknowledge(connection, request);
                break;
            case XenStoreMessage.ResetWatches:
                connection.Watches.Clear();
                connection.Transactions.Clear();
                Acknowledge(connection, request);
                break;
            case XenStoreMessage.TransactionStart:
                Send(connection, request, StartTransaction(connection, request));
                break;
            case XenStoreMessage.TransactionEnd:
                EndTransaction(connection, request, payload);
                Acknowledge(connection, request);
                break;
            case XenStoreMessage.GetDomainPath:
                Send(connection, request, $"/local/domain/{Number(One(payload))}\0");
                break;
            case XenStoreMessage.IsDomainIntroduced when domid == 0:
                Send(connection, request, _domains.ContainsKey(Number(One(payload))) ? "T\0" : "F\0");
                break;
            case XenStoreMessage.Control or XenStoreMessage.Introduce or XenStoreMessage.Release
                or XenStoreMessage.IsDomainIntroduced or XenStoreMessage.Resume or XenStoreMessage.SetTarget when domid != 0:
                throw new XenStoreRefusal("EACCES");
            default:
                throw new XenStoreRefusal("ENOSYS");
        }
    }

    /// <summary>Acknowledges a change; the events it causes go first, as xenstored's do.</summary>
    private void Acknowledge(Connection connection, XenStoreHeader request)
    {
        FireChanges();
        Send(connection, request, "OK\0");
    }

    /// <summary>Sends a directory's names from an offset on, as many as fit.</summary>
    private static string DirectoryPart(Connection connection, ReadOnlySpan<byte> payload, XenStoreTree tree)
    {
        string[] arguments = Strings(payload, 2);
        XenStoreNode node = tree.Read(connection.Domid, Canonical(connection, arguments[0]));
        int offset = int.TryParse(arguments[1], NumberStyles.None, CultureInfo.InvariantCulture, out int value) ? value : 0;
        StringBuilder part = new($"{node.Generation}\0");
        int position = 0;
        foreach (string name in node.Children.Keys)
        {
            if (position >= offset)
            {
                if (part.Length + name.Length + 2 > XenStoreHeader.PayloadMax)
                {
                    return part.ToString();
                }

                part.Append(name).Append('\0');
            }

            position += name.Length + 1;
        }

        // An empty name says that the list is complete.
        return part.Append('\0').ToString();
    }

    private void SetPermissions(Connection connection, ReadOnlySpan<byte> payload, XenStoreTree tree)
    {
        string[] arguments = Strings(payload, atLeast: 2);
        ImmutableArray<XenStorePermission> permissions = [.. arguments[1..].Select(XenStorePermission.Parse)];
        if (!arguments[0].StartsWith('@'))
        {
            tree.SetPermissions(connection.Domid, Canonical(connection, arguments[0]), permissions);
            return;
        }

        if (!_special.TryGetValue(arguments[0], out ImmutableArray<XenStorePermission> old))
        {
            throw new XenStoreRefusal("EINVAL");
        }

        if (!XenStoreTree.Allows(old, connection.Domid, XenStoreAccess.Write, owner: true))
        {
            throw new XenStoreRefusal("EACCES");
        }

        _special[arguments[0]] = tree.CheckPermissions(connection.Domid, permissions);
    }

    private Watch AddWatch(Connection connection, ReadOnlySpan<byte> payload)
    {
        string[] arguments = Strings(payload, 2);
        string path = Canonical(connection, arguments[0]);
        if (!path.StartsWith('@'))
        {
            XenStoreTree.CheckPath(path);
        }

        if (connection.Watches.Any(w => w.Path == path && w.Token == arguments[1]))
        {
            throw new XenStoreRefusal("EEXIST");
        }

        if (connection.Domid != 0 && CountWatches(connection.Domid) > WatchesMax)
        {
            throw new XenStoreRefusal("E2BIG");
        }

        // A relative watch answers with relative paths.
        Watch watch = new(path, arguments[1], path == arguments[0] ? null : Home(connection));
        connection.Watches.Add(watch);
        return watch;
    }

    private int CountWatches(ushort domid) => _connections.Where(c => c.Domid == domid).Sum(c => c.Watches.Count);

    private string StartTransaction(Connection connection, XenStoreHeader request)
    {
        if (request.TransactionId != 0)
        {
            throw new XenStoreRefusal("EBUSY");
        }

        if (connection.Domid != 0 && connection.Transactions.Count > TransactionsMax)
        {
            throw new XenStoreRefusal("ENOSPC");
        }

        uint id = ++connection.LastTransaction;
        connection.Transactions.Add(id, new(_tree.Fork(), _tree.Generation));
        return $"{id}\0";
    }

    private void EndTransaction(Connection connection, XenStoreHeader request, ReadOnlySpan<byte> payload)
    {
        if (One(payload) is not ("T" or "F") || !connection.Transactions.Remove(request.TransactionId, out Transaction? transaction))
        {
            throw new XenStoreRefusal(connection.Transactions.ContainsKey(request.TransactionId) ? "EINVAL" : "ENOENT");
        }

        if (payload[0] == 'T')
        {
            _tree.Merge(transaction.Tree, transaction.StartedAt);
        }
    }

    private void FireChanges()
    {
        foreach (XenStoreChange change in _tree.Changes)
        {
            foreach (Connection connection in _connections)
            {
                foreach (Watch watch in connection.Watches)
                {
                    if (watch.Hears(change) && IsPermitted(connection.Domid, change))
                    {
                        watch.Fire(connection, change.Path);
                    }
                }
            }
        }

        _tree.Changes.Clear();
    }

    private void FireSpecial(string name)
    {
        foreach (Connection connection in _connections)
        {
            if (XenStoreTree.Allows(_special[name], connection.Domid, XenStoreAccess.Read))
            {
                foreach (Watch watch in connection.Watches.Where(w => w.Path == name))
                {
                    watch.Fire(connection, name);
                }
            }
        }
    }

    private static bool IsPermitted(ushort domid, XenStoreChange change) =>
        XenStoreTree.Allows(change.Node, domid, XenStoreAccess.Read)
        || XenStoreTree.Allows(change.Parent, domid, XenStoreAccess.Read)
        || (change.Old is { } old && XenStoreTree.Allows(old, domid, XenStoreAccess.Read));

    private static string Home(Connection connection) => $"/local/domain/{connection.Domid}";

    private static string Canonical(Connection connection, string path) =>
        path.StartsWith('/') || path.StartsWith('@') ? path : $"{Home(connection)}/{path}";

    private static string OnePath(Connection connection, ReadOnlySpan<byte> payload) => Canonical(connection, One(payload));

    private static string One(ReadOnlySpan<byte> payload) => Strings(payload, 1)[0];

    private static ushort Number(string text) =>
        ushort.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ushort number)
            ? number
            : throw new XenStoreRefusal("EINVAL");

    /// <summary>Takes a payload apart: strings, each ended by a nul.</summary>
    private static string[] Strings(ReadOnlySpan<byte> payload, int exactly = 0, int atLeast = 0)
    {
        string[] strings = payload.Length > 0 && payload[^1] == 0 ? Encoding.UTF8.GetString(payload[..^1]).Split('\0') : [];
        return strings.Length == exactly || (exactly == 0 && strings.Length >= atLeast)
            ? strings
            : throw new XenStoreRefusal("EINVAL");
    }

    private string? Describe(XenStoreHeader request, ReadOnlySpan<byte> payload) =>
        Observer is null ? null : $"{request.Type} {Encoding.UTF8.GetString(payload).TrimEnd('\0').Replace('\0', ' ')}".TrimEnd();

    /// <exception cref="RequestLostException">The observer wants it so.</exception>
    private void Observe(Connection connection, bool done)
    {
        if (connection.Request is { } request && Observer?.Invoke(connection.Domid, request, done) == false)
        {
            throw new RequestLostException();
        }
    }

    private void Send(Connection connection, XenStoreHeader request, string payload) =>
        Send(connection, request, Encoding.UTF8.GetBytes(payload));

    private void Send(Connection connection, XenStoreHeader request, byte[] payload)
    {
        Observe(connection, done: true);
        SendMessage(connection, request, payload);
    }

    private static void SendMessage(Connection connection, XenStoreHeader request, byte[] payload)
    {
        byte[] message = new byte[Marshal.SizeOf<XenStoreHeader>() + payload.Length];
        MemoryMarshal.Write(message, request with { Length = (uint)payload.Length });
        payload.CopyTo(message.AsSpan(Marshal.SizeOf<XenStoreHeader>()));
        connection.Outgoing.Writer.TryWrite(message);
    }

    private sealed class Domain(ushort domid, Socket listener)
    {
        public ushort Domid { get; } = domid;

        public Socket Listener { get; } = listener;

        public Task Accepting { get; set; } = Task.CompletedTask;
    }

    private sealed class Connection(ushort domid, Socket socket)
    {
        public ushort Domid { get; } = domid;

        public Socket Socket { get; } = socket;

        public List<Watch> Watches { get; } = [];

        public Dictionary<uint, Transaction> Transactions { get; } = [];

        public uint LastTransaction { get; set; }

        /// <summary>What is being carried out, for the observer; null when there is none.</summary>
        public string? Request { get; set; }

        public Channel<byte[]> Outgoing { get; } = Channel.CreateUnbounded<byte[]>();

        public bool Dropped { get; set; }
    }

    private sealed record Transaction(XenStoreTree Tree, long StartedAt);

    private sealed record Watch(string Path, string Token, string? RelativeTo)
    {
        /// <summary>Whether the change is of the watched node, or below it.</summary>
        public bool Hears(XenStoreChange change) =>
            change.Path == Path
            || (!change.Exact
                && (Path == "/" || (change.Path.StartsWith(Path, StringComparison.Ordinal) && change.Path[Path.Length] == '/')));

        public void Fire(Connection connection, string path)
        {
            string shown = RelativeTo is null ? path : path[RelativeTo.Length..].TrimStart('/');
            SendMessage(connection, new() { Type = XenStoreMessage.WatchEvent }, Encoding.UTF8.GetBytes($"{shown}\0{Token}\0"));
        }
    }
}
