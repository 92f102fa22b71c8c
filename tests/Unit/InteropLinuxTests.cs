using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The Linux calls against the running kernel. Needs root.</summary>
public sealed class InteropLinuxTests
{
    [Fact]
    public void Structs_have_the_layout_of_the_kernel_s_headers()
    {
        Assert.Equal(16, Unsafe.SizeOf<nlmsghdr>());
        Assert.Equal(16, Unsafe.SizeOf<ifinfomsg>());
        Assert.Equal(4, (int)Marshal.OffsetOf<ifinfomsg>(nameof(ifinfomsg.ifi_index)));
        Assert.Equal(20, Unsafe.SizeOf<tcmsg>());
        Assert.Equal(12, (int)Marshal.OffsetOf<tcmsg>(nameof(tcmsg.tcm_parent)));
        Assert.Equal(12, Unsafe.SizeOf<sockaddr_nl>());
        Assert.Equal(40, Unsafe.SizeOf<TapDevice.ifreq>());
        Assert.Equal(16, (int)Marshal.OffsetOf<TapDevice.ifreq>(nameof(TapDevice.ifreq.ifr_flags)));
        Assert.Equal(8, Unsafe.SizeOf<BpfInstruction>());
        Assert.Equal(44, Unsafe.SizeOf<Bpf.map_create_attr>());
        Assert.Equal(32, Unsafe.SizeOf<Bpf.map_elem_attr>());
        Assert.Equal(8, (int)Marshal.OffsetOf<Bpf.map_elem_attr>(nameof(Bpf.map_elem_attr.key)));
        Assert.Equal(64, Unsafe.SizeOf<Bpf.prog_load_attr>());
        Assert.Equal(48, (int)Marshal.OffsetOf<Bpf.prog_load_attr>(nameof(Bpf.prog_load_attr.prog_name)));
        Assert.Equal(16, Unsafe.SizeOf<Bpf.link_create_attr>());
        Assert.Equal(64, Unsafe.SizeOf<Bpf.prog_query_attr>());
        Assert.Equal(56, (int)Marshal.OffsetOf<Bpf.prog_query_attr>(nameof(Bpf.prog_query_attr.revision)));
        Assert.Equal(12, Unsafe.SizeOf<Bpf.get_fd_by_id_attr>());
        Assert.Equal(16, Unsafe.SizeOf<Bpf.info_attr>());
        Assert.Equal(64, (int)Marshal.OffsetOf<Bpf.prog_info>(nameof(Bpf.prog_info.name)));
        Assert.Equal(16, Unsafe.SizeOf<Bpf.rlimit>());
        Assert.Equal(28, Unsafe.SizeOf<TrafficControl.tc_mirred>());
        // Packed on x86-64, and nowhere else.
        Assert.Equal(RuntimeInformation.ProcessArchitecture == Architecture.X64 ? 12 : 16, Unsafe.SizeOf<epoll_event>());
    }

    [Theory]
    [InlineData("00:16:3e:01:02:03", true)]
    [InlineData("FF:ff:ff:ff:ff:ff", true)]
    [InlineData("00:16:3e:01:02", false)]
    [InlineData("00:16:3e:01:02:0g", false)]
    [InlineData("00-16-3e-01-02-03", false)]
    [InlineData(" 0:16:3e:01:02:03", false)]
    [InlineData("00:16:3e:01:02:03 ", false)]
    [InlineData("", false)]
    public void Mac_addresses_are_six_pairs_of_digits(string text, bool valid)
    {
        Assert.Equal(valid, MacAddress.TryParse(text, out MacAddress mac));
        if (valid)
        {
            Assert.Equal(text.ToLowerInvariant(), mac.ToString());
            byte[] bytes = new byte[6];
            mac.CopyTo(bytes);
            Assert.Equal(mac, MacAddress.Read(bytes));
            Assert.Equal(Convert.FromHexString(text.Replace(":", "", StringComparison.Ordinal)), bytes);
        }
    }

