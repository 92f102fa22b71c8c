using System.Collections.Immutable;
using System.Globalization;
using XenLoop.Interop.Xen;

namespace XenLoop.Lab;

/// <summary>One entry of a node's permissions. The first names the owner, and what domains without an entry may do.</summary>
internal readonly record struct XenStorePermission(ushort Domid, XenStoreAccess Access)
{
    /// <summary>Reads the form on the wire, a letter and a domid: <c>r5</c>.</summary>
    public static XenStorePermission Parse(string text)
    {
        XenStoreAccess? access = text.Length == 0 ? null : text[0] switch
        {
            'n' => XenStoreAccess.None,
            'r' => XenStoreAccess.Read,
            'w' => XenStoreAccess.Write,
            'b' => XenStoreAccess.ReadWrite,
            _ => null,
        };
        return access is { } valid && ushort.TryParse(text.AsSpan(1), NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid)
            ? new(domid, valid)
            : throw new XenStoreRefusal("EINVAL");
    }

    public override string ToString() => $"{"nrwb"[(int)Access]}{Domid}";
}

/// <summary>
/// A change that watches hear of. A watcher needs to be able to read the node or its parent, or to have been able to
/// before the change.
/// </summary>
/// <param name="Path">The node that changed.</param>
/// <param name="Exact">Heard only by watches on that very node: it went because one above it was removed.</param>
/// <param name="Node">The node's permissions.</param>
/// <param name="Parent">Its parent's.</param>
/// <param name="Old">The node's before they changed, if that is the change.</param>
internal sealed record XenStoreChange(
    string Path,
    bool Exact,
    ImmutableArray<XenStorePermission> Node,
    ImmutableArray<XenStorePermission> Parent,
    ImmutableArray<XenStorePermission>? Old);

/// <summary>A node and all below it; never changes, so that a transaction is a second root.</summary>
internal sealed record XenStoreNode(ImmutableArray<XenStorePermission> Permissions)
{
    public ImmutableSortedDictionary<string, XenStoreNode> Children { get; init; } =
        ImmutableSortedDictionary.Create<string, XenStoreNode>(StringComparer.Ordinal);

    public byte[] Value { get; init; } = [];

    /// <summary>Changes with each change of the node or its list of children.</summary>
    public long Generation { get; init; }

    /// <summary>Bytes of the names of the children, as DIRECTORY sends them.</summary>
    public int ChildBytes { get; init; }

    public ushort Owner => Permissions[0].Domid;
}

/// <summary>
/// The nodes of XenStore, with the rules of Xen 4.17's xenstored: who may do what, who owns what is created, and what a
/// guest may use up. Knows nothing of sockets, watches and locks. Errors are those of xenstored, named by its errno.
/// </summary>
internal sealed class XenStoreTree
{
    // xenstored's defaults.
    public const int NodesMax = 1000;
    public const int PermissionsMax = 5;
    private const int EntrySizeMax = 2048;
    private const int RelativePathMax = 2048;

    // A node's record in xenstored's data base: a header, permissions, value, names of children.
    private const int EntryHeader = 24;
    private const int EntryPermission = 8;

    private readonly Dictionary<ushort, int> _nodes;
    private readonly HashSet<ushort> _domains;
    private XenStoreNode _root;
    private long _generation;

    public XenStoreTree()
    {
        _root = new([new(0, XenStoreAccess.None)]);
        _nodes = new() { [0] = 1 };
        _domains = [0];
    }

    private XenStoreTree(XenStoreTree other)
    {
        _root = other._root;
        _generation = other._generation;
        _nodes = new(other._nodes);
        _domains = other._domains;
        NamesCount = other.NamesCount;
    }

    /// <summary>The names of its children count for a node's size. Not in oxenstored, where a directory can be of any length.</summary>
    public bool NamesCount { get; set; } = true;

    /// <summary>What has changed and not been told yet, in order; whoever tells empties it.</summary>
    public List<XenStoreChange> Changes { get; } = [];

    /// <summary>Nodes that the domain owns.</summary>
    public int CountNodes(ushort domid) => _nodes.GetValueOrDefault(domid);

    public bool IsDomain(ushort domid) => _domains.Contains(domid);

    /// <summary>A copy for a transaction.</summary>
    public XenStoreTree Fork() => new(this);

    /// <summary>Takes over what a transaction made of its copy; refused (EAGAIN) if others have made changes meanwhile.</summary>
    public void Merge(XenStoreTree fork, long forkedAt)
    {
        if (fork.Changes.Count == 0)
        {
            return;
        }

        if (_generation != forkedAt)
        {
            throw new XenStoreRefusal("EAGAIN");
        }

        _root = fork._root;
        _generation = fork._generation;
        _nodes.Clear();
        foreach ((ushort domid, int count) in fork._nodes)
        {
            _nodes[domid] = count;
        }

        Changes.AddRange(fork.Changes);
    }

    public long Generation => _generation;

    public void AddDomain(ushort domid) => _domains.Add(domid);

