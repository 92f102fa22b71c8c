using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using XenLoop.Divert;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The divert on real interfaces of the running kernel. Needs root and iproute2; each test lives in namespaces of its own.</summary>
public sealed class DivertTests : IDisposable
{
    private static MacAddress Peer { get; } = MacAddress.Parse("00:16:3e:00:00:02");
    private static MacAddress Stranger { get; } = MacAddress.Parse("00:16:3e:00:00:99");
    private static MacAddress Broadcast { get; } = MacAddress.Parse("ff:ff:ff:ff:ff:ff");

    private const int Vif = 3;

    private readonly BpfRingBuffer _demands = new("test_demand", 4096);
    private readonly TestGuest _guest = new("00:16:3e:00:00:01", "10.0.0.1");

    /// <summary>What this kernel has: TCX came with Linux 6.6. Numbers, for the enumerations are internal and tests public.</summary>
    public static TheoryData<int> Rungs => HasTcx ? [(int)DivertRung.Tcx, (int)DivertRung.ClsBpf] : [(int)DivertRung.ClsBpf];

    public static TheoryData<int, int> RungsAndReinjections
    {
        get
        {
            TheoryData<int, int> data = [];
            foreach (int rung in HasTcx ? [(int)DivertRung.Tcx, (int)DivertRung.ClsBpf] : new[] { (int)DivertRung.ClsBpf })
            {
                data.Add(rung, (int)Reinjection.Mirred);
                data.Add(rung, (int)Reinjection.BpfRedirect);
            }
            return data;
        }
    }

    internal static bool HasTcx => Environment.OSVersion.Version >= new Version(6, 6);

    public void Dispose()
    {
        _guest.Dispose();
        _demands.Dispose();
    }

