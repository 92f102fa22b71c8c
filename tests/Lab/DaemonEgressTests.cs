using System.Buffers.Binary;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text.Json;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>What a guest has on eth0 holds for what is diverted, or nothing is diverted while it is there.</summary>
[Collection(DaemonTests.Name)]
public class DaemonEgressTests
{
    // A look a second, and the time to build a channel on a busy machine.
    private const double Soon = 3;

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_qdisc_that_shapes_puts_traffic_back_on_netfront_until_it_goes(bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest shaped, LabGuest other) = listener ? lab.Pair : (lab.Pair.B, lab.Pair.A);
        TcpStream stream = TcpStream.Open(shaped, other, hash: false);
        await lab.UntilAsync("bytes in the channel", () => stream.Bytes > 20_000_000);

        await MustAsync(shaped, "tc qdisc replace dev eth0 root tbf rate 20mbit burst 32k latency 50ms");
        await lab.UntilAsync("both are on netfront", () => Fallen(shaped, other), Soon);
        Assert.Contains("tbf", Obstacle(shaped), StringComparison.Ordinal);
        // The peer knows that it waits for an obstacle to go, and not what it is.
        await lab.UntilAsync("the peer says why", () => LastError(other, shaped) == "the peer declines: obstructed", Soon);
        Assert.DoesNotContain("tbf", lab.XenStore.Read(DaemonLab.ChannelNode(shaped, other)), StringComparison.Ordinal);
        await Task.Delay(300);
        long bytes = stream.Bytes;
        Stopwatch watch = Stopwatch.StartNew();
        await Task.Delay(1500);
        double rate = (stream.Bytes - bytes) * 8 / watch.Elapsed.TotalSeconds;
        Assert.InRange(rate, 5e6, 21e6);

