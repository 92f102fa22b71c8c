using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;

namespace XenLoop.Guest;

/// <summary>A peer came (no value before), went (none after), or is told of in other words.</summary>
internal delegate void PeerChange(ChannelKey key, Introduction? before, Introduction? after);

/// <summary>What Dom0 tells this guest, as far as it has been read: which vifs take part, whom it may meet, and whether it is to quiesce.</summary>
/// <param name="store">XenStore, as this guest sees it.</param>
internal sealed class Introductions(IStoreReader store)
{
    private readonly Dictionary<int, MacAddress> _vifs = [];
    private readonly Dictionary<ChannelKey, Introduction> _peers = [];
    private readonly HashSet<string> _unread = [];

    /// <summary>The vifs that take part, with the MAC addresses that the toolstack gave them.</summary>
    public IReadOnlyDictionary<int, MacAddress> Vifs => _vifs;

    public IReadOnlyDictionary<ChannelKey, Introduction> Peers => _peers;

    /// <summary>As it stands, to be answered in the same words; null while the guest may have channels.</summary>
    public string? QuiesceRequest { get; private set; }

    /// <summary>A node has changed: it is read by the next <see cref="Read"/>.</summary>
    public void Note(string path) => _unread.Add(path);

    /// <summary>Reads what has changed.</summary>
    /// <param name="changed">Called for each peer that is another than before, when <see cref="Peers"/> says so already; those that went come first.</param>
    /// <returns>False when nothing was noted.</returns>
    public bool Read(PeerChange changed)
    {
        if (_unread.Count == 0)
        {
            return false;
        }

        string[] paths = [.. _unread];
        _unread.Clear();
        if (Array.TrueForAll(paths, IsAlone))
        {
            foreach (string path in paths)
            {
                ReadAlone(path, changed);
            }
        }
        else
        {
            ReadAll(changed);
        }

        return true;
    }

    /// <summary>Counts as told by nobody from here on.</summary>
    public void Clear()
    {
        _unread.Clear();
        _vifs.Clear();
        _peers.Clear();
    }

    /// <summary>One node that can be read without the others: the request to quiesce, or a peer of a vif that is known.</summary>
    private bool IsAlone(string path) => path.Split('/') switch
    {
        [_, StorePaths.QuiesceRequestName] => true,
        [_, string vif, _] => ChannelKey.ParseVif(vif) is { } number && _vifs.ContainsKey(number),
        _ => false,
    };

    private void ReadAlone(string path, PeerChange changed)
    {
        if (path.Split('/') is [_, string vif, string peer])
        {
            if (ChannelKey.Parse(ChannelKey.ParseVif(vif)!.Value, peer) is { } key)
            {
                Set(key, ReadPeer(key), changed);
            }
        }
        else
        {
            QuiesceRequest = store.Read(StorePaths.OwnQuiesceRequest);
        }
    }

    private void ReadAll(PeerChange changed)
    {
        QuiesceRequest = store.Read(StorePaths.OwnQuiesceRequest);
        Dictionary<ChannelKey, Introduction> peers = [];
        _vifs.Clear();
        foreach (string name in store.List(StorePaths.OwnIntroductions))
        {
            if (ChannelKey.ParseVif(name) is { } vif && MacAddress.TryParse(store.Read(StorePaths.OwnIntroductionsOf(vif)) ?? "", out MacAddress mac))
            {
                _vifs[vif] = mac;
                foreach (string peer in store.List(StorePaths.OwnIntroductionsOf(vif)))
                {
                    if (ChannelKey.Parse(vif, peer) is { } key && ReadPeer(key) is { } introduction)
                    {
                        peers[key] = introduction;
                    }
                }
            }
        }

        foreach (ChannelKey gone in _peers.Keys.Where(k => !peers.ContainsKey(k)).ToArray())
        {
            Set(gone, null, changed);
        }

        foreach ((ChannelKey key, Introduction introduction) in peers)
        {
            Set(key, introduction, changed);
        }
    }

    private Introduction? ReadPeer(ChannelKey key) => Introduction.Parse(store.Read(StorePaths.OwnIntroduction(key)));

    private void Set(ChannelKey key, Introduction? after, PeerChange changed)
    {
        Introduction? before = _peers.TryGetValue(key, out Introduction known) ? known : null;
        if (after == before)
        {
            return;
        }

        if (after is { } peer)
        {
            _peers[key] = peer;
        }
        else
        {
            _peers.Remove(key);
        }

        changed(key, before, after);
    }
}