    [Fact]
    public void A_tap_is_named_indexed_and_gone_with_its_descriptor()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            using Links links = new();
            using (TapDevice tap = TapDevice.Open("xl%d", uso: false))
            {
                Assert.Equal("xl0", tap.Name);
                LinkInfo? link = links.FindLink("xl0");
                Assert.NotNull(link);
                Assert.Equal(tap.Index, link.Index);
                Assert.False(link.IsUp);
                NativeException taken = Assert.Throws<NativeException>(() => TapDevice.Open("xl0", uso: false));
                Assert.Contains("EBUSY", taken.Message, StringComparison.Ordinal);
            }
            Assert.Null(links.FindLink("xl0"));
        });
    }

    [Fact]
    public void A_tap_takes_udp_super_packets_where_the_kernel_says_so()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            bool uso = TapDevice.ProbeUso();
            Assert.Equal(Environment.OSVersion.Version >= new Version(6, 2), uso);
            using TapDevice tap = TapDevice.Open("xl0", uso);
            Assert.Throws<ArgumentException>(() => TapDevice.Open("a name that is too long", uso));
        });
    }

    [Fact]
    public void A_tap_brought_up_is_set_as_told_and_says_nothing_of_its_own()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            // A router joins more groups than a host.
            File.WriteAllText("/proc/sys/net/ipv6/conf/all/forwarding", "1");
            using Links links = new();
            using TapDevice tap = TapDevice.Open("xl0", uso: false);

            tap.BringUp(links, 1400, 777);

            LinkInfo? link = links.FindLink(tap.Index);
            Assert.NotNull(link);
            Assert.True(link.IsUp && link.HasCarrier);
            Assert.Equal(1400, link.Mtu);
            Assert.Equal(777, link.QueueLength);
            Assert.Equal("noqueue", link.Qdisc);
            Assert.Equal(LinkFlags.IFF_NOARP, link.Flags & (LinkFlags.IFF_NOARP | LinkFlags.IFF_MULTICAST));
            Assert.Equal("", Convert.ToHexString(Frame.Read(tap, 1500) ?? []));
        });
    }

    [Fact]
    public void A_mac_can_be_set_and_is_read_back()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            using Links links = new();
            using TapDevice tap = TapDevice.Open("xl0", uso: false);
            MacAddress mac = MacAddress.Parse("02:00:00:00:00:07");

            links.SetMac(tap.Index, mac);

            Assert.Equal(mac, links.FindLink("xl0")!.Mac);
        });
    }

    [Fact]
    public void Errors_carry_the_kernel_s_own_words()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            using Links links = new();
            NativeException error = Assert.Throws<NativeException>(() => links.SetMtu(1, -5));

            Assert.Contains("RTM_NEWLINK(IFLA_MTU) on interface 1: EINVAL", error.Message, StringComparison.Ordinal);
            Assert.Contains("The kernel says: ", error.Message, StringComparison.Ordinal);
        });
    }

    [Fact]
    public void Filters_are_added_listed_replaced_and_deleted()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            using TrafficControl trafficControl = new();
            using TapDevice tap = TapDevice.Open("xl0", uso: false);
            using SafeFd program = Bpf.LoadClassifier("pass", new BpfProgram().Move(BpfRegister.R0, -1).Exit().ToArray());
            Assert.False(trafficControl.HasClsact(tap.Index));
            Assert.Empty(trafficControl.ListFilters(tap.Index, TcHook.Egress));
            Assert.True(trafficControl.AddClsact(tap.Index));
            Assert.False(trafficControl.AddClsact(tap.Index));

            trafficControl.AddBpfFilter(tap.Index, TcHook.Egress, 20, 2, program.Number, "second");
            trafficControl.AddBpfFilter(tap.Index, TcHook.Egress, 10, 1, program.Number, "first");
            trafficControl.AddBpfFilter(tap.Index, TcHook.Egress, 10, 1, program.Number, "anew", replace: true);
            NativeException error = Assert.Throws<NativeException>(
                () => trafficControl.AddBpfFilter(tap.Index, TcHook.Egress, 10, 1, program.Number, "again"));

            Assert.Contains("EEXIST", error.Message, StringComparison.Ordinal);
            Assert.Equal([new TcFilter("bpf", 10, 1, "anew", 0), new TcFilter("bpf", 20, 2, "second", 0)], trafficControl.ListFilters(tap.Index, TcHook.Egress));
            Assert.Empty(trafficControl.ListFilters(tap.Index, TcHook.Ingress));
            Assert.True(trafficControl.DeleteFilter(tap.Index, TcHook.Egress, 10, 1));
            Assert.False(trafficControl.DeleteFilter(tap.Index, TcHook.Egress, 10, 1));
            trafficControl.DeleteClsact(tap.Index);
            trafficControl.DeleteClsact(tap.Index);
            Assert.False(trafficControl.HasClsact(tap.Index));
        });
    }

    [Fact]
    public void An_ingress_qdisc_in_the_place_of_clsact_is_named_as_the_fault()
    {
        using NetworkNamespace space = new();
        space.Run(() =>
        {
            using TrafficControl trafficControl = new();
            using TapDevice tap = TapDevice.Open("xl0", uso: false);
            space_Command("tc", "qdisc add dev xl0 ingress");

            NativeException error = Assert.Throws<NativeException>(() => trafficControl.AddClsact(tap.Index));

            Assert.Contains("Another qdisc", error.Message, StringComparison.Ordinal);
        });

        static void space_Command(string program, string arguments)
        {
            using Process process = Process.Start(program, arguments);
            process.WaitForExit();
            Assert.Equal(0, process.ExitCode);
        }
    }

    [Fact]
    public unsafe void A_mappable_array_is_shared_with_the_process()
    {
        using SafeFd array = Bpf.CreateMappableArray("test", 64, 100);
        using MappedMemory memory = MappedMemory.Map(array.Number, 6400, "test");

        Volatile.Write(ref *(ulong*)(memory.Address + (99 * 64)), 42);

        Assert.True(Bpf.Lookup(array, 99u, out Line line));
        Assert.Equal(42ul, line.First);
        Bpf.Update(array, 98u, new Line { First = 7 });
        Assert.Equal(7ul, Volatile.Read(ref *(ulong*)(memory.Address + (98 * 64))));
    }

    [Fact]
    public void A_hash_is_looked_up_updated_and_deleted()
    {
        using SafeFd hash = Bpf.CreateHash("test", 8, 8, 2);

        Assert.False(Bpf.Lookup(hash, 1ul, out ulong _));
        Bpf.Update(hash, 1ul, 10ul);
        Bpf.Update(hash, 2ul, 20ul);
        Assert.True(Bpf.Lookup(hash, 2ul, out ulong value));
        Assert.Equal(20ul, value);
        NativeException full = Assert.Throws<NativeException>(() => Bpf.Update(hash, 3ul, 30ul));
        Assert.Contains("E2BIG", full.Message, StringComparison.Ordinal);
        Assert.True(Bpf.Delete(hash, 1ul));
        Assert.False(Bpf.Delete(hash, 1ul));
    }

    [Fact]
    public void A_program_that_the_verifier_refuses_says_why()
    {
        NativeException error = Assert.Throws<NativeException>(
            () => Bpf.LoadClassifier("bad", new BpfProgram().Move(BpfRegister.R0, BpfRegister.R3).Exit().ToArray()));

        Assert.Contains("R3 !read_ok", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Epoll_reports_tokens_and_allocates_nothing()
    {
        using Epoll epoll = new();
        using EventFd first = new();
        using EventFd second = new();
        epoll.Add(first.FileDescriptor, EpollEvents.EPOLLIN, 1);
        epoll.Add(second.FileDescriptor, EpollEvents.EPOLLIN, ulong.MaxValue);
        Span<epoll_event> ready = stackalloc epoll_event[4];
        Assert.Equal(0, epoll.Wait(ready, 0));
        Assert.Equal(0, epoll.Wait(ready, 10));

        second.Signal();
        long before = GC.GetAllocatedBytesForCurrentThread();
        int count = epoll.Wait(ready, -1);
        long allocated = GC.GetAllocatedBytesForCurrentThread() - before;

        Assert.Equal(1, count);
        Assert.Equal(ulong.MaxValue, ready[0].data.u64);
        Assert.Equal((int)EpollEvents.EPOLLIN, ready[0].events);
        Assert.Equal(0, allocated);

        epoll.Modify(second.FileDescriptor, EpollEvents.None, 2);
        Assert.Equal(0, epoll.Wait(ready, 0));
        epoll.Remove(first.FileDescriptor);
        first.Signal();
        Assert.Equal(0, epoll.Wait(ready, 0));
        Assert.Throws<NativeException>(() => epoll.Remove(first.FileDescriptor));
    }

    private unsafe struct Line
    {
        public ulong First;
        public fixed byte Rest[56];
    }

    [Theory]
    [InlineData("0.20 0.18 0.12 1/80 11206\n", 1)]
    [InlineData("24.63 24.42 18.70 27/518 24927\n", 27)]
    [InlineData("0.20 0.18 0.12 ", 0)]
    [InlineData("0.20 0.18 0.12 x/80 11206\n", 0)]
    [InlineData("", 0)]
    public void Runnable_threads_are_read_from_the_load_average(string text, int runnable) =>
        Assert.Equal(runnable, Scheduling.ParseRunnable(System.Text.Encoding.ASCII.GetBytes(text)));

    [Fact]
    public void Runnable_threads_are_those_of_now()
    {
        using CancellationTokenSource stop = new();
        Thread[] busy = [.. Enumerable.Range(0, 8).Select(_ => new Thread(() =>
        {
            while (!stop.IsCancellationRequested)
            {
            }
        }))];
        Assert.InRange(Scheduling.Runnable(), 1, int.MaxValue);
        Array.ForEach(busy, t => t.Start());
        Assert.True(SpinWait.SpinUntil(() => Scheduling.Runnable() > 8, TimeSpan.FromSeconds(10)));
        stop.Cancel();
        Array.ForEach(busy, t => t.Join());
    }
}