    [Fact]
    public void Without_a_choice_the_best_rung_of_the_kernel_is_taken()
    {
        using VifDivert divert = Attach(null);

        Assert.Equal(HasTcx ? DivertRung.Tcx : DivertRung.ClsBpf, divert.Rung);
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Packets_to_a_connected_peer_come_out_of_its_tap_and_all_others_stay_on_eth0(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();

        _guest.Send(Peer, _guest.Mac, mark: 1);
        byte[]? diverted = Frame.Read(tap);
        Assert.NotNull(diverted);
        Assert.Equal(TapDevice.VnetHeaderSize + 60, diverted.Length);
        Assert.Equal(Peer, MacAddress.Read(diverted.AsSpan(TapDevice.VnetHeaderSize)));
        Assert.Equal(1, diverted[^1]);
        Assert.Equal(1ul, divert.Slot(0).Queued);
        Drain(divert);

        _guest.Send(Stranger, _guest.Mac, mark: 2);
        _guest.Send(Broadcast, _guest.Mac, mark: 3);
        _guest.Send(Peer, Stranger, mark: 4);
        for (byte mark = 2; mark <= 4; mark++)
        {
            Assert.Equal(mark, Frame.Read(_guest.Eth0)?[^1]);
        }
        Assert.Null(Frame.Read(tap, 20));
        Assert.Null(Frame.Read(_guest.Eth0, 20));
        Assert.Equal(new DivertCounters(1, 1), divert.Read(Peer));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_tracked_peer_is_counted_and_passes_and_its_counters_survive_connecting(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Track(Peer, 0);

        _guest.Send(Peer, _guest.Mac);
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Equal(new DivertCounters(2, 0), divert.Read(Peer));

        divert.AttachFilter(tap, _guest.Mac, Peer, 3);
        divert.Connect(Peer, tap.Index, 3);
        divert.Slot(3).Open();
        _guest.Send(Peer, _guest.Mac, length: 100);
        Assert.NotNull(Frame.Read(tap));
        divert.Track(Peer, 0);
        Assert.Equal(new DivertCounters(3, 1), divert.Read(Peer));

        divert.Disconnect(Peer);
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Equal(new DivertCounters(4, 1), divert.Read(Peer));

        divert.Forget(Peer);
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Equal(default, divert.Read(Peer));
        Assert.Null(Frame.Read(tap, 20));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_tap_that_nobody_drains_for_100_ms_sends_packets_to_eth0_until_it_is_drained(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();

        long begin = Stopwatch.GetTimestamp();
        while (Frame.Read(_guest.Eth0, 0) is null)
        {
            Assert.True(Stopwatch.GetElapsedTime(begin).TotalMilliseconds < 2000, "the divert did not fail open");
            _guest.Send(Peer, _guest.Mac);
            Thread.Sleep(2);
        }
        // Fails no earlier than it should: the daemon of a busy guest may be late.
        Assert.True(Stopwatch.GetElapsedTime(begin).TotalMilliseconds >= 100);
        Assert.True(divert.Read(Peer).Diverted > 0);
        while (Frame.Read(tap, 20) is not null)
        {
        }

        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Null(Frame.Read(tap, 20));

        Drain(divert);
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(tap));
        Assert.Null(Frame.Read(_guest.Eth0, 20));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_blocked_slot_passes_everything_and_a_drain_does_not_open_it(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        Assert.True(divert.Slot(0).IsBlocked);
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));

        divert.Slot(0).Open();
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(tap));

        divert.Slot(0).Block();
        VifDivert.WaitForPackets();
        Drain(divert);
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Null(Frame.Read(tap, 20));
        Assert.Equal(divert.Slot(0).Drained, divert.Slot(0).Queued);
        // The frame that was read is older than the packet that has just gone by netfront.
        Assert.Equal(1ul, divert.Slot(0).Overtaken);
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_tap_that_has_gone_costs_packets_for_100_ms_at_most(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using (TapDevice tap = OpenTap(divert))
        {
            divert.Connect(Peer, tap.Index, 0);
            divert.Slot(0).Open();
        }
        AssertPassesWithin(200);
    }

    [Theory]
    [MemberData(nameof(RungsAndReinjections))]
    public void What_is_written_to_the_tap_has_arrived_at_eth0(int rung, int way)
    {
        using TestGuest peer = new("00:16:3e:00:00:02", "10.0.0.2");
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        using IDisposable reinjection = _guest.Namespace.Run(() => divert.AttachReinjection(tap, 0, (Reinjection)way));
        using Socket socket = _guest.Namespace.Run(() =>
        {
            Socket udp = new(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp) { ReceiveTimeout = 1000 };
            // Only what came in by eth0.
            udp.SetRawSocketOption(1, 25, "eth0\0"u8);
            udp.Bind(new IPEndPoint(IPAddress.Any, 7000));
            return udp;
        });

        Assert.True(Frame.Write(tap, Frame.Udp(peer, _guest, 7000, "hello"u8)));

        byte[] buffer = new byte[100];
        Assert.Equal("hello"u8.ToArray(), buffer[..socket.Receive(buffer)]);
    }

    [Theory]
    [MemberData(nameof(RungsAndReinjections))]
    public void A_firewall_rule_on_eth0_holds_for_what_arrives_by_the_tap(int rung, int way)
    {
        using TestGuest peer = new("00:16:3e:00:00:02", "10.0.0.2");
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        using IDisposable reinjection = _guest.Namespace.Run(() => divert.AttachReinjection(tap, 0, (Reinjection)way));
        using Socket socket = _guest.Namespace.Run(() =>
        {
            Socket udp = new(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp) { ReceiveTimeout = 200 };
            udp.Bind(new IPEndPoint(IPAddress.Any, 7000));
            return udp;
        });
        byte[] datagram = Frame.Udp(peer, _guest, 7000, "x"u8);
        byte[] buffer = new byte[100];
        Assert.True(Frame.Write(tap, datagram));
        Assert.Equal(1, socket.Receive(buffer));

        _guest.Namespace.Command("iptables", "-A", "INPUT", "-i", "eth0", "-p", "udp", "--dport", "7000", "-j", "DROP");
        Assert.True(Frame.Write(tap, datagram));

        SocketException timeout = Assert.Throws<SocketException>(() => socket.Receive(buffer));
        Assert.Equal(SocketError.TimedOut, timeout.SocketErrorCode);
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public async Task Tcp_flows_through_the_taps_in_super_packets(int rung)
    {
        using TestGuest peer = new("00:16:3e:00:00:02", "10.0.0.2");
        _guest.KnowNeighbour(peer);
        peer.KnowNeighbour(_guest);
        _guest.SendFullSuperPackets();
        using TapDevice ours = _guest.OpenChannelTap();
        using TapDevice theirs = peer.OpenChannelTap();
        using VifDivert here = Attach((DivertRung)rung);
        using VifDivert there = peer.Namespace.Run(() => VifDivert.Attach("eth0", peer.Mac, 4, 0, _demands, (DivertRung)rung));
        using IDisposable reinjectHere = _guest.Namespace.Run(() => here.AttachReinjection(ours, 0));
        using IDisposable reinjectThere = peer.Namespace.Run(() => there.AttachReinjection(theirs, 0));
        here.Connect(peer.Mac, ours.Index, 0);
        there.Connect(_guest.Mac, theirs.Index, 0);
        here.Slot(0).Open();
        there.Slot(0).Open();
        here.AttachFilter(ours, _guest.Mac, peer.Mac, 0);
        there.AttachFilter(theirs, peer.Mac, _guest.Mac, 0);
        // A machine under load may stop the pump for 100 ms: then the wire takes over, and no byte is lost.
        using FramePump wire = new((_guest.Eth0, peer.Eth0, null), (peer.Eth0, _guest.Eth0, null));
        using FramePump channel = new((ours, theirs, () => Drain(here)), (theirs, ours, () => Drain(there)));

        const int Total = 64 << 20;
        using Socket listener = peer.Namespace.Run(() =>
        {
            Socket socket = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);
            socket.Bind(new IPEndPoint(IPAddress.Any, 7000));
            socket.Listen();
            return socket;
        });
        Task<long> receiving = Task.Run(() =>
        {
            using Socket connection = listener.Accept();
            byte[] buffer = new byte[1 << 17];
            long received = 0;
            for (int count; (count = connection.Receive(buffer)) > 0; received += count)
            {
            }
            return received;
        });
        using (Socket client = _guest.Namespace.Run(() => new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp)))
        {
            client.Connect(new IPEndPoint(IPAddress.Parse(peer.Address), 7000));
            byte[] data = new byte[1 << 20];
            for (int sent = 0; sent < Total; sent += data.Length)
            {
                client.Send(data);
            }
            client.Shutdown(SocketShutdown.Both);
        }

        Assert.Equal(Total, await receiving.WaitAsync(TimeSpan.FromSeconds(60)));
        Assert.True(channel.Largest > 60_000, $"the largest frame had {channel.Largest} bytes");
        // Super-packets: most of the data, in far fewer than the packets of a wire.
        DivertCounters counters = here.Read(peer.Mac);
        Assert.InRange(counters.Diverted, (ulong)Total / 2 / 65536, (ulong)Total / 1500);
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Dispose_leaves_nothing(int rung)
    {
        using TapDevice tap = _guest.OpenChannelTap();
        VifDivert divert = Attach((DivertRung)rung);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();
        Assert.Equal(rung == (int)DivertRung.ClsBpf, _guest.TrafficControl.HasClsact(_guest.Eth0.Index));
        Assert.Equal(rung == (int)DivertRung.Tcx ? 1 : 0, TcxPrograms());

        divert.Dispose();
        divert.Dispose();

        Assert.False(_guest.TrafficControl.HasClsact(_guest.Eth0.Index));
        Assert.Equal(0, TcxPrograms());
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Null(Frame.Read(tap, 20));
    }

    [Fact]
    public void Another_s_clsact_and_filters_are_left_alone()
    {
        _guest.Namespace.Command("tc", "qdisc", "add", "dev", "eth0", "clsact");
        _guest.Namespace.Command("tc", "filter", "add", "dev", "eth0", "egress", "prio", "7", "protocol", "all", "u32", "match", "u32", "0", "0");

        Attach(DivertRung.ClsBpf).Dispose();

        Assert.True(_guest.TrafficControl.HasClsact(_guest.Eth0.Index));
        Assert.Contains(_guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Egress), filter => filter is { Kind: "u32", Priority: 7 });
        Assert.DoesNotContain(_guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Egress), filter => filter.Kind == "bpf");
    }

    [Fact]
    public void Clsact_that_another_uses_meanwhile_stays()
    {
        VifDivert divert = Attach(DivertRung.ClsBpf);
        _guest.Namespace.Command("tc", "filter", "add", "dev", "eth0", "ingress", "prio", "7", "protocol", "all", "u32", "match", "u32", "0", "0");

        divert.Dispose();

        Assert.True(_guest.TrafficControl.HasClsact(_guest.Eth0.Index));
        Assert.Empty(_guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Egress));
        Assert.Contains(_guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Ingress), filter => filter.Kind == "u32");
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_daemon_killed_leaves_a_divert_that_fails_open_and_its_successor_takes_over(int rung)
    {
        using (Process holder = _guest.Namespace.Run(() => DivertHolder.Start((DivertRung)rung, _guest.Mac, Peer)))
        {
            _guest.Send(Peer, _guest.Mac);
            Assert.Null(Frame.Read(_guest.Eth0, 20));
            holder.Kill();
            holder.WaitForExit();
        }

        AssertPassesWithin(200);
        Assert.Equal(0, TcxPrograms());
        List<TcFilter> left = _guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Egress);
        if (rung == (int)DivertRung.Tcx)
        {
            Assert.Empty(left);
        }
        else
        {
            Assert.Equal(EgressHook.FilterNameWithClsact, Assert.Single(left).Name);
        }

        using (VifDivert successor = Attach(null))
        {
            using TapDevice tap = _guest.OpenChannelTap("xl2.0");
            successor.Connect(Peer, tap.Index, 0);
            successor.Slot(0).Open();
            _guest.Send(Peer, _guest.Mac);
            Assert.NotNull(Frame.Read(tap));
        }
        Assert.False(_guest.TrafficControl.HasClsact(_guest.Eth0.Index));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_peer_that_gets_its_rate_of_packets_is_reported_once_in_a_second(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        divert.Track(Peer, 3);
        SendIPv4(2);
        Assert.False(_demands.TryTake(out Demand _));
        SendIPv4(6);
        Assert.True(_demands.TryTake(out Demand demand));
        Assert.Equal(new Demand { Address = Peer.Bits, Vif = Vif, PacketsBefore = 0 }, demand);
        Assert.False(_demands.TryTake(out Demand _));

        // The next second's report tells how many there were in this one.
        Thread.Sleep(1050);
        SendIPv4(3);
        Assert.True(_demands.TryTake(out demand));
        Assert.Equal(8u, demand.PacketsBefore);

        divert.Track(Peer, 0);
        Thread.Sleep(1050);
        SendIPv4(3);
        Assert.False(_demands.TryTake(out Demand _));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Only_what_applications_send_is_reported(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        divert.Track(Peer, 1);
        _guest.Send(Frame.Ethernet(Peer, _guest.Mac, 0x0806, new byte[46])); // ARP
        for (byte type = 133; type <= 137; type++)
        {
            _guest.Send(Icmpv6(type)); // neighbour discovery
        }

        _guest.Send(Frame.Ethernet(Stranger, _guest.Mac, 0x0800, new byte[46]));
        _guest.Send(Frame.Ethernet(Peer, Stranger, 0x0800, new byte[46]));
        Assert.False(_demands.TryTake(out Demand _));

        _guest.Send(Icmpv6(128)); // echo request
        Assert.True(_demands.TryTake(out Demand _));
        divert.Forget(Peer);
        divert.Track(Peer, 1);
        _guest.Send(Icmpv6(143)); // a type beyond neighbour discovery's
        Assert.True(_demands.TryTake(out Demand _));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_queue_of_reports_that_is_full_costs_no_packet(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        const int Peers = 400;
        for (int i = 0; i < Peers; i++)
        {
            MacAddress peer = MacAddress.Parse($"00:16:3e:11:{i >> 8:x2}:{i & 255:x2}");
            divert.Track(peer, 1);
            _guest.Send(Frame.Ethernet(peer, _guest.Mac, 0x0800, new byte[46]));
            Assert.NotNull(Frame.Read(_guest.Eth0));
        }

        int reports = 0;
        while (_demands.TryTake(out Demand demand))
        {
            Assert.Equal(Vif, demand.Vif);
            reports++;
        }

        Assert.InRange(reports, 100, Peers - 1);
        divert.Track(Peer, 1);
        SendIPv4(1);
        Assert.True(_demands.TryTake(out Demand _));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Of_a_flood_that_nobody_drains_the_tap_drops_nothing_and_order_changes_once(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();

        for (int i = 0; i < DivertSlot.MostQueued + 10; i++)
        {
            _guest.Send(Peer, _guest.Mac);
            // So that the time in which nobody drains does not count on a slow machine: that is not what is looked at here.
            divert.Slot(0).Open();
        }
        Assert.Equal((ulong)DivertSlot.MostQueued, divert.Slot(0).Queued);
        Assert.Equal((ulong)DivertSlot.MostQueued, divert.Slot(0).Diverted);
        Assert.Equal(DivertSlot.MostQueued, Count(tap));
        Assert.Equal(10, Count(_guest.Eth0));

        // As long as more than half is left, packets go by netfront; then they come back.
        divert.Slot(0).Drain(DivertSlot.MostQueued - DivertSlot.FewQueued - 1);
        _guest.Send(Peer, _guest.Mac);
        Assert.Equal(1, Count(_guest.Eth0));
        divert.Slot(0).Drain(DivertSlot.MostQueued - DivertSlot.FewQueued);
        _guest.Send(Peer, _guest.Mac);
        Assert.Equal((1, 0), (Count(tap), Count(_guest.Eth0)));
        Assert.Equal(0, Dropped("xl1.0"));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void The_fragments_of_a_datagram_keep_together_and_away_from_a_queue_that_was_full(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = _guest.OpenChannelTap();
        foreach (bool ipv6 in new[] { false, true })
        {
            DivertSlot slot = divert.Slot(ipv6 ? 1 : 0);
            divert.AttachFilter(tap, _guest.Mac, Peer, ipv6 ? 1 : 0);
            divert.Connect(Peer, tap.Index, ipv6 ? 1 : 0);
            slot.Drain(unchecked(2ul - DivertSlot.MostQueued));
            slot.Open();
            Send(first: true); // two places are left; this takes one of them
            Send(first: false);
            Send(first: false); // beyond the last, but its datagram's beginning is in the queue
            Assert.Equal((3, 0), (Count(tap), Count(_guest.Eth0)));
            slot.Open(); // time does not count here
            Send(first: true);
            slot.Drain(slot.Queued);
            Send(first: false);
            Send(first: true);
            Send(first: false);
            Assert.Equal((0, 4), (Count(tap), Count(_guest.Eth0)));
            SendIPv4(1);
            Assert.Equal((1, 0), (Count(tap), Count(_guest.Eth0)));

            void Send(bool first) => _guest.Send(Fragment(ipv6, first));
        }
    }

    [Fact]
    public void A_frame_of_another_s_does_not_get_into_the_queue()
    {
        using VifDivert divert = Attach(null);
        using TapDevice tap = OpenTap(divert);

        foreach ((MacAddress to, MacAddress from) in new[] { (Peer, Stranger), (Stranger, _guest.Mac), (Broadcast, _guest.Mac) })
        {
            // Who sends it is told that it was dropped.
            Assert.Contains("ENOBUFS", Assert.Throws<Interop.NativeException>(
                () => _guest.Send(Frame.Ethernet(to, from, 0x88B5, new byte[46]), tap)).Message, StringComparison.Ordinal);
        }
        Assert.Null(Frame.Read(tap, 20));
        Assert.Equal(0ul, divert.Slot(0).Queued);

        _guest.Send(Frame.Ethernet(Peer, _guest.Mac, 0x88B5, new byte[46]), tap);
        Assert.NotNull(Frame.Read(tap));
        Assert.Equal(1ul, divert.Slot(0).Queued);
    }

    [Theory]
    [MemberData(nameof(RungsAndReinjections))]
    public void What_is_written_to_the_tap_is_counted_where_it_arrives(int rung, int way)
    {
        using TestGuest peer = new("00:16:3e:00:00:02", "10.0.0.2");
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert, slot: 2);
        using IDisposable reinjection = _guest.Namespace.Run(() => divert.AttachReinjection(tap, 2, (Reinjection)way));
        byte[] datagram = Frame.Udp(peer, _guest, 7000, "x"u8);
        for (int i = 0; i < 3; i++)
        {
            Assert.True(Frame.Write(tap, datagram));
        }
        Assert.Equal(3ul, divert.Slot(2).Arrived);
        Assert.Equal(0ul, divert.Slot(0).Arrived);

        // As a tool does that puts a filter on every interface.
        _ = _guest.TrafficControl.AddClsact(tap.Index);
        using SafeFd drop = Bpf.LoadClassifier("drop", new BpfProgram().Move(BpfRegister.R0, 2).Exit().ToArray());
        _guest.TrafficControl.AddBpfFilter(tap.Index, TcHook.Ingress, 1, 1, drop.Number, "drop");
        Assert.True(Frame.Write(tap, datagram));
        // A TCX link comes before tc's filters.
        Assert.Equal(rung == (int)DivertRung.Tcx && way == (int)Reinjection.BpfRedirect ? 4ul : 3ul, divert.Slot(2).Arrived);
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Packets_that_overtake_the_queue_say_so(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        divert.Track(Peer, 1);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();
        SendIPv4(2);
        Assert.Equal(2, Count(tap));
        Thread.Sleep(120);
        long before = Stopwatch.GetTimestamp();
        Assert.False(_demands.TryTake(out Demand _));

        SendIPv4(1);
        Assert.Equal((0, 1), (Count(tap), Count(_guest.Eth0)));
        Assert.Equal(2ul, divert.Slot(0).Overtaken);
        Assert.InRange(divert.Slot(0).OvertakenAt, before, Stopwatch.GetTimestamp());
        // Somebody is to look what is the matter.
        Assert.True(_demands.TryTake(out Demand demand));
        Assert.Equal(Peer.Bits, demand.Address);

        Drain(divert);
        SendIPv4(1);
        Assert.Equal((1, 0), (Count(tap), Count(_guest.Eth0)));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_packet_that_did_not_go_to_the_tap_does_not_make_the_next_wait_for_it(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Drain(unchecked(0ul - DivertSlot.MostQueued));
        divert.Slot(0).Open();
        SendIPv4(1); // the queue is full
        Assert.Equal((0, 1), (Count(tap), Count(_guest.Eth0)));
        Drain(divert);
        _guest.Send(Fragment(ipv6: false, first: true)); // fragments keep away
        Assert.Equal((0, 1), (Count(tap), Count(_guest.Eth0)));

        Thread.Sleep(120);
        SendIPv4(1);
        Assert.Equal((1, 0), (Count(tap), Count(_guest.Eth0)));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Counters_go_on_from_one_channel_to_the_next(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        for (ulong round = 1; round <= 3; round++)
        {
            using TapDevice tap = OpenTap(divert);
            divert.Slot(0).Drain(divert.Slot(0).Queued);
            divert.Connect(Peer, tap.Index, 0);
            divert.Slot(0).Open();
            SendIPv4(2);
            Assert.Equal(2 * round, divert.Read(Peer).Diverted);
            divert.Slot(0).Block();
            divert.Disconnect(Peer);
            Assert.Equal(2 * round, divert.Read(Peer).Diverted);
        }
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void Frames_with_a_VLAN_tag_stay_on_eth0(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();
        foreach (ushort tag in new ushort[] { 0x8100, 0x88a8 })
        {
            _guest.Send(Frame.Ethernet(Peer, _guest.Mac, tag, new byte[46]));
            Assert.NotNull(Frame.Read(_guest.Eth0));
        }

        Assert.Null(Frame.Read(tap, 20));
        SendIPv4(1);
        Assert.NotNull(Frame.Read(tap));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void A_packet_that_is_to_be_sent_later_stays_on_eth0(int rung)
    {
        using VifDivert divert = Attach((DivertRung)rung);
        using TapDevice tap = OpenTap(divert);
        divert.Connect(Peer, tap.Index, 0);
        divert.Slot(0).Open();
        _guest.Namespace.Command("ip", "neigh", "add", "10.0.0.2", "lladdr", Peer.ToString(), "dev", "eth0");

        _guest.SendAt("10.0.0.2", TimeSpan.FromSeconds(100));
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Null(Frame.Read(tap, 20));
        Assert.Equal(0ul, divert.Slot(0).Diverted);

        _guest.SendAt("10.0.0.2", TimeSpan.FromSeconds(-1));
        Assert.NotNull(Frame.Read(tap));
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void An_interface_that_goes_away_first_does_no_harm(int rung)
    {
        VifDivert divert = Attach((DivertRung)rung);
        _guest.Eth0.Dispose();

        divert.Dispose();
    }

    [Fact]
    public void The_error_names_the_interface_that_is_missing()
    {
        Interop.NativeException error = Assert.Throws<Interop.NativeException>(
            () => _guest.Namespace.Run(() => VifDivert.Attach("eth9", _guest.Mac, 1, 0, _demands)));

        Assert.Contains("eth9", error.Message, StringComparison.Ordinal);
        Assert.Contains("ENODEV", error.Message, StringComparison.Ordinal);
    }

    /// <summary>The TAP of a channel to the peer.</summary>
    private TapDevice OpenTap(VifDivert divert, string name = "xl1.0", int slot = 0)
    {
        TapDevice tap = _guest.OpenChannelTap(name);
        divert.AttachFilter(tap, _guest.Mac, Peer, slot);
        return tap;
    }

    /// <summary>What is in the queue has been read.</summary>
    private static void Drain(VifDivert divert) => divert.Slot(0).Drain(divert.Slot(0).Queued);

    private VifDivert Attach(DivertRung? rung) => _guest.Namespace.Run(() => VifDivert.Attach("eth0", _guest.Mac, 4, Vif, _demands, rung));

    private void SendIPv4(int count)
    {
        for (int i = 0; i < count; i++)
        {
            _guest.Send(Frame.Ethernet(Peer, _guest.Mac, 0x0800, new byte[46]));
        }
    }

    private byte[] Fragment(bool ipv6, bool first)
    {
        byte[] packet = new byte[80];
        if (ipv6)
        {
            packet[0] = 0x60;
            packet[6] = 44;
            packet[42] = first ? (byte)0 : (byte)0x05;
            packet[43] = 1; // more
        }
        else
        {
            packet[0] = 0x45;
            packet[6] = 0x20; // more
            packet[7] = first ? (byte)0 : (byte)0xb9;
        }

        return Frame.Ethernet(Peer, _guest.Mac, ipv6 ? (ushort)0x86dd : (ushort)0x0800, packet);
    }

    private byte[] Icmpv6(byte type)
    {
        byte[] packet = new byte[60];
        packet[0] = 0x60;
        packet[6] = 58;
        packet[40] = type;
        return Frame.Ethernet(Peer, _guest.Mac, 0x86dd, packet);
    }

    private int TcxPrograms() => !HasTcx ? 0 : _guest.Namespace.Run(() => Bpf.ListTcxPrograms(_guest.Eth0.Index, BpfAttachType.BPF_TCX_EGRESS).Length);

    private static int Count(TapDevice tap)
    {
        int count = 0;
        while (Frame.Read(tap, 20) is not null)
        {
            count++;
        }
        return count;
    }

    private long Dropped(string name) => _guest.Namespace.Run(() => long.Parse(
        File.ReadLines("/proc/thread-self/net/dev").Single(l => l.TrimStart().StartsWith($"{name}:", StringComparison.Ordinal))
            .Split(':')[1].Split(' ', StringSplitOptions.RemoveEmptyEntries)[11], null));

    private void AssertPassesWithin(int milliseconds)
    {
        long begin = Stopwatch.GetTimestamp();
        do
        {
            Assert.True(Stopwatch.GetElapsedTime(begin).TotalMilliseconds < milliseconds, "packets are still lost");
            _guest.Send(Peer, _guest.Mac);
        }
        while (Frame.Read(_guest.Eth0, 5) is null);
    }
}
