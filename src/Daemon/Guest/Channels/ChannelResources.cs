using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Interop.Linux;
using XenLoop.Protocol;
using XenLoop.Ring;

namespace XenLoop.Guest.Channels;

/// <summary>All that one channel holds: memory and event channel, slot, TAP, and its path in the data loop. Taken and given back here alone.</summary>
internal sealed class ChannelResources(ChannelContext context, ChannelKey key, VifPort port, MacAddress peerMac, string? peerSources)
{
    private ChannelMemory? _memory;
    private ChannelTap? _tap;
    private ChannelPath? _path;
    private bool _settled;

    /// <summary>Bytes of each ring; 0 while there are none.</summary>
    public uint RingBytes => _memory?.RingBytes ?? 0;

    /// <summary>Empty without one.</summary>
    public string TapName => _tap?.Device.Name ?? "";

    /// <summary>Index of the TAP; 0 without one.</summary>
    public int TapIndex => _tap?.Device.Index ?? 0;

    private DivertSlot Slot => port.Divert.Slot(_tap!.Slot);

    /// <summary>What the data thread has told of the path; null without one.</summary>
    public PathSnapshot? Snapshot => _path?.Snapshot();

    /// <summary>Why the data loop gave the path up, or what somebody has done to the TAP; null while all is well, and without a path.</summary>
    public ChannelFault? Fault => ChannelFault.From(_path?.Fault) ?? _tap?.Fault;

    /// <summary>Packets that passed, in both directions.</summary>
    public ulong Moved => Snapshot is { Counters: { } counters } ? counters.SentPackets + counters.ReceivedPackets : 0;

    /// <summary>Listener: grants the memory.</summary>
    /// <returns>What the connector has to know.</returns>
    public (uint GrantReference, uint Port) Listen(ulong session, TimeSpan now)
    {
        _memory = ChannelMemory.Listen(context.Hypervisor, context.Kept, key.Peer, session, context.RingBytes, now);
        return (_memory.GrantReference, _memory.Events.Port);
    }

    /// <summary>Connector: maps what the listener granted.</summary>
    public void Connect(in ChannelMessage listener) =>
        _memory = ChannelMemory.Connect(context.Hypervisor, key.Peer, listener.Session, listener.GrantReference, listener.Port);

    /// <summary>Receives from here on.</summary>
    /// <param name="peer">Its features: what this TAP hands over goes to the peer's TAP as it is, so only what both can take.</param>
    public unsafe void Open(Offer peer)
    {
        bool uso = (context.Offer.Features & peer.Features & Features.Uso) != 0;
        _tap = port.OpenTap(key.TapName, uso, peerMac, context.Taps);
        _path = new ChannelPath(_tap.Device, _memory!.Events, _memory.CreateProducer(), _memory.CreateConsumer(), _memory.PeerAlive,
            Slot, port.Mac, peerMac, uso, Sources());
        context.Loop.Add(_path);
    }

    public void StartDiverting()
    {
        port.Divert.Connect(peerMac, _tap!.Device.Index, _tap.Slot);
        Slot.Open();
        _settled = false;
    }

    /// <summary>The data thread looks whether there is anything in the TAP, and what has become of what should be.</summary>
    public void LookAgain()
    {
        if (_path is { Fault: null } path)
        {
            context.Loop.Invoke(path.TapReadable);
        }
    }

    /// <summary>The first half of <see cref="StopDiverting"/>, for who stops several channels: <see cref="VifDivert.WaitForPackets"/> comes
    /// after the last of them, and once.</summary>
    public void BeginToStop()
    {
        Block();
        _settled = true;
    }

    /// <summary>Ends when the last packet that was diverted is in the TAP.</summary>
    public void StopDiverting()
    {
        if (!_settled)
        {
            Block();
            // What another CPU was about to divert is in the TAP afterwards, and is drained with the rest.
            VifDivert.WaitForPackets();
        }
    }

    /// <summary>Empties the TAP into the ring, on the data thread.</summary>
    /// <returns>False when there is no room yet.</returns>
    public bool DrainTap()
    {
        ChannelPath path = _path!;
        bool drained = false;
        context.Loop.Invoke(() =>
        {
            try
            {
                drained = path.DrainTap();
            }
            catch (Exception e) when (ChannelFault.From(e) is not null)
            {
                path.GiveUp(e);
            }
        });
        return drained;
    }

    /// <summary>Gives everything back, whatever there is; the peer may be dead.</summary>
    /// <param name="patience">For what the peer has left in its ring.</param>
    /// <param name="isLetGo">See <see cref="KeptMemory.Return"/>.</param>
    /// <param name="now">See <see cref="Loop.Deadline"/>.</param>
    public void Release(TimeSpan patience, bool isLetGo, TimeSpan now)
    {
        if (_path is { } path)
        {
            Block();
            context.Loop.Remove(path);
            // The data thread may have found meanwhile that the peer moves again.
            Slot.Block();
            if (path.Fault is null or PeerGoneException)
            {
                // The thread that pumped has let go of it: what the peer left is taken here, and nothing is lost.
                TryDrain(path, patience);
            }

            _path = null;
        }

        if (_tap is not null)
        {
            port.CloseTap(_tap, context.Taps);
            _tap = null;
        }

        if (_memory is not null)
        {
            context.CheckNotResumed();
            _memory.Release(context.Kept, key.Peer, isLetGo, now);
            _memory = null;
        }
    }

    /// <summary>What is malformed is no introduction, and does not come here.</summary>
    private SourceAddresses? Sources()
    {
        if (peerSources is null)
        {
            return null;
        }

        AddressNetwork[] networks = [.. AddressList.Parse(peerSources) ?? []];
        return new SourceAddresses(Array.ConvertAll(networks, n => n.Address), Array.ConvertAll(networks, n => n.Bits), peerSources.Split(',').Contains(AddressList.Other));
    }

    private void Block()
    {
        Slot.Block();
        port.Divert.Disconnect(peerMac);
    }

    private static void TryDrain(ChannelPath path, TimeSpan patience)
    {
        try
        {
            path.DrainRing(patience);
        }
        catch (Exception e) when (ChannelFault.From(e) is not null)
        {
            // The channel is closing anyway.
        }
    }
}
