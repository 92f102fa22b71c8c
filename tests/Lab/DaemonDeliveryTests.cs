using Tmds.Linux;
using XenLoop.Interop.Linux;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>
/// What is diverted arrives, or goes by the bridge: whatever somebody does to a channel's TAP, however fast a sender is, and
/// though a daemon stands still for a while.
/// </summary>
[Collection(DaemonTests.Name)]
public class DaemonDeliveryTests(ITestOutputHelper output)
{
    private const double LongestGapSeconds = 1;

    private static readonly BpfInstruction[] _drop = new BpfProgram().Move(BpfRegister.R0, 2).Exit().ToArray();

    [Theory]
    [InlineData("receiver: all filters are deleted", "do not arrive at the vif")]
    [InlineData("receiver: a filter before ours", "do not arrive at the vif")]
    [InlineData("receiver: a program before all filters", "do not arrive at the vif")]
    [InlineData("receiver: set down", "set the TAP down")]
    [InlineData("receiver: moved", "set the TAP down")]
    [InlineData("sender: a program", "do not come to its queue")]
    [InlineData("sender: a filter", "do not come to its queue")]
    [InlineData("sender: a qdisc that keeps everything", "do not come to its queue")]
    [InlineData("sender: set down", "set the TAP down")]
    [InlineData("sender: moved", "set the TAP down")]
    public async Task A_TAP_that_somebody_changes_costs_under_a_second(string what, string reason)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        LabGuest victim = what.StartsWith("sender", StringComparison.Ordinal) ? a : b;
        Ping ping = Ping.Start(a, b, interval: 0.02);
        await lab.UntilAsync("replies", () => ping.Replies > 20);

        using IDisposable? held = await ChangeAsync(lab, victim, victim == a ? b : a, what);
        await lab.UntilAsync(
            () => $"another channel, by the traffic that goes on; states {DaemonLab.State(a, b)}, {DaemonLab.State(b, a)}",
            () => lab.IsUp(a, b) && lab.Session(a, b) != session);
        long diverted = DaemonLab.Diverted(a, b);
        int replies = ping.Replies;
        await lab.UntilAsync("replies by the channel", () => ping.Replies > replies + 20 && DaemonLab.Diverted(a, b) > diverted + 10);

