using System.Buffers.Binary;
using System.Net;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop.Linux;
using XenLoop.Ring;
using XenLoop.Tests.Unit;
using static XenLoop.Tests.Fuzz.Target;

namespace XenLoop.Tests.Fuzz;

/// <summary>
/// A peer that writes anything into the ring, its lines and all of the control page, between any steps of this side: the receiving path, with a file in the
/// place of the TAP, and the producer. Allowed are the end of the channel (<see cref="PeerViolationException"/>) and rubbish in frames. Nothing
/// outside the ring is touched (guard pages), no more is taken than was published, and what reaches the TAP is from the peer's address
/// to ours, from a source that it may use, with a header that fits the frame.
/// </summary>
internal sealed unsafe class RingTarget
{
    private const uint RingBytes = ControlPage.MinRingBytes;
    private const int MostWritten = Frames.BurstPackets * (int)RingRecord.MaxPayload;
    private const string Own = "\u0000\u0016\u003e\u0000\u0000\u0001", Peer = "\u0000\u0016\u003e\u0000\u0000\u0002";

    public static string[] Tokens { get; } =
    [
        Own + Peer, Own + Peer + "\u0008\u0000\u0045\u0000", Own + Peer + "\u0086\u00dd\u0060", Own + Peer + "\u0008\u0006", "\u0081\u0000",
        "\u0001\u0000", "\u0001\u0001", "\u0001\u0004", "\u0001\u0005", "\u0001\u0081", "\u000a\u0000\u0000\u0005", "\u00fd\u0000\u0000\u0000\u0000\u0000\u0000\u0000",
        "\u0040\u0000\u0040\u0006", "\u0040\u0000\u0040\u0011", "\u003a", "\u0088", "\u0006", "\u0007", "\u0008",
    ];

    private static readonly RingMemory _memory = new();
    private static readonly MacAddress _own = MacAddress.Parse("00:16:3e:00:00:01");
    private static readonly MacAddress _peer = MacAddress.Parse("00:16:3e:00:00:02");
    private static readonly SourceAddresses _sources = new([IPAddress.Parse("10.0.0.5"), IPAddress.Parse("fd00::")], [32, 64], other: false);

    private readonly byte* _slot = (byte*)NativeMemory.AllocZeroed(DivertSlot.Size);
    private readonly int _tap;
    private readonly byte* _written;
    private readonly List<(uint Index, int Length)> _dirty = [];

    // The peer's next record, and the furthest that it can have published, of what this side has seen.
    private uint _at;
    private uint _reach;

    public RingTarget()
    {
        fixed (byte* name = "tap"u8)
        {
            _tap = LibC.memfd_create(name, 0);
        }

        Require(LibC.ftruncate(_tap, MostWritten) == 0, "no memory for frames");
        _written = (byte*)LibC.mmap(null, MostWritten, LibC.PROT_READ, LibC.MAP_SHARED, _tap, 0);
    }

    public void Run(ReadOnlySpan<byte> input)
    {
        Script script = new(input);
        byte options = script.Next<byte>();
        _at = _reach = script.Next<uint>() & ~7u;
        *_memory.Control = default;
        (_, RingConsumer consumer) = _memory.OpenAt(_at);
        SourceAddresses? sources = (options & 2) != 0 ? _sources : null;
        ReceivePath path = new(_tap, "tap", consumer, new DivertSlot(_slot), new PeerEvents(new NoEvents()), _own, _peer, uso: (options & 1) != 0, sources);
        RingProducer producer = new(_memory.Data, RingBytes, &_memory.Control->Producer1, &_memory.Control->Consumer1);
        try
        {
            while (!script.IsEmpty)
            {
                Step(ref script, path, consumer, producer, sources is not null);
            }
        }
        catch (PeerViolationException)
        {
            // The channel is closed.
        }
        finally
        {
            CheckTaken(consumer);
            *(ulong*)(_slot + DivertSlot.ArrivedOffset) = 0;
            _dirty.ForEach(d => Put(d.Index, new byte[d.Length], remember: false));
            _dirty.Clear();
        }
    }

