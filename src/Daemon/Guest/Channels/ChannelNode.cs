using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;

namespace XenLoop.Guest.Channels;

/// <summary>A channel's two nodes in XenStore: this side's, which the peer can read, and the peer's.</summary>
internal sealed class ChannelNode
{
    // A channel that comes and goes takes some ten.
    private const int MostEventsPerSecond = 50;
    private static readonly TimeSpan _muteTime = TimeSpan.FromMilliseconds(500);

    private readonly XenStore _xenStore;
    private readonly WatchSet _watches;
    private readonly ushort _self;
    private readonly ushort _peer;
    private readonly string _own;
    private readonly string _peers;
    private readonly Action _changed;
    private bool _revealed;
    private int _events;
    private TimeSpan _since;

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
        _changed = changed;
        watches.Add(_peers, Heard);
    }

    /// <summary>When to listen to the peer again; never while it is listened to.</summary>
    public Deadline Due { get; private set; } = Deadline.Never;

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

    /// <summary>To be called at each turn: a peer that writes its node more often than any channel needs is not heard for a while, and then what it says last.</summary>
    public void Bound(TimeSpan now)
    {
        if (Due.IsDue(now))
        {
            Due = Deadline.Never;
            (_events, _since) = (0, now);
            _watches.Add(_peers, Heard);
        }
        else if (now - _since > TimeSpan.FromSeconds(1))
        {
            (_events, _since) = (0, now);
        }
        else if (_events > MostEventsPerSecond && Due.IsNever)
        {
            _watches.Remove(_peers);
            Due = Deadline.At(now + _muteTime);
        }
    }

    /// <summary>Takes the own node and the watch on the peer's away.</summary>
    public void Remove()
    {
        _watches.Remove(_peers);
        _xenStore.Remove(_own);
    }

    private void Heard(string path)
    {
        _events++;
        _changed();
    }
}