        (int lost, double gap, string summary) = await ping.StopAsync();
        output.WriteLine($"{what}: {lost} lost, longest gap {gap:f3} s; {summary}");
        Assert.True(gap < LongestGapSeconds, $"{gap} s without a reply; {summary}\n{lab.Messages()}");
        // The kernel tells the daemon of most changes, which may be before a packet is missed.
        Assert.True(lab.CountMessages(victim, reason) + lab.CountMessages(victim, "is not as it was made") > 0, lab.Messages());
    }

    [Fact]
    public async Task A_stream_that_nobody_answers_is_not_lost_in_the_senders_TAP()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        const int PerSecond = 500;
        NumberedDatagrams stream = NumberedDatagrams.Start(a, b, perSecond: PerSecond);
        await lab.UntilAsync("datagrams", () => stream.Received > 100);

        using IDisposable? held = await ChangeAsync(lab, a, b, "sender: a program");
        await lab.UntilAsync("another channel, though nothing wakes the sender's daemon", () => lab.IsUp(a, b) && lab.Session(a, b) != session);
        DatagramAccount account = await stream.StopAsync();
        output.WriteLine(account.ToString());
        Assert.InRange(account.Lost, 1, PerSecond);
    }

    [Theory]
    [InlineData(32 * 1024)]
    [InlineData(1400)]
    public async Task A_sender_that_nobody_paces_is_not_robbed(int bytes)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        NumberedDatagrams stream = NumberedDatagrams.Start(a, b, bytes, perSecond: 0);
        await Task.Delay(1500);
        DatagramAccount account = await stream.StopAsync();
        output.WriteLine($"{account}; {await Dropped(a, b)} dropped by the TAP");

        Assert.Equal("0", await Dropped(a, b));
        Assert.Equal("0", await Dropped(b, a));
        Assert.Equal(0, account.Twice);
        // Datagrams of many fragments go on at once, of which the flood has left nothing behind.
        (int exit, string said) = await a.RunAsync($"ping -q -c 5 -i 0.05 -s 4000 -W 1 {b.IPv4}");
        Assert.True(exit == 0 && said.Contains(" 0% packet loss", StringComparison.Ordinal), said);

        static async Task<string> Dropped(LabGuest guest, LabGuest peer) =>
            (await guest.RunAsync($"cat /sys/class/net/xl{peer.Domid}.0/statistics/tx_dropped")).Output.Trim();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task What_a_daemon_that_stood_still_has_let_others_overtake_is_thrown_away(bool sender)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        const int PerSecond = 3000;
        NumberedDatagrams stream = NumberedDatagrams.Start(a, b, perSecond: PerSecond);
        await lab.UntilAsync("datagrams", () => stream.Received > PerSecond / 2);
        lab[sender ? a : b].Signal(LibC.SIGSTOP);
        await Task.Delay(400);
        lab[sender ? a : b].Signal(LibC.SIGCONT);
        long diverted = DaemonLab.Diverted(a, b);
        await lab.UntilAsync("datagrams by the channel again", () => DaemonLab.Diverted(a, b) > diverted + 100);
        DatagramAccount account = await stream.StopAsync();
        output.WriteLine(account.ToString());

        Assert.Equal(session, lab.Session(a, b));
        Assert.True(account.Lateness < PerSecond / 50, $"{account}");
        Assert.InRange(account.Lost, 1, PerSecond * 3 / 10);
        Assert.Equal(0, account.Twice);
        Assert.Equal(account.Lost, (DaemonLab.Channel(sender ? a : b, sender ? b : a)?.GetProperty("discarded_packets").GetInt64()));
    }

    [Fact]
    public async Task What_nothing_has_overtaken_is_delivered_however_late()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        lab[b].Signal(LibC.SIGSTOP);
        Task<(int Exit, string Output)> pinging = a.RunAsync($"ping -c 1 -W 5 {b.IPv4}");
        await lab.UntilAsync("the peer is found to take nothing", () => DaemonLab.State(a, b) == "stalled");
        await Task.Delay(100);
        lab[b].Signal(LibC.SIGCONT);
        (int exit, string output) = await pinging;
        Assert.True(exit == 0, output);
        Assert.Equal(0, DaemonLab.Channel(b, a)?.GetProperty("discarded_packets").GetInt64());
    }

    [Fact]
    public async Task What_is_overtaken_long_after_the_peer_stood_still_is_thrown_away()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.Host.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        lab.StartWith(a, "");
        await lab.ChannelUpAsync(a, b);
        // A ping is no demand any more, which would have the sender look.
        await lab.ReloadAsync(a, "[guest]\npackets-per-second = 1000000\n");
        lab[b].Signal(LibC.SIGSTOP);
        await a.RunAsync($"ping -c 1 -W 1 {b.IPv4}");
        await lab.UntilAsync("the peer is found to take nothing", () => DaemonLab.State(a, b) == "stalled");
        await Task.Delay(200);
        await a.RunAsync($"ping -c 1 -W 1 {b.IPv4}"); // by eth0
        lab[b].Signal(LibC.SIGCONT);
        await lab.UntilAsync("the peer takes again", () => DaemonLab.State(a, b) == "running");
        Assert.Equal(1, DaemonLab.Channel(b, a)?.GetProperty("discarded_packets").GetInt64());
    }

    [Fact]
    public async Task Frames_that_others_put_on_the_TAP_go_nowhere()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        long sent = Sent(lab);
        // From another address to the peer's, as arping -I or a daemon that speaks on every interface would; and to somebody else.
        byte[] own = a.Mac.GetAddressBytes(), peer = b.Mac.GetAddressBytes(), stranger = [2, 0, 0, 0, 0, 9];
        for (int i = 0; i < 5; i++)
        {
            Assert.False(TrySend(a, $"xl{b.Domid}.0", [.. peer, .. stranger, 0x88, 0xb5, .. new byte[46]]));
            Assert.False(TrySend(a, $"xl{b.Domid}.0", [.. stranger, .. own, 0x88, 0xb5, .. new byte[46]]));
        }

        await Ping.MustAsync(a, b, count: 3);
        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b), lab.Messages());
        Assert.InRange(Sent(lab) - sent, 3, 9);

        static long Sent(DaemonLab lab) => DaemonLab.Channel(lab.Pair.A, lab.Pair.B)!.Value.GetProperty("sent_packets").GetInt64();
    }

    [Fact]
    public async Task An_address_that_a_TAP_gets_is_taken_away_and_told_once()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        string tap = $"xl{b.Domid}.0";
        Ping ping = Ping.Start(a, b, interval: 0.02);
        // As IPv4LL, DHCP and router advertisements would.
        string[] addresses = ["169.254.7.7/16 scope link", $"{a.IPv4}/24", "2001:db8::7/64 nodad"];
        foreach (string address in addresses)
        {
            (int exit, string said) = await a.RunAsync($"sysctl -qw net.ipv6.conf.{tap.Replace('.', '/')}.disable_ipv6=0; ip address add {address} dev {tap}");
            Assert.True(exit == 0, said);
            await lab.UntilAsync($"{address} is gone", () => a.RunAsync($"ip -o address show dev {tap}").Result.Output.Length == 0, seconds: 5);
        }

        Assert.Equal(1, lab.CountMessages(a, $"{tap} is no interface of this guest's own"));
        await lab.UntilAsync("replies", () => ping.Replies > 20);
        (_, double gap, string summary) = await ping.StopAsync();
        Assert.True(gap < LongestGapSeconds, $"{gap} s without a reply; {summary}\n{lab.Messages()}");
        await Ping.MustAsync(a, b, count: 3);
    }

    /// <summary>Sends a frame on an interface of a guest; false when that drops it.</summary>
    private static unsafe bool TrySend(LabGuest guest, string device, byte[] frame) => Namespaces.Run(guest, () =>
    {
        const int AF_PACKET = 17;
        using Links links = new();
        // struct sockaddr_ll: family, protocol, index, and what does not matter here.
        byte* address = stackalloc byte[20];
        new Span<byte>(address, 20).Clear();
        *(ushort*)address = AF_PACKET;
        *(int*)(address + 4) = links.FindLink(device)!.Index;
        using SafeFd socket = new(LibC.socket(AF_PACKET, LibC.SOCK_RAW | LibC.SOCK_CLOEXEC, 0));
        Assert.Equal(0, LibC.bind(socket.Number, (sockaddr*)address, 20));
        fixed (byte* pointer = frame)
        {
            return LibC.send(socket.Number, pointer, frame.Length, 0) == frame.Length;
        }
    });

    /// <summary>Does to a guest's TAP what a tool or an administrator might.</summary>
    private static async Task<IDisposable?> ChangeAsync(DaemonLab lab, LabGuest guest, LabGuest peer, string what)
    {
        string tap = $"xl{peer.Domid}.0";
        switch (what)
        {
            case "receiver: all filters are deleted":
                return await RunAsync($"tc qdisc del dev {tap} clsact");
            case "receiver: a filter before ours":
                return AddFilter(TcHook.Ingress);
            case "receiver: a program before all filters" or "sender: a program":
                // Of a TCX link nobody is told.
                bool sender = what.StartsWith("sender", StringComparison.Ordinal);
                return Environment.OSVersion.Version < new Version(6, 6) ? AddFilter(sender ? TcHook.Egress : TcHook.Ingress) : Namespaces.Run(guest, () =>
                {
                    using SafeFd program = Bpf.LoadClassifier("drop", _drop);
                    using Links links = new();
                    return Bpf.CreateTcxLink(program, links.FindLink(tap)!.Index, sender ? BpfAttachType.BPF_TCX_EGRESS : BpfAttachType.BPF_TCX_INGRESS);
                });
            case "receiver: set down" or "sender: set down":
                return await RunAsync($"ip link set {tap} down");
            case "receiver: moved" or "sender: moved":
                return await RunAsync($"ip link set {tap} netns {lab.Dom0.NetNs}");
            case "sender: a filter":
                return AddFilter(TcHook.Egress);
            case "sender: a qdisc that keeps everything":
                return await RunAsync($"tc qdisc replace dev {tap} root tbf rate 8bit burst 1500 limit 100");
            default:
                throw new ArgumentOutOfRangeException(nameof(what));
        }

        async Task<IDisposable?> RunAsync(string command)
        {
            (int exit, string said) = await guest.RunAsync(command);
            Assert.True(exit == 0, said);
            return null;
        }

        IDisposable? AddFilter(TcHook hook) => Namespaces.Run(guest, () =>
        {
            using SafeFd program = Bpf.LoadClassifier("drop", _drop);
            using Links links = new();
            using TrafficControl trafficControl = new();
            int index = links.FindLink(tap)!.Index;
            _ = trafficControl.AddClsact(index);
            trafficControl.AddBpfFilter(index, hook, 1, 1, program.Number, "drop");
            return (IDisposable?)null;
        });
    }
}
