using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop.Linux;
using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The data loop between a ring and a TAP of the running kernel. Needs root and iproute2.</summary>
public sealed unsafe class DataLoopTests
{
    private static MacAddress Peer { get; } = MacAddress.Parse("00:16:3e:00:00:02");

    [Fact]
    public void The_application_has_its_turn_while_much_is_received()
    {
        using TestGuest guest = new("00:16:3e:00:00:01", "10.0.0.1");
        using BpfRingBuffer demands = new("test_demand", 4096);
        using VifDivert divert = guest.Namespace.Run(() => VifDivert.Attach("eth0", guest.Mac, 4, 3, demands));
        using TapDevice tap = guest.OpenChannelTap();
        using IDisposable reinjection = guest.Namespace.Run(() => divert.AttachReinjection(tap, 0));
        using RingMemory received = new(), sent = new();
        (RingProducer producer, RingConsumer consumer) = received.Open();
        byte alive = 1;
        using EventFd faults = new();
        CountingClock clock = new();
        using NoEvents events = new();
        ChannelPath path = new(tap, events, sent.Open().Producer, consumer, &alive, divert.Slot(0), guest.Mac, Peer, uso: false);
        using DataLoop loop = new(IdleMode.Event, 1, faults, clock);
        loop.Add(path);

        Receive(ApplicationTurn.Packets - 1);
        Assert.Equal(0, clock.Turns);
        Receive(1);
        Assert.True(SpinWait.SpinUntil(() => clock.Turns == 1, TimeSpan.FromSeconds(10)));
        Receive(2 * ApplicationTurn.Packets);
        Assert.True(SpinWait.SpinUntil(() => clock.Turns > 1, TimeSpan.FromSeconds(10)));
        loop.Remove(path);

        void Receive(int packets)
        {
            byte[] frame = new byte[TapDevice.VnetHeaderSize + 60];
            Frame.Ethernet(guest.Mac, Peer, 0x88B5, new byte[46]).CopyTo(frame, TapDevice.VnetHeaderSize);
            for (int i = 0; i < packets; i++)
            {
                Assert.True(producer.TryReserve(out RingSegments room));
                frame.CopyTo(new Span<byte>(room.First, frame.Length));
                producer.Commit((uint)frame.Length);
            }

            if (producer.Publish())
            {
                events.Raise();
            }

            Assert.True(SpinWait.SpinUntil(() => !producer.HasOutstanding(), TimeSpan.FromSeconds(10)), path.Fault?.Message);
        }
    }

    private sealed class CountingClock : IdleClock
    {
        private int _turns;

        public int Turns => Volatile.Read(ref _turns);

        public override void GiveWay() => Interlocked.Increment(ref _turns);
    }

    /// <summary>A channel on which the peer hears nothing.</summary>
    private sealed class NoEvents : EventChannel
    {
        private readonly EventFd _event = new();

        public NoEvents() => FileDescriptor = _event.FileDescriptor;

        public void Raise() => _event.Signal();

        public override void Notify()
        {
        }

        public override void Acknowledge() => _event.Drain();

        public override void Dispose() => _event.Dispose();
    }
}
