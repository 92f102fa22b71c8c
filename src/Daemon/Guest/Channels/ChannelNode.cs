using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;

namespace XenLoop.Guest.Channels;

/// <summary>A channel's two nodes in XenStore: this side's, which the peer can read, and the peer's.</summary>
internal sealed class ChannelNode
{
    private readonly XenStore _xenStore;
    private readonly WatchSet _watches;
    private readonly ushort _self;
    private readonly ushort _peer;
    private readonly string _own;
    private readonly string _peers;
    private bool _revealed;

    /// <param name="xenStore">This guest's.</param>
    /// <param name="watches">Of the same connection.</param>
    /// <param name="self">This guest's domid.</param>
    /// <param name="key">Of the channel.</param>
    /// <param name="changed">Called when the peer has said something.</param>
    public ChannelNode(XenStore xenStore, WatchSet watches, ushort self, ChannelKey key, Action changed)
    {
        (_xenStore, _watches, _self, _peer) = (xenStore, watches, self, key.Peer);
        _own = StorePaths.OwnChannel(key);
        _peers = StorePaths.PeersChannel(key, self);
        watches.Add(_peers, _ => changed());
    }

    /// <summary>What the peer says; null for nothing, or nothing sensible.</summary>
    public ChannelMessage? Read() => ChannelMessage.Parse(_xenStore.ReadIfVisible(_peers));

    /// <exception cref="Interop.NativeException">XenStore takes no more of this guest, say.</exception>
    public void Say(in ChannelMessage message)
    {
        if (!_revealed)
        {
            // Before it says anything: who is told by Dom0 that there is a call must be able to read it.
            _xenStore.MakeDirectory(_own);
            _xenStore.SetPermissions(_own, (_self, XenStoreAccess.None), (_peer, XenStoreAccess.Read));
            _revealed = true;
        }

        _xenStore.Write(_own, message.ToString());
    }

    /// <summary>Takes the own node and the watch on the peer's away.</summary>
    public void Remove()
    {
        _watches.Remove(_peers);
        _xenStore.Remove(_own);
    }
}
