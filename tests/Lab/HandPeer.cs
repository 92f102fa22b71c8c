using System.Buffers.Binary;
using XenLoop.Hypervisor;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using XenLoop.Protocol;
using XenLoop.Ring;

namespace XenLoop.Tests.Lab;

/// <summary>
/// A peer that speaks the protocol by hand, and as badly as a test wants. It is a guest's second half: the guest's own
/// kernel answers what arrives at its vif, nobody but the test looks into the ring.
/// </summary>
internal sealed class HandPeer : IDisposable
{
    private const string OfferText = "1 0";
    private const uint RingBytesOffered = ControlPage.MinRingBytes;
    private const int MostAbandoned = 60;

    private readonly DaemonLab _lab;
    private readonly LabGuest _self;
    private readonly LabGuest _other;
    private readonly LabHypervisor _hypervisor;
    private readonly XenStore _store;
    private EventChannel? _events;
    private SharedMemory? _control;
    private SharedMemory? _rings;
    private RingProducer? _producer;
    private RingConsumer? _consumer;
    private readonly List<IDisposable> _abandoned = [];
    private ulong _calls;

    private HandPeer(DaemonLab lab, LabGuest self, LabGuest other)
    {
        (_lab, _self, _other) = (lab, self, other);
        _hypervisor = new LabHypervisor(self.BrokerSocket);
        _store = XenStoreFixture.Open(self.StoreSocket);
    }

    /// <summary>Offers a guest, and waits until Dom0's daemon has introduced it and the other guest's daemon is ready for it.</summary>
    public static async Task<HandPeer> StartAsync(DaemonLab lab, LabGuest self, LabGuest other)
    {
        HandPeer peer = new(lab, self, other);
        try
        {
            // What a test that failed has left.
            await peer.LeaveAsync();
            peer.Offer(OfferText);
            await lab.UntilAsync("the hand-written peer is introduced", () => DaemonLab.State(other, self) != "none");
            return peer;
        }
        catch
        {
            peer.Dispose();
            throw;
        }
    }

    /// <summary>Changes the control page before the peer sees it.</summary>
    internal unsafe delegate void Spoil(ControlPage* page);

    public ulong Session { get; private set; }

    public uint RingBytes { get; private set; }

    public uint GrantReference => _control!.References[0];

    public uint Port => _events!.Port;

    private bool IsListener => _self.Domid < _other.Domid;

    /// <summary>What the other guest says of its side.</summary>
    public ChannelMessage? OtherSays => _lab.Said(_other, _self);

    /// <summary>The other guest has closed its side, and may have forgotten it already.</summary>
    public bool OtherClosed => OtherSays is null or { Phase: ChannelPhase.Closed };

    public unsafe ControlPage* Page => (ControlPage*)_control!.Address;

    /// <summary>The line of this side's producer.</summary>
    public unsafe RingLine* Produced => IsListener ? &Page->Producer0 : &Page->Producer1;

    /// <summary>The line of this side's consumer.</summary>
    public unsafe RingLine* Consumed => IsListener ? &Page->Consumer1 : &Page->Consumer0;

    /// <summary>The line of the other side's producer.</summary>
    public unsafe RingLine* OtherProduced => IsListener ? &Page->Producer1 : &Page->Producer0;

    /// <summary>The ring to the other side.</summary>
    public unsafe byte* Data => _rings!.Address + (IsListener ? 0 : RingBytes);

    public void Offer(string text = OfferText) => _store.Write("data/xenloop/offer", text);

    public void WriteNode(string path, string value) => _store.Write(path, value);

    public void RemoveNode(string path) => _store.Remove(path);

    public void Say(ChannelPhase phase) => Say(new ChannelMessage(phase, Session, new Offer(1, Features.None), GrantReference, Port).ToString());

    /// <summary>Writes the channel's node, whatever it be.</summary>
    public void Say(string text)
    {
        string node = $"data/xenloop/0-{_other.Domid}-0";
        _store.MakeDirectory(node);
        _store.SetPermissions(node, (_self.Domid, XenStoreAccess.None), (_other.Domid, XenStoreAccess.Read));
        _store.Write(node, text);
    }

    public void Notify() => _events!.Notify();

    /// <summary>As listener: grants what a channel needs, of a new session, and does not yet speak of it.</summary>
    public unsafe void Grant(Spoil? spoil = null)
    {
        Release();
        Session++;
        RingBytes = RingBytesOffered;
        _events = _hypervisor.AllocateUnbound(_other.Domid);
        _control = _hypervisor.Share(_other.Domid, 1);
        _rings = _hypervisor.Share(_other.Domid, (int)(2 * RingBytes / ControlPage.PageSize));
        Page->Magic = ControlPage.MagicValue;
        Page->Version = ControlPage.CurrentVersion;
        Page->RingBytes = RingBytes;
        Page->Session = Session;
        Page->ListenerAlive = Page->ConnectorAlive = 1;
        for (int i = 0; i < _rings.References.Length; i++)
        {
            Page->RingReferences[i] = _rings.References[i];
        }

        OpenRings();
        spoil?.Invoke(Page);
    }

