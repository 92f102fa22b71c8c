using System.Runtime.InteropServices;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Divert;

/// <summary>
/// The hooks on one local vif. At its egress a BPF program looks at the destination of each packet and hands those to
/// connected peers to their TAPs; whatever arrives at such a TAP appears at the vif's ingress, as if it had come from
/// netfront. Beneath the network layer on both sides: addresses, routes and firewall rules of the vif hold.
/// Every doubt is decided for netfront: the program never drops a packet.
/// All methods belong to the control thread; the slots are for everybody.
/// </summary>
internal sealed unsafe class VifDivert : IDisposable
{
    /// <summary>Neighbours that can be counted at once; some 150 bytes of kernel memory each.</summary>
    internal const int MaxTracked = 4096;

    // "XL" in ASCII.
    private const ushort ReinjectionPriority = 0x584C;

    private readonly int _interfaceIndex;
    private readonly int _slots;
    private readonly TrafficControl _trafficControl;
    private readonly SafeFd _peers;
    private readonly SafeFd _slotMap;
    private readonly MappedMemory _slotWords;
    private readonly SafeFd _egressProgram;
    private readonly EgressHook _egress;
    private bool _disposed;

    private VifDivert(string interfaceName, MacAddress own, int slots, int vif, BpfRingBuffer demands, DivertRung? only)
    {
        _slots = slots;
        _trafficControl = new TrafficControl();
        try
        {
            using Links links = new();
            LinkInfo link = links.FindLink(interfaceName)
                ?? throw new NativeException("RTM_GETLINK", interfaceName, ENODEV);
            _interfaceIndex = link.Index;
            _peers = Bpf.CreateHash("xenloop_peers", sizeof(ulong), sizeof(Peer), MaxTracked);
            _slotMap = Bpf.CreateMappableArray("xenloop_slots", DivertSlot.Size, slots);
            _slotWords = MappedMemory.Map(_slotMap.Number, slots * DivertSlot.Size, "the BPF map xenloop_slots");
            for (int slot = 0; slot < slots; slot++)
            {
                Slot(slot).Block();
            }
            _egressProgram = Bpf.LoadClassifier("xenloop_divert", DivertPrograms.Divert(own, vif, _peers, _slotMap, demands.Map));
            _egress = new EgressHook(_interfaceIndex, _egressProgram, _trafficControl, only);
            _ = _egress.Secure();
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>How the programs are attached.</summary>
    public DivertRung Rung => _egress.Rung;

    /// <summary>See <see cref="EgressHook.HasOthers"/>.</summary>
    public bool HasOthers => _egress.HasOthers;

    /// <summary>Index of the interface in this network namespace.</summary>
    public int InterfaceIndex => _interfaceIndex;

    /// <summary>Attaches to an interface, by the best rung that the kernel has. Nothing is diverted until a peer is connected and its slot open.</summary>
    /// <param name="interfaceName">The vif as this domain sees it.</param>
    /// <param name="own">Its MAC address as Dom0 announced it: frames from other sources (bridged ones) pass.</param>
    /// <param name="slots">Channels that can be connected at once; slots are numbered from 0.</param>
    /// <param name="vif">The vif's number, for its reports.</param>
    /// <param name="demands">Gets a <see cref="Demand"/> when a tracked destination that is not connected gets its rate of packets.</param>
    /// <param name="only">Try this rung alone.</param>
    /// <exception cref="NativeException">No such interface, missing rights, or neither rung works here.</exception>
    public static VifDivert Attach(string interfaceName, MacAddress own, int slots, int vif, BpfRingBuffer demands, DivertRung? only = null) =>
        new(interfaceName, own, slots, vif, demands, only);

    /// <summary>See <see cref="EgressHook.IsUnchanged"/>.</summary>
    public bool IsUnchanged => _egress.IsUnchanged;

    /// <summary>See <see cref="EgressHook.Secure"/>: to be called whenever something may have changed at the interface's egress.</summary>
    /// <exception cref="NativeException">The kernel refuses what it allowed before.</exception>
    public string? Secure() => _egress.Secure();

    /// <summary>Starts counting packets to this destination, or changes its rate: the counters of one that is tracked already go on.</summary>
    /// <param name="peer">Of a neighbour.</param>
    /// <param name="packetsPerSecond">Reported when it gets so many within a second and is not connected; 0 for never.</param>
    /// <exception cref="NativeException">E2BIG: <see cref="MaxTracked"/> are tracked.</exception>
    public void Track(MacAddress peer, int packetsPerSecond)
    {
        _ = Bpf.Lookup(_peers, peer.Bits, out Peer entry);
        entry.Address = peer.Bits;
        entry.Threshold = (uint)packetsPerSecond;
        Bpf.Update(_peers, peer.Bits, in entry);
    }

    /// <summary>Hands packets to this destination to a TAP, as soon as the slot is open (<see cref="DivertSlot.Open"/>). Counters go on.</summary>
    /// <param name="peer">Tracked or not.</param>
    /// <param name="tapIndex">Index of the channel's TAP.</param>
    /// <param name="slot">Which slot counts and guards it.</param>
    public void Connect(MacAddress peer, int tapIndex, int slot)
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(tapIndex);
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)slot, (uint)_slots, nameof(slot));
        Replace(peer, tapIndex, slot);
    }

    /// <summary>Back to counting. Nothing to do for a destination that is not tracked.</summary>
    public void Disconnect(MacAddress peer)
    {
        if (Bpf.Lookup(_peers, peer.Bits, out Peer _))
        {
            try
            {
                Replace(peer, 0, 0);
            }
            catch (NativeException)
            {
                // The kernel has no memory for the exchange. To remove takes none; and nothing may lead to the TAP any more.
                Forget(peer);
            }
        }
    }

    /// <summary>The destination is no neighbour any more: its packets pass uncounted.</summary>
    public void Forget(MacAddress peer) => _ = Bpf.Delete(_peers, peer.Bits);

    /// <summary>Counters since the destination is tracked; zeros when it is not.</summary>
    public DivertCounters Read(MacAddress peer) =>
        Bpf.Lookup(_peers, peer.Bits, out Peer found) ? new DivertCounters(found.Seen, found.DivertedBefore + DivertedIn(found)) : default;

    /// <summary>Blocked at first.</summary>
    public DivertSlot Slot(int slot)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThanOrEqual((uint)slot, (uint)_slots, nameof(slot));
        return new DivertSlot(_slotWords.Address + (slot * DivertSlot.Size));
    }

    /// <summary>Only frames from this vif to the peer get into the queue of this TAP from now on, and the slot counts them.</summary>
    /// <param name="tap">Of the peer's channel.</param>
    /// <param name="own">The vif's MAC address.</param>
    /// <param name="peer">The peer's.</param>
    /// <param name="slot">Of the channel.</param>
    public void AttachFilter(TapDevice tap, MacAddress own, MacAddress peer, int slot)
    {
        using SafeFd program = Bpf.LoadSocketFilter("xenloop_enqueue", DivertPrograms.Enqueue(own, peer, _slotMap, slot));
        tap.SetFilter(program);
    }

    /// <summary>Whatever arrives at this TAP is counted by the slot and appears at the ingress of the vif. Ends with the returned object and with the TAP.
    /// To be called on a thread of the vif's network namespace, as <see cref="Attach"/>.</summary>
    /// <param name="tap">Of the same namespace.</param>
    /// <param name="slot">Of the channel.</param>
    /// <param name="only">Try this way alone.</param>
    /// <exception cref="NativeException">Neither way works here.</exception>
    public IDisposable AttachReinjection(TapDevice tap, int slot, Reinjection? only = null)
    {
        if (only is not Reinjection.BpfRedirect)
        {
            try
            {
                using SafeFd accept = Bpf.LoadClassifier("xenloop_accept", DivertPrograms.Accept(_slotMap, slot));
                _ = _trafficControl.AddClsact(tap.Index);
                _trafficControl.AddIngressRedirect(
                    tap.Index, TcHook.Ingress, ReinjectionPriority, EgressHook.FilterHandle, accept.Number, EgressHook.FilterName, _interfaceIndex);
                return EndsWithTheTap.Instance;
            }
            catch (NativeException) when (only is null)
            {
                // A kernel without act_mirred, or with TCX and without cls_bpf.
            }
        }
        using SafeFd inject = Bpf.LoadClassifier("xenloop_inject", DivertPrograms.Inject(_interfaceIndex, _slotMap, slot));
        if (Rung == DivertRung.Tcx)
        {
            return Bpf.CreateTcxLink(inject, tap.Index, BpfAttachType.BPF_TCX_INGRESS);
        }
        _ = _trafficControl.AddClsact(tap.Index);
        _trafficControl.AddBpfFilter(tap.Index, TcHook.Ingress, ReinjectionPriority, EgressHook.FilterHandle, inject.Number, EgressHook.FilterName);
        return EndsWithTheTap.Instance;
    }

    /// <summary>
    /// After <see cref="DivertSlot.Block"/> or <see cref="Disconnect"/>: returns when every program that was running on some CPU
    /// has ended, so that the last diverted packet is in the TAP. Takes some milliseconds.
    /// </summary>
    public static void WaitForPackets()
    {
        if (!Membarrier.TryWaitForAll())
        {
            // There the wait is by time.
            Thread.Sleep(10);
        }
    }

    /// <summary>Detaches from the vif and leaves nothing behind. Diverting has ended when it returns.</summary>
    public void Dispose()
    {
        if (_disposed)
        {
            return;
        }
        _disposed = true;
        _egress?.Dispose();
        _egressProgram?.Dispose();
        _slotWords?.Dispose();
        _slotMap?.Dispose();
        _peers?.Dispose();
        _trafficControl.Dispose();
    }

    private void Replace(MacAddress peer, int tapIndex, int slot)
    {
        // The element is exchanged as a whole: what the program counts between the look and the exchange is lost, a few packets.
        _ = Bpf.Lookup(_peers, peer.Bits, out Peer entry);
        entry.DivertedBefore += DivertedIn(entry);
        entry.Address = peer.Bits;
        entry.TapIndex = (uint)tapIndex;
        entry.Slot = (uint)slot;
        // A slot counts on from one channel to the next. (Modulo 2^64 the difference may be below zero.)
        entry.DivertedBefore -= DivertedIn(entry);
        Bpf.Update(_peers, peer.Bits, in entry);
    }

    /// <summary>What the slot of a connected destination has counted, since ever.</summary>
    private ulong DivertedIn(in Peer entry) => entry.TapIndex == 0 ? 0 : Slot((int)entry.Slot).Diverted;

    /// <summary>A destination, as program and daemon share it. The key is <see cref="MacAddress.Bits"/>.</summary>
    [StructLayout(LayoutKind.Explicit)]
    internal struct Peer
    {
        public const int TapIndexOffset = 0;
        public const int SlotOffset = 4;
        public const int SeenOffset = 8;
        public const int DivertedBeforeOffset = 16;
        public const int AddressOffset = 24;
        public const int WindowStartOffset = 32;
        public const int WindowCountOffset = 40;
        public const int LastCountOffset = 44;
        public const int ThresholdOffset = 48;

        /// <summary>0: tracked, not connected.</summary>
        [FieldOffset(TapIndexOffset)]
        public uint TapIndex;

        [FieldOffset(SlotOffset)]
        public uint Slot;

        [FieldOffset(SeenOffset)]
        public ulong Seen;

        /// <summary>Packets diverted while it was connected earlier; the program does not look at it.</summary>
        [FieldOffset(DivertedBeforeOffset)]
        public ulong DivertedBefore;

        /// <summary>The key once more, for the report.</summary>
        [FieldOffset(AddressOffset)]
        public ulong Address;

        /// <summary>CLOCK_MONOTONIC in nanoseconds at the first packet of the window.</summary>
        [FieldOffset(WindowStartOffset)]
        public ulong WindowStart;

        [FieldOffset(WindowCountOffset)]
        public uint WindowCount;

        /// <summary>Packets in the window before.</summary>
        [FieldOffset(LastCountOffset)]
        public uint LastCount;

        [FieldOffset(ThresholdOffset)]
        public uint Threshold;

        [FieldOffset(ThresholdOffset + sizeof(uint))]
        private readonly uint _padding;
    }

    /// <summary>A filter goes with the interface that it is attached to.</summary>
    private sealed class EndsWithTheTap : IDisposable
    {
        public static readonly EndsWithTheTap Instance = new();

        public void Dispose()
        {
        }
    }
}
