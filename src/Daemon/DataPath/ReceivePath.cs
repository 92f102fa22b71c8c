using System.Buffers.Binary;
using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Ring;

namespace XenLoop.DataPath;

/// <summary>From the ring to the TAP: what the peer wrote is checked, and written with write(2) straight from the ring, but for the headers.</summary>
internal sealed unsafe class ReceivePath
{
    private const ushort ETH_P_8021Q = 0x8100;
    private const ushort ETH_P_8021AD = 0x88a8;

    // What comes in smaller frames is no bulk, however much of it comes.
    private const uint BulkFrameBytes = 4096;

    private readonly RingConsumer _ring;
    private readonly DivertSlot _slot;
    private readonly PeerEvents _events;
    private readonly int _tap;
    private readonly string _tapName;
    private readonly ulong _ownMac;
    private readonly ulong _peerMac;
    private readonly bool _uso;
    private readonly SourceAddresses? _sources;

    private ulong _written;
    private DeliveryWatch _delivery; // from the TAP to the vif
    private ulong _progressAtEvent;
    private PeerRate _refused = new(4096, "frames a second that the kernel refuses");

    public ReceivePath(int tap, string tapName, RingConsumer ring, DivertSlot slot, PeerEvents events, MacAddress own, MacAddress peer, bool uso, SourceAddresses? sources)
    {
        (_tap, _tapName) = (tap, tapName);
        (_ring, _slot, _events) = (ring, slot, events);
        (_ownMac, _peerMac) = (own.Bits, peer.Bits);
        _uso = uso;
        _sources = sources;
        _delivery = new DeliveryWatch(_written, slot.Arrived);
    }

    /// <summary>Written by the data loop's thread in whole words; read with <see cref="Volatile"/>.</summary>
    public ulong Packets;
    public ulong Bytes;
    public ulong Errors;
    public ulong ForeignSources;
    public ulong Discarded;

    /// <summary>Records that the last pump took from the ring.</summary>
    public int BurstPackets { get; private set; }

    /// <summary>Their bytes.</summary>
    public uint BurstBytes { get; private set; }

    /// <summary>Of these, bytes of great frames that the kernel took over.</summary>
    public uint BulkBurstBytes { get; private set; }

    /// <summary>Whether an event that has come is an honest one: there is a record behind it, though it may have been found before the event came.</summary>
    public bool TakesEvent()
    {
        ulong progress = Packets + Errors + ForeignSources;
        if (!_ring.HasData() && progress == _progressAtEvent)
        {
            return false;
        }

        _progressAtEvent = progress;
        return true;
    }

    /// <summary>Asks the peer for an event at its next record. False: there is one, do not sleep.</summary>
    public bool Arm() => _ring.ArmData();

    /// <summary>Awake again.</summary>
    public void Disarm() => _ring.Disarm();

    /// <summary>Takes what is in the ring now, and not what a peer adds meanwhile.</summary>
    /// <param name="patience">For all of it, but one burst.</param>
    public void Drain(TimeSpan patience)
    {
        uint end = _ring.Produced();
        long start = Stopwatch.GetTimestamp();
        while (_ring.IsBefore(end) && Pump() && Stopwatch.GetElapsedTime(start) < patience)
        {
        }
    }

    /// <summary>Before a sleep: true while something that went into the TAP has not come out of it, so that the sleep must be bounded.</summary>
    /// <exception cref="DeliveryException">It will not come any more.</exception>
    public bool AwaitsDelivery()
    {
        CheckArrivals();
        return _delivery.IsMissing;
    }

    /// <summary>Moves a burst. True: something moved.</summary>
    // Nothing is read of the copy that was not written: it needs no zeros first, at each look.
    [SkipLocalsInit]
    public bool Pump()
    {
        iovec* vectors = stackalloc iovec[3];
        Span<byte> copy = stackalloc byte[OffloadHeader.MostBytes];
        int packets = 0;
        uint bytes = 0;
        uint bulk = 0;
        for (; packets < Frames.BurstPackets && bytes < Frames.BurstBytes && _ring.TryPeek(out RingSegments frame); packets++)
        {
            // Of each record: the mark may come while this thread is stopped in the middle of a burst.
            if (_ring.IsStale())
            {
                _ring.Advance();
                Discarded++;
                continue;
            }

            uint length = frame.Length;
            if (length < Frames.HeaderBytes)
            {
                throw new PeerViolationException($"frame of {length} bytes");
            }

            // The headers are copied out, checked, and written from the copy: the peer can change the ring meanwhile.
            Span<byte> header = copy[..(int)Math.Min(length, OffloadHeader.MostBytes)];
            frame.CopyTo(header);
            CheckAddresses(header);

            // Dom0's filter would have dropped it, and the peer need not be hostile for that: a guest may forward for others.
            if (_sources is not null && !_sources.Permit(header[Frames.VnetHeaderBytes..]))
            {
                ForeignSources++;
                _ring.Advance();
                bytes += length;
                continue;
            }

            fixed (byte* first = header)
            {
                vectors[0].iov_base = first;
                vectors[0].iov_len = (uint)header.Length;
                int count = header.Length == length ? 1 : 1 + Frames.Vectors(frame.Skip((uint)header.Length), vectors + 1);
                if (!OffloadHeader.TryRebuild(header, (int)length - Frames.VnetHeaderBytes, _uso) || !TryWrite(vectors, count))
                {
                    // The local stack's refusal (no memory) loses this frame only, and so does a header that does not fit it.
                    Errors++;
                    _refused.Count();
                }
                else
                {
                    _written++;
                    Packets++;
                    Bytes += length - Frames.VnetHeaderBytes;
                    bulk += length >= BulkFrameBytes ? length : 0;
                }
            }

            _ring.Advance();
            bytes += length;
        }

        if (!_delivery.IsEven(_written, _slot.Arrived))
        {
            CheckArrivals();
        }

        BurstPackets = packets;
        BurstBytes = bytes;
        BulkBurstBytes = bulk;
        _events.Owe(_ring.Publish(), bytes);
        return packets > 0;
    }

    private void CheckAddresses(ReadOnlySpan<byte> header)
    {
        if (Frames.Source(header) != _peerMac || Frames.Destination(header) != _ownMac)
        {
            throw new PeerViolationException("frame with a foreign source or destination MAC address");
        }

        // The sender's divert leaves them to the bridge, which knows who may be on which VLAN.
        if (BinaryPrimitives.ReadUInt16BigEndian(header[Frames.EtherTypeOffset..]) is ETH_P_8021Q or ETH_P_8021AD)
        {
            throw new PeerViolationException("frame with a VLAN tag");
        }
    }

    private bool TryWrite(iovec* vectors, int count)
    {
        if (VectorIo.writev(_tap, vectors, count) >= 0)
        {
            return true;
        }

        int error = Marshal.GetLastSystemError();
        return error is Errno.EIO or Errno.EBADFD or Errno.ENODEV
            ? throw new NativeException("writev", _tapName, error, "Somebody has set the TAP down, or removed it")
            : false;
    }

    /// <summary>A write runs the receive path of the TAP before it returns, unless packets are spread over CPUs (RPS): then they arrive a little later.</summary>
    private void CheckArrivals()
    {
        if (_delivery.HasLost(_written, _slot.Arrived))
        {
            throw new DeliveryException(
                $"frames written to the TAP {_tapName} do not arrive at the vif: somebody has removed its filter at ingress, or put a filter or a program before it");
        }
    }
}