    /// <summary>As listener: builds a channel by the book.</summary>
    public async Task ListenAsync()
    {
        Grant();
        Say(ChannelPhase.Listening);
        await _lab.UntilAsync("the connector is there", () => OtherSays is { Phase: ChannelPhase.Connected } other && other.Session == Session);
        Say(ChannelPhase.Connected);
        await _lab.UntilAsync("the connector diverts", () => DaemonLab.State(_other, _self) == "running");
    }

    /// <summary>As connector: calls, unless the other listens already, and waits for a session not connected to yet.</summary>
    public async Task ListenerAsync()
    {
        if (!Listens())
        {
            Say(new ChannelMessage(ChannelPhase.Calling, ++_calls).ToString());
            await _lab.UntilAsync("the listener makes a new attempt", Listens);
        }

        bool Listens() => OtherSays is { Phase: ChannelPhase.Listening } other && other.Session != Session;
    }

    /// <summary>As connector: builds a channel by the book.</summary>
    public async Task ConnectAsync()
    {
        await ListenerAsync();
        Map(OtherSays!.Value);
        Say(ChannelPhase.Connected);
        await _lab.UntilAsync("the listener diverts", () => OtherSays is { Phase: ChannelPhase.Connected } other && other.Session == Session);
    }

    /// <summary>One step towards a channel, where there is none; waits for little.</summary>
    /// <param name="spoil">As listener: see <see cref="Grant"/>.</param>
    /// <returns>Whether there is one, as far as this side knows.</returns>
    public bool TryConnect(Spoil? spoil = null)
    {
        if (_control is not null && OtherSays is { Phase: ChannelPhase.Connected or ChannelPhase.Listening } other && other.Session == Session)
        {
            return true;
        }

        if (IsListener)
        {
            Grant(spoil);
            Say(ChannelPhase.Listening);
            for (int i = 0; i < 30 && !Connected(); i++)
            {
                Thread.Sleep(10);
            }

            if (!Connected())
            {
                return false;
            }
        }
        else if (OtherSays is { Phase: ChannelPhase.Listening } listener && listener.Session != Session)
        {
            Map(listener);
        }
        else
        {
            Say(new ChannelMessage(ChannelPhase.Calling, ++_calls).ToString());
            return false;
        }

        Say(ChannelPhase.Connected);
        return true;

        bool Connected() => OtherSays is { Phase: ChannelPhase.Connected } other && other.Session == Session;
    }

    /// <summary>Puts records into the ring, and shows them; no event.</summary>
    public unsafe void Put(params byte[][] frames)
    {
        foreach (byte[] frame in frames)
        {
            if (!_producer!.TryReserve(out RingSegments room))
            {
                throw new InvalidOperationException("The ring is full.");
            }

            Write(frame, room);
        }

        _producer!.Publish();
    }

    /// <summary>Puts the same record into the ring until it is full, and shows all; no event.</summary>
    /// <returns>How often.</returns>
    public int Fill(byte[] frame)
    {
        int count = 0;
        for (; _producer!.TryReserve(out RingSegments room); count++)
        {
            Write(frame, room);
        }

        _producer.Publish();
        return count;
    }

    /// <summary>Takes everything out of the ring.</summary>
    /// <returns>Number of records.</returns>
    public int Take()
    {
        int count = 0;
        for (; _consumer!.TryPeek(out _); count++)
        {
            _consumer.Advance();
        }

        if (_consumer.Publish())
        {
            Notify();
        }

        return count;
    }