        // No attempt is made meanwhile, and none is remembered as a failure.
        Assert.Equal(0, lab.CountMessages(other, "next attempt"));
        await MustAsync(shaped, "tc qdisc del dev eth0 root");
        await lab.UntilAsync("the channel is back", () => lab.IsUp(shaped, other), Soon);
        Assert.Null(Obstacle(shaped));
        await stream.StopAsync();
    }

    [Theory]
    [InlineData("eth0")]
    [InlineData(null)]
    public async Task A_capture_sees_all_packets_and_ends_when_it_ends(string? link)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        Ping ping = Ping.Start(a, b);
        using (PacketCapture.Open(b, PacketCapture.ETH_P_ALL, link))
        {
            await lab.UntilAsync("both are on netfront", () => Fallen(b, a), Soon);
            Assert.Contains("captures", Obstacle(b), StringComparison.Ordinal);
            long sent = Namespaces.SentByVif(lab.Host, b);
            int replies = ping.Replies;
            await lab.UntilAsync("replies", () => ping.Replies > replies + 50);
            Assert.True(Namespaces.SentByVif(lab.Host, b) >= sent + 50);
        }

        await lab.UntilAsync("the channel is back", () => lab.IsUp(a, b), Soon);
        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, summary);
    }

    [Fact]
    public async Task A_capture_that_begins_in_silence_sees_the_first_packets()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await Task.Delay(1500);
        using PacketCapture capture = PacketCapture.Open(a, PacketCapture.ETH_P_ALL, "eth0");
        Assert.True(lab.IsUp(a, b));
        await Ping.MustAsync(a, b, 20);
        await lab.UntilAsync("both are on netfront", () => Fallen(a, b), 0.5);
        await Ping.MustAsync(a, b);
        bool request = false;
        while (capture.TryRead() is { } frame)
        {
            request |= frame.Length > 34 && frame[23] == 1 && frame[34] == 8;
        }

        Assert.True(request);
    }

    [Fact]
    public async Task A_DHCP_client_s_capture_costs_no_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        // That of ISC dhclient, which keeps it for life: UDP to port 68.
        sock_filter[] filter =
        [
            new(0x28, 0, 0, 12), new(0x15, 0, 8, 0x800), new(0x30, 0, 0, 23), new(0x15, 0, 6, 17), new(0x28, 0, 0, 20), new(0x45, 4, 0, 0x1fff),
            new(0xb1, 0, 0, 14), new(0x48, 0, 0, 16), new(0x15, 0, 1, 68), new(6, 0, 0, uint.MaxValue), new(6, 0, 0, 0),
        ];
        using PacketCapture capture = PacketCapture.Open(a, PacketCapture.ETH_P_ALL, "eth0", filter);
        Ping ping = Ping.Start(a, b);
        await Task.Delay(2500);
        await ping.StopAsync();
        Assert.Null(Obstacle(a));
        Assert.True(lab.IsUp(a, b));
        Assert.Equal(session, lab.Session(a, b));
    }

    [Fact]
    public async Task A_TCX_program_that_comes_later_drops_what_it_would_drop()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        if (Divert(a) != "tcx")
        {
            return;
        }

        Ping ping = Ping.Start(a, b);
        await lab.UntilAsync("replies", () => ping.Replies > 20);
        using (Namespaces.Run(a, () => AttachTcx(Verdict(2))))
        {
            int replies = 0;
            await lab.UntilAsync("no replies", () => -replies + (replies = ping.Replies) == 0 && IsQuiet(ping), Soon);
        }

        int before = ping.Replies;
        long diverted = DaemonLab.Diverted(a, b);
        await lab.UntilAsync("replies again", () => ping.Replies > before + 50);
        await lab.UntilAsync("by the channel", () => DaemonLab.Diverted(a, b) > diverted + 50, Soon);
        Assert.Equal("tcx", Divert(a));
        await ping.StopAsync();

        static bool IsQuiet(Ping ping)
        {
            int before = ping.Replies;
            Thread.Sleep(200);
            return ping.Replies == before;
        }
    }

    [Fact]
    public async Task A_filter_is_met_and_a_divert_that_goes_with_clsact_comes_back()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        await MustAsync(a, "tc qdisc add dev eth0 clsact");
        Namespaces.Run(a, () => AddFilter(-1));
        await lab.UntilAsync("the divert is a filter, too", () => Divert(a) == "clsbpf", Soon);
        await DivertsAsync();

        await MustAsync(a, "tc qdisc del dev eth0 clsact");
        await DivertsAsync();
        // Again, and with it what Cilium's cleaning and others do: each interface.
        await MustAsync(b, "for d in $(ls /sys/class/net); do tc qdisc del dev $d clsact 2>/dev/null; done; true");
        await lab.UntilAsync("the channel closes", () => lab.CountMessages(b, "is not as it was made") > 0, Soon);
        await lab.ChannelUpAsync(a, b);
        await DivertsAsync();

        Namespaces.Run(a, () => AddFilter(2));
        (int exit, string output) = await a.RunAsync($"ping -c 3 -i 0.1 -W 0.2 {b.IPv4}");
        Assert.True(exit != 0, output);
        Assert.NotEqual(0ul, session);

        async Task DivertsAsync()
        {
            long diverted = DaemonLab.Diverted(a, b);
            Ping ping = Ping.Start(a, b);
            await lab.UntilAsync("packets are diverted", () => lab.IsUp(a, b) && DaemonLab.Diverted(a, b) > diverted + 50, Soon);
            await ping.StopAsync();
        }
    }

    [Fact]
    public async Task Eth0_that_goes_down_gets_nothing_and_comes_back()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await MustAsync(b, "ip link set eth0 down");
        // The guest itself finds it, or Dom0, whose port loses its carrier here: whoever is first.
        await lab.UntilAsync("the channel closes", () => !lab.IsUp(a, b), Soon);
        await MustAsync(b, "for i in $(seq 20); do ip link set eth0 up; ip link set eth0 down; done; ip link set eth0 up");
        await lab.ChannelUpAsync(a, b);
        Assert.InRange(lab.CountMessages(b, "stays on netfront while this lasts"), 0, 25);
    }

    [Fact]
    public async Task Frames_to_an_address_that_eth0_has_given_up_are_not_let_in()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await MustAsync(a, $"ip neigh replace {b.IPv4} lladdr {b.MacText} dev eth0 nud permanent");
        await Ping.MustAsync(a, b);
        await MustAsync(b, "ip link set eth0 address 02:00:00:00:00:99");
        await lab.UntilAsync("the channel closes", () => Fallen(b, a), Soon);
        Assert.Contains("02:00:00:00:00:99", Obstacle(b), StringComparison.Ordinal);
        (int exit, string output) = await a.RunAsync($"ping -c 5 -i 0.1 -W 0.3 {b.IPv4}");
        Assert.True(exit != 0 && output.Contains("100% packet loss", StringComparison.Ordinal), output);

        await MustAsync(b, $"ip link set eth0 address {b.MacText}");
        await lab.ChannelUpAsync(a, b);
        Assert.Null(Obstacle(b));
    }

    [Fact]
    public async Task A_rename_and_a_move_to_another_namespace_lose_the_channel_and_no_more()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await MustAsync(b, "ip link set eth0 name ens5 || { ip link set eth0 down; ip link set eth0 name ens5; ip link set ens5 up; }");
        await lab.UntilAsync("the status has the new name", () => Vif(b)?.GetProperty("interface").GetString() == "ens5", Soon);
        await lab.ChannelUpAsync(a, b);
        await MustAsync(b, "ip link set ens5 name eth0 || { ip link set ens5 down; ip link set ens5 name eth0; ip link set eth0 up; }");
        await lab.ChannelUpAsync(a, b);

        string inner = $"{b.NetNs}-inner";
        await NetNsAsync("add", inner);
        try
        {
            await MustAsync(b, $"ip link set eth0 netns {inner}");
            await lab.UntilAsync("the channel closes", () => Vif(b) is null && DaemonLab.State(a, b) is not "running", Soon);
            await MustAsync(b, $"ip -n {inner} link set eth0 netns {b.NetNs}");
            await MustAsync(b, $"ip addr add {b.IPv4}/24 dev eth0; ip link set eth0 up");
            await lab.ChannelUpAsync(a, b);
        }
        finally
        {
            await NetNsAsync("del", inner);
        }
    }

    [Fact]
    public async Task Checksums_that_eth0_must_not_leave_to_the_device_are_right_on_the_way()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        // Before there is a channel, and while there is one.
        Assert.False(await RightAsync());
        Namespaces.Run(a, () => SetFeature(0x17, on: false));
        await lab.UntilAsync("checksums are right", () => RightAsync().GetAwaiter().GetResult(), Soon);
        Assert.True(lab.IsUp(a, b));
        Namespaces.Run(a, () => SetFeature(0x17, on: true));
        await lab.UntilAsync("checksums are left to be filled in", () => !RightAsync().GetAwaiter().GetResult(), Soon);

        await MustAsync(a, "ip link set eth0 mtu 1400");
        await lab.UntilAsync("the TAP has the MTU", () => Namespaces.Run(a, () =>
        {
            using Links links = new();
            return links.FindLink("xl2.0")?.Mtu == 1400;
        }), Soon);
        Assert.True(lab.IsUp(a, b));
        // The kernel does not tell of these: they are found when there are packets.
        await MustAsync(a, "ip link set eth0 gso_max_size 20000 gso_max_segs 9");
        await Ping.MustAsync(a, b);
        await lab.UntilAsync("the TAP has the limits", () => Namespaces.Run(a, () =>
        {
            using Links links = new();
            return links.FindLink("xl2.0")?.Gso is { MaxSize: 20000, MaxSegments: 9 };
        }), Soon);
        Assert.True(lab.IsUp(a, b));

        async Task<bool> RightAsync()
        {
            // TCP leaves its checksums to the interface, whatever that can do; UDP looks first.
            using PacketCapture capture = PacketCapture.Open(b, PacketCapture.ETH_P_IP, "eth0");
            using Socket socket = Namespaces.Run(a, () => new Socket(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp));
            await Assert.ThrowsAsync<SocketException>(() => socket.ConnectAsync(new IPEndPoint(b.IPv4, 7777)));
            while (capture.TryRead() is { } frame)
            {
                if (frame.Length > 54 && frame[23] == 6 && BinaryPrimitives.ReadUInt16BigEndian(frame.AsSpan(36)) == 7777)
                {
                    return Sum(frame) == 0xFFFF;
                }
            }

            Assert.Fail("no SYN has arrived");
            return false;
        }
    }

    /// <summary>The TAP's kernel may leave the inner checksum to it, which the receiver looks for in the outer packet.</summary>
    [Fact]
    public async Task Connections_in_a_tunnel_go_by_the_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await MustAsync(a, $"ip link add vx0 type vxlan id 7 dstport 8472 dev eth0 local {a.IPv4} remote {b.IPv4}; ip addr add 192.0.2.1/24 dev vx0; ip link set vx0 up");
        await MustAsync(b, $"ip link add vx0 type vxlan id 7 dstport 8472 dev eth0 local {b.IPv4} remote {a.IPv4}; ip addr add 192.0.2.2/24 dev vx0; ip link set vx0 up");
        long diverted = DaemonLab.Diverted(a, b);
        TcpStream stream = TcpStream.Open(a, b, address: IPAddress.Parse("192.0.2.2"));
        await lab.UntilAsync("a megabyte arrives", () => stream.Bytes > 1_000_000);
        await stream.StopAsync();
        // A super-packet counts as one.
        Assert.InRange(DaemonLab.Diverted(a, b) - diverted, 16, long.MaxValue);
    }

    [Theory]
    [InlineData("ip link set xl2.0 down", "down")]
    [InlineData("ip link set xl2.0 name other", "other")]
    [InlineData("ip link set xl2.0 mtu 1000", "MTU")]
    [InlineData("tc qdisc del dev xl2.0 clsact", "filter")]
    [InlineData("tc qdisc replace dev xl2.0 root tbf rate 1mbit burst 32k latency 50ms", "tbf")]
    [InlineData("ip link add br9 type bridge && ip link set xl2.0 master br9", "port of br9")]
    public async Task A_TAP_that_somebody_changes_is_replaced(string command, string reason)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        await MustAsync(a, command);
        await lab.UntilAsync("the channel closes", () => lab.CountMessages(a, "is not as it was made") > 0, Soon);
        Assert.Contains(reason, lab[a].Output, StringComparison.Ordinal);
        await lab.ChannelUpAsync(a, b);
        Assert.NotEqual(session, lab.Session(a, b));
    }

    [Fact]
    public async Task Interfaces_that_come_and_go_and_what_is_flushed_cost_no_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        Ping ping = Ping.Start(a, b);
        TimeSpan before = DaemonLab.ProcessorTime(lab[b]);
        // Containers, as fast as ip can.
        await MustAsync(b, """
            for i in $(seq 150); do echo "link add ve$i type veth peer name vp$i"; echo "link set ve$i up"; done | ip -batch -
            for i in $(seq 150); do echo "link del ve$i"; done | ip -batch -
            """);
        Assert.InRange((DaemonLab.ProcessorTime(lab[b]) - before).TotalSeconds, 0, 1);
        foreach (LabGuest guest in new[] { a, b })
        {
            await MustAsync(guest, "iptables -F; ip neigh flush all; ip route flush cache; sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=0");
        }

        int replies = ping.Replies;
        await lab.UntilAsync("replies", () => ping.Replies > replies + 50);
        (int lost, _, string summary) = await ping.StopAsync();
        Assert.True(lost == 0, summary);
        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b));
    }

    private static bool Fallen(LabGuest obstructed, LabGuest peer) =>
        Obstacle(obstructed) is not null && DaemonLab.State(obstructed, peer) is "waiting" or "idle" && DaemonLab.State(peer, obstructed) is "waiting" or "idle";

    private static JsonElement? Vif(LabGuest guest) =>
        DaemonLab.Status(guest)?.GetProperty("vifs").EnumerateArray().Cast<JsonElement?>().FirstOrDefault();

    private static string? Obstacle(LabGuest guest) => Vif(guest)?.GetProperty("obstacle").GetString();

    private static string? Divert(LabGuest guest) => Vif(guest)?.GetProperty("divert").GetString();

    private static string LastError(LabGuest guest, LabGuest peer) =>
        DaemonLab.Channel(guest, peer) is { } channel && channel.TryGetProperty("last_error", out JsonElement error) ? error.GetString()! : "";

    private static async Task MustAsync(LabDomain domain, string command)
    {
        (int exit, string output) = await domain.RunAsync(command);
        Assert.True(exit == 0, $"{command}: {output}");
    }

    /// <summary>Outside of all domains, where each sees it.</summary>
    private static async Task NetNsAsync(string command, string name)
    {
        using LabProcess process = LabProcess.Start(null, [], "ip", "netns", command, name);
        await process.WaitForExitAsync();
        Assert.True(process.ExitCode == 0, process.Output);
    }

    private static SafeFd Verdict(int verdict) => Bpf.LoadClassifier("test", new BpfProgram().Move(BpfRegister.R0, verdict).Exit().ToArray());

    private static SafeFd AttachTcx(SafeFd program)
    {
        using Links links = new();
        using (program)
        {
            return Bpf.CreateTcxLink(program, links.FindLink("eth0")!.Index, BpfAttachType.BPF_TCX_EGRESS);
        }
    }

    private static int AddFilter(int verdict)
    {
        using Links links = new();
        using TrafficControl trafficControl = new();
        using SafeFd program = Verdict(verdict);
        int index = links.FindLink("eth0")!.Index;
        _ = trafficControl.AddClsact(index);
        trafficControl.AddBpfFilter(index, TcHook.Egress, 1, 1, program.Number, "test");
        return index;
    }

    /// <summary>As <c>ethtool -K eth0 tx on|off</c> with ETHTOOL_STXCSUM.</summary>
    private static unsafe int SetFeature(uint command, bool on)
    {
        using Socket socket = new(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp);
        uint* value = stackalloc uint[2] { command, on ? 1u : 0u };
        byte* request = stackalloc byte[40];
        new Span<byte>(request, 40).Clear();
        "eth0"u8.CopyTo(new Span<byte>(request, 16));
        *(uint**)(request + 16) = value;
        const int SIOCETHTOOL = 0x8946;
        return LibC.ioctl((int)socket.Handle, SIOCETHTOOL, request) == 0 ? 0 : throw new NativeException("ioctl(SIOCETHTOOL)", "eth0", LibC.errno);
    }

    /// <summary>The ones' complement sum over pseudo-header and TCP segment: 0xFFFF if the checksum in it is right.</summary>
    private static uint Sum(byte[] frame)
    {
        int length = BinaryPrimitives.ReadUInt16BigEndian(frame.AsSpan(16)) - 20;
        byte[] data = new byte[12 + length + (length & 1)];
        frame.AsSpan(26, 8).CopyTo(data);
        data[9] = 6;
        BinaryPrimitives.WriteUInt16BigEndian(data.AsSpan(10), (ushort)length);
        frame.AsSpan(34, length).CopyTo(data.AsSpan(12));
        uint sum = 0;
        for (int i = 0; i < data.Length; i += 2)
        {
            sum += BinaryPrimitives.ReadUInt16BigEndian(data.AsSpan(i));
        }

        while (sum > 0xFFFF)
        {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }

        return sum;
    }
}