    /// <summary>A domain is gone: so are the nodes it owned, with all below them, and what others allowed it.</summary>
    public void RemoveDomain(ushort domid)
    {
        RemoveOwned("/", _root, domid);
        _root = Forget(_root, domid);
        _domains.Remove(domid);
        _nodes.Remove(domid);
    }

    public XenStoreNode Read(ushort caller, string path) => Get(caller, path, XenStoreAccess.Read);

    public void Write(ushort caller, string path, byte[] value)
    {
        if (GetForWriting(caller, path) is { } node)
        {
            node = node with { Value = value, Generation = ++_generation };
            CheckSize(caller, node);
            Replace(path, node);
        }
        else
        {
            Create(caller, path, value);
        }

        Changed(path);
    }

    public void MakeDirectory(ushort caller, string path)
    {
        if (GetForWriting(caller, path) is null)
        {
            Create(caller, path, []);
            Changed(path);
        }
    }

    public void Remove(ushort caller, string path)
    {
        if (GetForWriting(caller, path) is null)
        {
            if (Find(ParentOf(path)) is null)
            {
                throw new XenStoreRefusal("ENOENT");
            }

            return;
        }

        if (path == "/")
        {
            throw new XenStoreRefusal("EINVAL");
        }

        RemoveSubtree(path);
    }

    public void SetPermissions(ushort caller, string path, ImmutableArray<XenStorePermission> permissions)
    {
        permissions = CheckPermissions(caller, permissions);
        XenStoreNode node = Get(caller, path, XenStoreAccess.Write, owner: true);
        if (caller != 0 && permissions[0].Domid != node.Owner)
        {
            throw new XenStoreRefusal("EPERM");
        }

        XenStoreNode changed = node with { Permissions = permissions, Generation = ++_generation };
        CheckSize(caller, changed);
        Account(node.Owner, -1);
        Account(changed.Owner, 1);
        Replace(path, changed);
        Changes.Add(new(path, Exact: false, permissions, ParentPermissions(path), node.Permissions));
    }

    /// <summary>Refuses permissions that xenstored does, and leaves out entries for domains that do not exist.</summary>
    public ImmutableArray<XenStorePermission> CheckPermissions(ushort caller, ImmutableArray<XenStorePermission> permissions) =>
        permissions.Length == 0 ? throw new XenStoreRefusal("EINVAL")
        : caller != 0 && permissions.Length > PermissionsMax ? throw new XenStoreRefusal("ENOSPC")
        : !IsDomain(permissions[0].Domid) ? throw new XenStoreRefusal("ENOENT")
        : permissions.RemoveAll(p => !IsDomain(p.Domid));

    public static bool Allows(ImmutableArray<XenStorePermission> permissions, ushort caller, XenStoreAccess access, bool owner = false)
    {
        if (caller == 0 || permissions[0].Domid == caller)
        {
            return true;
        }

        XenStoreAccess granted = permissions[0].Access;
        foreach (XenStorePermission permission in permissions.AsSpan()[1..])
        {
            if (permission.Domid == caller)
            {
                granted = permission.Access;
                break;
            }
        }

        return !owner && (granted & access) == access;
    }

    public static void CheckPath(string path)
    {
        int home = 0;
        if (path.StartsWith("/local/domain/", StringComparison.Ordinal))
        {
            int end = path.IndexOf('/', "/local/domain/".Length);
            home = end < 0 ? 0 : end + 1;
        }

        if (!path.StartsWith('/')
            || (path.EndsWith('/') && path != "/")
            || path.Contains("//", StringComparison.Ordinal)
            || path.Length > home + RelativePathMax
            || !path.All(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '/' or '_' or '@'))
        {
            throw new XenStoreRefusal("EINVAL");
        }
    }

    private static string ParentOf(string path) => path.LastIndexOf('/') is > 0 and int slash ? path[..slash] : "/";

    private static string ChildOf(string path, string name) => path == "/" ? $"/{name}" : $"{path}/{name}";

    private static string[] Split(string path) => path == "/" ? [] : path[1..].Split('/');

    private XenStoreNode? Find(string path)
    {
        XenStoreNode? node = _root;
        foreach (string name in Split(path))
        {
            if (!node.Children.TryGetValue(name, out node))
            {
                return null;
            }
        }

        return node;
    }

    /// <summary>The node, if the caller may; else ENOENT where it may know that there is none, else EACCES.</summary>
    private XenStoreNode Get(ushort caller, string path, XenStoreAccess access, bool owner = false)
    {
        CheckPath(path);
        XenStoreNode? node = Find(path);
        if (node is not null && Allows(node.Permissions, caller, access, owner))
        {
            return node;
        }

        string error = node is null ? "ENOENT" : "EACCES";
        XenStoreNode? ancestor = null;
        for (string above = ParentOf(path); (ancestor = Find(above)) is null; above = ParentOf(above))
        {
        }

        // xenstored asks for any of the rights wanted here, and owning suffices for all.
        throw new XenStoreRefusal(Allows(ancestor.Permissions, caller, access) ? error : "EACCES");
    }

