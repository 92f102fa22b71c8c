using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

public sealed unsafe class BrokerTests : IDisposable
{
    private readonly string _directory = Directory.CreateTempSubdirectory("broker-test-").FullName;
    private readonly Broker _broker = new();
    private readonly LabHypervisor _listener;
    private readonly LabHypervisor _connector;
    private readonly LabHypervisor _third;

    public BrokerTests()
    {
        _listener = AddDomain(1);
        _connector = AddDomain(2);
        _third = AddDomain(3);
    }

    public void Dispose()
    {
        _listener.Dispose();
        _connector.Dispose();
        _third.Dispose();
        _broker.Dispose();
        Directory.Delete(_directory, recursive: true);
    }

    [Fact]
    public void Lab_messages_have_a_fixed_layout()
    {
        Assert.Equal(24, Unsafe.SizeOf<LabRequest>());
        Assert.Equal(12, (int)Marshal.OffsetOf<LabRequest>(nameof(LabRequest.NoticeOffset)));
        Assert.Equal(20, (int)Marshal.OffsetOf<LabRequest>(nameof(LabRequest.Count)));
        Assert.Equal(12, Unsafe.SizeOf<LabReply>());
        Assert.Equal(8, Unsafe.SizeOf<LabRun>());
    }

    [Fact]
    public void Each_socket_has_its_identity()
    {
        using LabHypervisor dom0 = AddDomain(0);
        Assert.Equal((0, true), (dom0.Domid, dom0.IsControlDomain));
        Assert.Equal((2, false), (_connector.Domid, _connector.IsControlDomain));
    }

    [Fact]
    public void What_one_side_writes_the_other_reads()
    {
        using SharedMemory granted = _listener.Share(2, 3);
        Assert.Equal(3, granted.References.Length);
        Assert.Equal(3 * 4096, granted.Length);
        Assert.True(new ReadOnlySpan<byte>(granted.Address, granted.Length).IndexOfAnyExcept((byte)0) < 0);

        using SharedMemory mapped = _connector.Map(1, granted.References);
        granted.Address[4096] = 7;
        mapped.Address[(3 * 4096) - 1] = 9;
        Assert.Equal(7, mapped.Address[4096]);
        Assert.Equal(9, granted.Address[(3 * 4096) - 1]);
    }

    [Fact]
    public void Pages_are_mapped_in_the_order_given_whatever_share_they_are_of()
    {
        using SharedMemory one = _listener.Share(2, 2), two = _listener.Share(2, 2);
        for (int i = 0; i < 2; i++)
        {
            one.Address[i * 4096] = (byte)(10 + i);
            two.Address[i * 4096] = (byte)(20 + i);
        }

        using SharedMemory mapped = _connector.Map(1, [two.References[1], one.References[0], one.References[1], two.References[0]]);
        Assert.Equal([21, 10, 11, 20], Enumerable.Range(0, 4).Select(i => (int)mapped.Address[i * 4096]));
    }

    [Fact]
    public void References_that_were_not_granted_to_the_asker_are_refused()
    {
        using SharedMemory granted = _listener.Share(2, 1);
        uint reference = granted.References[0];
        Assert.Equal(LibC.EINVAL, Assert.Throws<NativeException>(() => _third.Map(1, [reference])).Errno);
        Assert.Equal(LibC.EINVAL, Assert.Throws<NativeException>(() => _connector.Map(3, [reference])).Errno);
        Assert.Equal(LibC.EINVAL, Assert.Throws<NativeException>(() => _connector.Map(1, [reference, reference + 1])).Errno);
        Assert.Equal(0, _broker.Count(2).PagesMapped);
        granted.Dispose();
        Assert.Equal(LibC.EINVAL, Assert.Throws<NativeException>(() => _connector.Map(1, [reference])).Errno);
    }

    [Fact]
    public void Usage_counts_what_is_held_and_what_lingers()
    {
        SharedMemory granted = _listener.Share(2, 5);
        Assert.Equal(new BrokerUsage(5, 0, 0, 0), _broker.Count(1));
        SharedMemory mapped = _connector.Map(1, granted.References);
        Assert.Equal(new BrokerUsage(0, 0, 5, 0), _broker.Count(2));

        granted.Dispose();
        Assert.Equal(new BrokerUsage(0, 5, 0, 0), _broker.Count(1));
        mapped.Address[0] = 1;
        mapped.Dispose();
        Assert.Equal(default, _broker.Count(1));
        Assert.Equal(default, _broker.Count(2));
        mapped.Dispose();
    }

    [Fact]
    public void Events_arrive_and_are_taken_once()
    {
        using EventChannel listener = _listener.AllocateUnbound(2);
        listener.Notify();
        using EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        Assert.True(IsReadable(connector), "binding raises one event");
        connector.Acknowledge();
        Assert.False(IsReadable(connector));
        Assert.False(IsReadable(listener));

        connector.Notify();
        connector.Notify();
        Assert.True(IsReadable(listener));
        listener.Acknowledge();
        Assert.False(IsReadable(listener));
        listener.Notify();
        Assert.True(IsReadable(connector));
        Assert.Equal((1, 1), (_broker.Count(1).Ports, _broker.Count(2).Ports));
    }