    private void Step(ref Script script, ReceivePath path, RingConsumer consumer, RingProducer producer, bool hasSources)
    {
        int step = script.Next<byte>() % 10;
        if (step >= 6 && _memory.ProducerLine->Index - _reach <= RingBytes)
        {
            _reach = _memory.ProducerLine->Index;
        }

        switch (step)
        {
            case 0:
                ReadOnlySpan<byte> payload = script.Take(script.Next<byte>());
                Put(_at + RingRecord.HeaderBytes, payload);
                Publish((uint)payload.Length);
                break;
            case 1:
                _memory.ProducerLine->Index = _at + (uint)script.Next<short>();
                break;
            case 2:
                _memory.ProducerLine->Stale = _at + (uint)script.Next<short>();
                break;
            case 3:
                *(uint*)((byte*)_memory.Control + (script.Next<ushort>() & 0xffc)) = script.Next<uint>();
                break;
            case 4:
                Put(_at + (uint)(8 * script.Next<sbyte>()), BitConverter.GetBytes(script.Next<uint>()));
                break;
            case 5:
                Publish(script.Next<uint>());
                break;
            case 6:
                if (consumer.TryPeek(out RingSegments record))
                {
                    _memory.CheckInside(record);
                    Require(record.Length is > 0 and <= RingRecord.MaxPayload, $"a record of {record.Length} bytes");
                    Read(record.First, record.FirstLength);
                    Read(record.Second, record.SecondLength);
                }

                break;
            case 7:
                Pump(path, hasSources);
                break;
            case 8:
                uint produced = consumer.Produced();
                Require(produced - RingMemory.Index(consumer) <= RingBytes - consumer.Unpublished, $"{produced} is believed");
                _ = path.TakesEvent();
                _ = path.Arm();
                path.Disarm();
                path.Drain(TimeSpan.MaxValue);
                break;
            default:
                Send(ref script, producer);
                break;
        }

        CheckTaken(consumer);
    }

    private void CheckTaken(RingConsumer consumer) =>
        Require(consumer.Unpublished <= RingBytes && (int)(_reach - RingMemory.Index(consumer)) >= 0, "more taken than published");

    /// <summary>The peer's next record: its length, whatever it has.</summary>
    private void Publish(uint length)
    {
        Put(_at, BitConverter.GetBytes((ulong)length));
        _at += RingRecord.BytesFor(length);
        _memory.ProducerLine->Index = _at;
    }

    private void Pump(ReceivePath path, bool hasSources)
    {
        (ulong packets, ulong bytes) = (path.Packets, path.Bytes);
        _ = LibC.lseek(_tap, 0, LibC.SEEK_SET);
        try
        {
            _ = path.Pump();
        }
        finally
        {
            *(ulong*)(_slot + DivertSlot.ArrivedOffset) = path.Packets;
            (packets, bytes) = (path.Packets - packets, path.Bytes - bytes);
            long written = (long)LibC.lseek(_tap, 0, LibC.SEEK_CUR);
            Require(written == (long)(bytes + (packets * Frames.VnetHeaderBytes)), $"{written} bytes written of {packets} frames, {bytes} bytes");
            if (packets > 0)
            {
                CheckFrame(new(_written, (int)Math.Min(written, 256)), packets == 1 ? (int)bytes : int.MaxValue, hasSources);
            }
        }
    }