    /// <summary>A UDP datagram to a port where nobody listens, in its frame, behind a virtio_net_hdr.</summary>
    public byte[] Datagram()
    {
        byte[] frame = new byte[10 + 14 + 20 + 8 + 8];
        Span<byte> ethernet = frame.AsSpan(10), ip = ethernet[14..], udp = ip[20..];
        _other.Mac.GetAddressBytes().CopyTo(ethernet);
        _self.Mac.GetAddressBytes().CopyTo(ethernet[6..]);
        BinaryPrimitives.WriteUInt16BigEndian(ethernet[12..], 0x0800);
        ip[0] = 0x45;
        BinaryPrimitives.WriteUInt16BigEndian(ip[2..], 20 + 8 + 8);
        ip[8] = 64;
        ip[9] = 17;
        _self.IPv4.GetAddressBytes().CopyTo(ip[12..]);
        _other.IPv4.GetAddressBytes().CopyTo(ip[16..]);
        uint sum = 0;
        for (int i = 0; i < 20; i += 2)
        {
            sum += BinaryPrimitives.ReadUInt16BigEndian(ip[i..]);
        }

        BinaryPrimitives.WriteUInt16BigEndian(ip[10..], (ushort)~((sum & 0xffff) + (sum >> 16)));
        BinaryPrimitives.WriteUInt16BigEndian(udp, 9);
        BinaryPrimitives.WriteUInt16BigEndian(udp[2..], 9);
        // Without a checksum, which UDP over IPv4 may.
        BinaryPrimitives.WriteUInt16BigEndian(udp[4..], 8 + 8);
        return frame;
    }

    /// <summary>Comes back as another daemon would, while the one before is stopped: what that has mapped stays mapped.</summary>
    /// <param name="saysClosed">Before that it says that it has unmapped everything.</param>
    public async Task AbandonAsync(bool saysClosed = false)
    {
        if (saysClosed)
        {
            Say(ChannelPhase.Closed);
            await _lab.UntilAsync("the other side has closed", () => OtherClosed);
        }

        Abandon();
        await _lab.UntilAsync("the hand-written peer is withdrawn", () => DaemonLab.State(_other, _self) == "none");
        Offer(OfferText);
        await _lab.UntilAsync("the hand-written peer is introduced", () => DaemonLab.State(_other, _self) != "none");
    }

    /// <summary>As a daemon that is stopped, and its node is removed. What it had mapped stays mapped, of the last few times.</summary>
    public void Abandon()
    {
        _store.Remove("data/xenloop");
        _abandoned.AddRange(new IDisposable?[] { _rings, _control, _events }.OfType<IDisposable>());
        (_rings, _control, _events) = (null, null, null);
        while (_abandoned.Count > MostAbandoned)
        {
            _abandoned[0].Dispose();
            _abandoned.RemoveAt(0);
        }
    }

    /// <summary>Unmaps what it has, or ends the access to what it granted.</summary>
    public void LetGo() => Release();

    /// <summary>Leaves as a guest that is shut down in good order, and waits until the other side has forgotten it.</summary>
    public async Task LeaveAsync()
    {
        _store.Remove("data/xenloop");
        ReleaseAll();
        await _lab.UntilAsync("the hand-written peer is withdrawn", () => DaemonLab.State(_other, _self) == "none");
    }

    public void Dispose()
    {
        _store.Remove("data/xenloop");
        ReleaseAll();
        _store.Dispose();
        _hypervisor.Dispose();
    }

    private unsafe void Map(ChannelMessage listener)
    {
        Release();
        Session = listener.Session;
        _events = _hypervisor.BindInterdomain(_other.Domid, listener.Port);
        // As a kernel tells of an honest peer: when the page is unmapped.
        _control = _hypervisor.Map(_other.Domid, [listener.GrantReference], new DeathNotice(ControlPage.ConnectorAliveOffset, _events));
        RingBytes = Page->RingBytes;
        _rings = _hypervisor.Map(_other.Domid, new ReadOnlySpan<uint>(Page->RingReferences, (int)(2 * RingBytes / ControlPage.PageSize)));
        OpenRings();
    }

    private unsafe void OpenRings()
    {
        byte* ring0 = _rings!.Address, ring1 = ring0 + RingBytes;
        (_producer, _consumer) = IsListener
            ? (new RingProducer(ring0, RingBytes, &Page->Producer0, &Page->Consumer0), new RingConsumer(ring1, RingBytes, &Page->Consumer1, &Page->Producer1))
            : (new RingProducer(ring1, RingBytes, &Page->Producer1, &Page->Consumer1), new RingConsumer(ring0, RingBytes, &Page->Consumer0, &Page->Producer0));
    }

    private unsafe void Write(byte[] frame, in RingSegments room)
    {
        int first = (int)Math.Min((uint)frame.Length, room.FirstLength);
        frame.AsSpan(0, first).CopyTo(new Span<byte>(room.First, first));
        frame.AsSpan(first).CopyTo(new Span<byte>(room.Second, (int)room.SecondLength));
        _producer!.Commit((uint)frame.Length);
    }

    private void ReleaseAll()
    {
        Release();
        _abandoned.ForEach(a => a.Dispose());
        _abandoned.Clear();
    }

    private void Release()
    {
        _rings?.Dispose();
        _control?.Dispose();
        _events?.Dispose();
        (_rings, _control, _events) = (null, null, null);
    }
}