    [Fact]
    public void A_port_is_bound_once_and_by_the_domain_it_was_made_for()
    {
        EventChannel listener = _listener.AllocateUnbound(2);
        Assert.Throws<NativeException>(() => _third.BindInterdomain(1, listener.Port));
        Assert.Throws<NativeException>(() => _connector.BindInterdomain(1, listener.Port + 1));
        EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        Assert.Throws<NativeException>(() => _connector.BindInterdomain(1, listener.Port));

        connector.Dispose();
        _connector.BindInterdomain(1, listener.Port).Dispose();
        listener.Dispose();
        Assert.Throws<NativeException>(() => _connector.BindInterdomain(1, listener.Port));
        Assert.Equal((0, 0), (_broker.Count(1).Ports, _broker.Count(2).Ports));
    }

    [Fact]
    public void The_death_of_the_connector_clears_its_byte_and_wakes_the_listener()
    {
        using EventChannel listener = _listener.AllocateUnbound(2);
        EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        using SharedMemory granted = _listener.Share(2, 1);
        _connector.Map(1, granted.References, new DeathNotice(100, connector));
        granted.Address[100] = granted.Address[101] = 1;
        Assert.False(IsReadable(listener));

        _connector.Dispose();
        WaitFor(() => IsReadable(listener));
        Assert.Equal((0, 1), (granted.Address[100], granted.Address[101]));
        WaitFor(() => _broker.Count(2) == default);
    }

    [Fact]
    public void The_death_of_the_listener_clears_its_byte_and_wakes_the_connector()
    {
        EventChannel listener = _listener.AllocateUnbound(2);
        using EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        connector.Acknowledge();
        SharedMemory granted = _listener.Share(2, 1, new DeathNotice(7, listener));
        using SharedMemory mapped = _connector.Map(1, granted.References);
        mapped.Address[7] = 1;

        _listener.Dispose();
        WaitFor(() => IsReadable(connector));
        Assert.Equal(0, mapped.Address[7]);
        Assert.Equal(new BrokerUsage(0, 1, 0, 0), _broker.Count(1));
    }

    [Fact]
    public void Orderly_unmapping_gives_notice_too_even_after_the_port_is_closed()
    {
        using EventChannel listener = _listener.AllocateUnbound(2);
        EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        using SharedMemory granted = _listener.Share(2, 1);
        SharedMemory mapped = _connector.Map(1, granted.References, new DeathNotice(0, connector));
        mapped.Address[0] = 1;
        connector.Dispose();
        Assert.False(IsReadable(listener));
        mapped.Dispose();
        Assert.True(IsReadable(listener));
        Assert.Equal(0, granted.Address[0]);
    }

    [Fact]
    public void The_destruction_of_a_domain_gives_no_notice_and_leaves_its_pages_readable()
    {
        EventChannel listener = _listener.AllocateUnbound(2);
        using EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        connector.Acknowledge();
        SharedMemory granted = _listener.Share(2, 1, new DeathNotice(7, listener));
        using SharedMemory mapped = _connector.Map(1, granted.References);
        mapped.Address[7] = 1;

        _broker.RemoveDomain(1);
        Assert.Equal(1, mapped.Address[7]);
        Assert.False(IsReadable(connector));
        connector.Notify();
        Assert.Throws<NativeException>(() => _listener.Share(2, 1));
    }

    [Fact]
    public void The_packet_path_does_not_allocate()
    {
        using EventChannel listener = _listener.AllocateUnbound(2);
        using EventChannel connector = _connector.BindInterdomain(1, listener.Port);
        for (int round = 0; ; round++)
        {
            long before = GC.GetAllocatedBytesForCurrentThread();
            for (int i = 0; i < 100; i++)
            {
                listener.Notify();
                connector.Acknowledge();
            }

            if (round > 0)
            {
                Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
                break;
            }
        }
    }

    private LabHypervisor AddDomain(ushort domid)
    {
        string socket = Path.Combine(_directory, $"{domid}");
        _broker.AddDomain(domid, socket);
        return new LabHypervisor(socket);
    }

    private static bool IsReadable(EventChannel channel)
    {
        pollfd descriptor = new() { fd = channel.FileDescriptor, events = LibC.POLLIN };
        return LibC.poll(&descriptor, 1, 0) > 0;
    }

    private static void WaitFor(Func<bool> condition)
    {
        Stopwatch watch = Stopwatch.StartNew();
        while (!condition())
        {
            Assert.True(watch.ElapsedMilliseconds < 5000, "it did not happen");
            Thread.Sleep(1);
        }
    }
}