    private static void CheckFrame(ReadOnlySpan<byte> header, int frameBytes, bool hasSources)
    {
        Require(Frames.Source(header) == _peer.Bits && Frames.Destination(header) == _own.Bits, "another's address");
        ushort etherType = BinaryPrimitives.ReadUInt16BigEndian(header[Frames.EtherTypeOffset..]);
        Require(etherType is not (0x8100 or 0x88a8), "a VLAN");
        ReadOnlySpan<byte> packet = header[Frames.HeaderBytes..];
        Require(!hasSources || etherType is 0x0800 or 0x0806 or 0x86dd, $"EtherType {etherType:x}");
        Require(!hasSources || etherType != 0x0800 || packet[12..16].SequenceEqual((ReadOnlySpan<byte>)[10, 0, 0, 5]), "another's IPv4 address");

        bool needsChecksum = (header[0] & OffloadHeader.VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0;
        int headers = BinaryPrimitives.ReadUInt16LittleEndian(header[2..]), segment = BinaryPrimitives.ReadUInt16LittleEndian(header[4..]);
        int start = BinaryPrimitives.ReadUInt16LittleEndian(header[6..]), place = start + BinaryPrimitives.ReadUInt16LittleEndian(header[8..]);
        Require(header[0] <= OffloadHeader.VIRTIO_NET_HDR_F_DATA_VALID && (needsChecksum || (headers | segment | place | header[1]) == 0), "a header of nothing");
        Require(!needsChecksum || (start >= 34 && place + sizeof(ushort) <= frameBytes), $"a checksum at {place}");
        Require(header[1] == 0 || (headers > start && headers <= frameBytes && segment > 0), $"{headers} bytes of headers, segments of {segment}");
    }

    /// <summary>This side sends; the peer has a word in its index.</summary>
    private void Send(ref Script script, RingProducer producer)
    {
        byte what = script.Next<byte>();
        if (producer.TryReserve(out RingSegments room))
        {
            _memory.CheckInside(room);
            ReadOnlySpan<byte> frame = script.Take(script.Next<byte>());
            uint length = Math.Max((uint)frame.Length, Frames.HeaderBytes) + (what * 256u);
            uint place = (uint)(room.First - _memory.Data);
            Put(place, frame);
            RingSegments record = room.Take(length);
            Span<byte> head = stackalloc byte[(int)Math.Min(length, OffloadHeader.MostBytes)];
            record.CopyTo(head);
            if ((head[0] & OffloadHeader.VIRTIO_NET_HDR_F_NEEDS_CSUM) != 0)
            {
                _dirty.Add((place, (int)length));
                Complete(record, place, head);
            }

            Put(place - RingRecord.HeaderBytes, new byte[RingRecord.HeaderBytes]);
            producer.Commit(length);
        }

        _ = producer.Publish();
        _ = (what & 1) != 0 ? producer.ArmSpace() : producer.ArmEmpty();
        if ((what & 2) != 0)
        {
            producer.MarkStale();
            _ = producer.TryClearStale();
        }

        _ = producer.HasRoom;
    }

    /// <summary>The frame is this side's own: whatever it says, nothing but the record changes, and the peer has no part in it.</summary>
    private void Complete(in RingSegments record, uint place, ReadOnlySpan<byte> head)
    {
        uint checksum = Frames.VnetHeaderBytes + (uint)BinaryPrimitives.ReadUInt16LittleEndian(head[6..]) + BinaryPrimitives.ReadUInt16LittleEndian(head[8..]);
        byte* outside = _memory.Data + ((place + Math.Max(checksum, record.Length)) & (RingBytes - 1));
        byte before = *outside;
        try
        {
            InnerChecksum.Complete(record, head);
        }
        catch (PeerViolationException e)
        {
            throw new InvalidOperationException("the peer is blamed", e);
        }

        Require(*outside == before, $"a byte outside the record, at {checksum}");
    }

    private void Put(uint index, ReadOnlySpan<byte> bytes, bool remember = true)
    {
        RingSegments place = RingSegments.At(_memory.Data, RingBytes, index & (RingBytes - 1), (uint)bytes.Length);
        bytes[..(int)place.FirstLength].CopyTo(new(place.First, (int)place.FirstLength));
        bytes[(int)place.FirstLength..].CopyTo(new(place.Second, (int)place.SecondLength));
        if (remember)
        {
            _dirty.Add((index, bytes.Length));
        }
    }

    private static void Read(byte* bytes, uint length) => _ = new ReadOnlySpan<byte>(bytes, (int)length).Count((byte)1);

    private sealed class NoEvents : EventChannel
    {
        public override void Notify()
        {
        }

        public override void Acknowledge()
        {
        }

        public override void Dispose()
        {
        }
    }
}