    private XenStoreNode? GetForWriting(ushort caller, string path)
    {
        try
        {
            return Get(caller, path, XenStoreAccess.Write);
        }
        catch (XenStoreRefusal e) when (e.Error == "ENOENT")
        {
            return null;
        }
    }

    private void Create(ushort caller, string path, byte[] value)
    {
        string[] names = Split(path);
        XenStoreNode parent = _root;
        int depth = 0;
        while (parent.Children.TryGetValue(names[depth], out XenStoreNode? next))
        {
            parent = next;
            depth++;
        }

        // Permissions are inherited, and a guest owns what it creates.
        ImmutableArray<XenStorePermission> permissions = caller == 0
            ? parent.Permissions
            : parent.Permissions.SetItem(0, parent.Permissions[0] with { Domid = caller });
        if (caller != 0 && CountNodes(caller) + (names.Length - depth) > NodesMax)
        {
            throw new XenStoreRefusal("ENOSPC");
        }

        XenStoreNode node = new(permissions) { Value = value, Generation = ++_generation };
        CheckSize(caller, node);
        for (int i = names.Length - 1; i > depth; i--)
        {
            node = WithChild(new(permissions) { Generation = _generation }, names[i], node);
            CheckSize(caller, node);
        }

        CheckSize(caller, WithChild(parent, names[depth], node));
        Account(permissions[0].Domid, names.Length - depth);
        Replace("/" + string.Join('/', names.AsSpan(0, depth + 1)), node);
    }

    private void RemoveSubtree(string path)
    {
        ImmutableArray<XenStorePermission> parent = ParentPermissions(path);
        FireRemoved(path, Find(path)!, parent, exact: false);
        _generation++;
        Replace(path, null);
    }

    private void FireRemoved(string path, XenStoreNode node, ImmutableArray<XenStorePermission> parent, bool exact)
    {
        foreach ((string name, XenStoreNode child) in node.Children)
        {
            FireRemoved(ChildOf(path, name), child, node.Permissions, exact: true);
        }

        Account(node.Owner, -1);
        Changes.Add(new(path, exact, node.Permissions, parent, Old: null));
    }

    private void RemoveOwned(string path, XenStoreNode node, ushort domid)
    {
        foreach ((string name, XenStoreNode child) in node.Children)
        {
            string childPath = ChildOf(path, name);
            if (child.Owner == domid)
            {
                RemoveSubtree(childPath);
            }
            else
            {
                RemoveOwned(childPath, child, domid);
            }
        }
    }

    private static XenStoreNode Forget(XenStoreNode node, ushort domid)
    {
        ImmutableSortedDictionary<string, XenStoreNode> children = node.Children;
        foreach ((string name, XenStoreNode child) in node.Children)
        {
            XenStoreNode forgotten = Forget(child, domid);
            if (!ReferenceEquals(forgotten, child))
            {
                children = children.SetItem(name, forgotten);
            }
        }

        bool named = node.Permissions.AsSpan()[1..].ToArray().Any(p => p.Domid == domid);
        return !named && ReferenceEquals(children, node.Children)
            ? node
            : node with { Children = children, Permissions = named ? node.Permissions.RemoveAll(p => p.Domid == domid) : node.Permissions };
    }

    private void Account(ushort owner, int nodes) => _nodes[owner] = _nodes.GetValueOrDefault(owner) + nodes;

    private void CheckSize(ushort caller, XenStoreNode node)
    {
        int size = EntryHeader + (EntryPermission * node.Permissions.Length) + node.Value.Length + (NamesCount ? node.ChildBytes : 0);
        if (caller != 0 && size >= EntrySizeMax)
        {
            throw new XenStoreRefusal("ENOSPC");
        }
    }

    private void Changed(string path) =>
        Changes.Add(new(path, Exact: false, Find(path)!.Permissions, ParentPermissions(path), Old: null));

    private ImmutableArray<XenStorePermission> ParentPermissions(string path) => Find(ParentOf(path))!.Permissions;

    private XenStoreNode WithChild(XenStoreNode parent, string name, XenStoreNode child) => parent with
    {
        Children = parent.Children.SetItem(name, child),
        ChildBytes = parent.ChildBytes + (parent.Children.ContainsKey(name) ? 0 : name.Length + 1),
        Generation = parent.Children.ContainsKey(name) ? parent.Generation : _generation,
    };

    /// <summary>Puts a node in its place, or removes the one there; the nodes above are copied.</summary>
    private void Replace(string path, XenStoreNode? node)
    {
        string[] names = Split(path);
        _root = names.Length == 0 ? node! : Replace(_root, names, node);
    }

    private XenStoreNode Replace(XenStoreNode parent, ReadOnlySpan<string> names, XenStoreNode? node)
    {
        if (names.Length > 1)
        {
            return WithChild(parent, names[0], Replace(parent.Children[names[0]], names[1..], node));
        }

        return node is not null ? WithChild(parent, names[0], node) : parent with
        {
            Children = parent.Children.Remove(names[0]),
            ChildBytes = parent.ChildBytes - (names[0].Length + 1),
            Generation = _generation,
        };
    }
}
