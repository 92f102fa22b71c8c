using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Text;
using System.Text.Json;
using XenLoop.Lab;
using XenLoop.Protocol;
using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>A guest with a daemon, between two whose peers are hand-written: one is its listener, one its connector.</summary>
public sealed class HostileLab : IAsyncLifetime
{
    internal DaemonLab Lab { get; private set; } = null!;

    internal LabGuest Low { get; private set; } = null!;

    internal LabGuest Honest { get; private set; } = null!;

    internal LabGuest High { get; private set; } = null!;

    /// <summary>The smallest rings, which are soon full.</summary>
    internal void StartHonest() => Lab.Start(Honest, "--ring-kib", "128");

    public async Task InitializeAsync()
    {
        Lab = await DaemonLab.StartAsync();
        Low = await Lab.Host.AddGuestAsync("low");
        Honest = await Lab.Host.AddGuestAsync("honest");
        High = await Lab.Host.AddGuestAsync("high");
        StartHonest();
    }

    public async Task DisposeAsync() => await Lab.DisposeAsync();
}

/// <summary>
/// Peers that misbehave. The daemon survives, closes the channel, says why once, waits longer each time before it tries
/// again, and its traffic goes by the bridge.
/// </summary>
[Collection(DaemonTests.Name)]
public class DaemonHostilePeerTests(HostileLab hostile) : IClassFixture<HostileLab>
{
    // A listener tries again after 250 ms at first, then after 500 ms. (A little less: the clock it looks at is coarse.)
    private const int FirstBackoff = 220;
    private const int SecondBackoff = 470;

    // The pages of a control page and two of the smallest rings.
    private const int OneSet = 1 + (2 * 128 / 4);

    private readonly DaemonLab _lab = hostile.Lab;
    private readonly LabGuest _honest = hostile.Honest;
    private readonly int _pid = hostile.Lab[hostile.Honest].Pid;

    [Theory]
    [InlineData("a reference never granted", "EINVAL")]
    [InlineData("a port never opened", "EINVAL")]
    [InlineData("a ring page never granted", "EINVAL")]
    [InlineData("a version of the future", "speaks version 7")]
    [InlineData("a page without magic", "magic")]
    [InlineData("a page of another version", "version 9")]
    [InlineData("a page of another session", "session")]
    [InlineData("rings of no size", "ring of 0 bytes")]
    [InlineData("rings of an odd size", "ring of 131080 bytes")]
    [InlineData("rings of 2 GiB", "ring of 2147483648 bytes")]
    public async Task A_listener_that_offers_nonsense_is_refused(string what, string reason)
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.Low, _honest);
        int messages = CountMessages(reason);
        for (int attempt = 0; attempt < 2; attempt++)
        {
            OfferNonsense(peer, what);
            await _lab.UntilAsync("the connector refuses", () => peer.OtherSays is { Phase: ChannelPhase.Closed } other && other.Session == peer.Session);
            Assert.Contains(reason, peer.OtherSays!.Value.Reason, StringComparison.Ordinal);
            Assert.Equal(default, _lab.Held(_honest));
            Assert.Equal(1, CountMessages(reason) - messages);
        }

        // It comes to its senses.
        await peer.ListenAsync();
        await AliveAsync(peer, hostile.Low);
    }

    [Theory]
    [InlineData("producer index beyond the ring", "producer index")]
    [InlineData("producer index between two records", "producer index")]
    [InlineData("consumer index never produced", "consumer index")]
    [InlineData("record of no bytes", "record of 0 bytes")]
    [InlineData("record longer than any", "record of 4294967295 bytes")]
    [InlineData("record longer than what is there", "record of 1000 bytes")]
    [InlineData("frame without its header", "frame of 20 bytes")]
    [InlineData("forged source", "MAC address")]
    [InlineData("broadcast source", "MAC address")]
    [InlineData("foreign destination", "MAC address")]
    public async Task A_connector_that_breaks_the_rules_of_the_ring_is_cut_off(string how, string reason)
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        int messages = CountMessages(reason);
        for (int attempt = 0; attempt < 2; attempt++)
        {
            await peer.ConnectAsync();
            long datagrams = Namespaces.StrayDatagrams(_honest);
            peer.Put(peer.Datagram());
            peer.Notify();
            await _lab.UntilAsync("an honest datagram arrives", () => Namespaces.StrayDatagrams(_honest) == datagrams + 1);

            Stopwatch backoff = Stopwatch.StartNew();
            BreakRules(peer, how);
            peer.Notify();
            await _lab.UntilAsync("the channel is closed", () => peer.OtherSays is { Phase: not ChannelPhase.Connected });
            Assert.Equal(datagrams + 1, Namespaces.StrayDatagrams(_honest));
            await peer.ListenerAsync();
            Assert.InRange(backoff.ElapsedMilliseconds, attempt == 0 ? FirstBackoff : SecondBackoff, 10_000);
            Assert.True(CountMessages(reason) - messages == 1, _lab.Messages());
        }

        await AliveAsync(peer, hostile.High);
    }

    [Theory]
    [InlineData("connected {0}")]
    [InlineData("connected {0} 7 0")]
    [InlineData("closed {0} no pages\nnext line")]
    [InlineData("closing {0}")]
    [InlineData("listening {0} 1 0 8 1")]
    public async Task A_connector_that_answers_nonsense_gets_no_channel(string answer)
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        Stopwatch? backoff = null;
        for (int attempt = 0; attempt < 3; attempt++)
        {
            await peer.ListenerAsync();
            Assert.InRange(backoff?.ElapsedMilliseconds ?? 0, attempt switch { 0 => 0, 1 => FirstBackoff, _ => SecondBackoff }, 8000);
            ulong session = peer.OtherSays!.Value.Session;
            backoff = Stopwatch.StartNew();
            peer.Say(string.Format(null, answer, session.ToString("x16", null)));
            await _lab.UntilAsync("the listener gives up", () => peer.OtherClosed);
            // It cannot know that the peer has mapped nothing.
            BrokerUsage usage = _lab.Host.Broker.Count(_honest.Domid);
            Assert.InRange(usage.PagesGranted, 0, OneSet);
            Assert.Equal(0, usage.Ports);
        }

        await peer.ConnectAsync();
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task Garbage_in_channel_nodes_and_offers_is_survived()
    {
        using HandPeer connector = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        using HandPeer listener = await HandPeer.StartAsync(_lab, hostile.Low, _honest);
        await connector.ConnectAsync();
        Random random = new(Seed: 11);
        string[] words = ["listening", "connected", "closing", "closed", "", "open", "listening\0", new string('x', 1500)];
        string[] fields = ["0", "1", "-1", "ffffffffffffffff", "0000000000000001", "4294967296", "", " ", "é", "\n", "99999999999999999999"];
        for (int i = 0; i < 400; i++)
        {
            StringBuilder text = new(words[random.Next(words.Length)]);
            if (random.Next(3) == 0)
            {
                text.Append(null, $" {connector.OtherSays?.Session ?? 0:x16}");
            }

            for (int field = random.Next(8); field > 0; field--)
            {
                text.Append(' ').Append(fields[random.Next(fields.Length)]);
            }

            HandPeer peer = random.Next(2) == 0 ? connector : listener;
            if (random.Next(4) == 0)
            {
                peer.Offer(text.ToString());
            }
            else
            {
                peer.Say(text.ToString());
            }
        }

        Assert.False(_lab[_lab.Dom0].HasExited, _lab.Messages());
        await connector.LeaveAsync();
        await listener.LeaveAsync();
        using HandPeer again = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await again.ConnectAsync();
        await AliveAsync(again, hostile.High);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_flood_of_events_is_answered_by_closing(bool stalled)
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        if (stalled)
        {
            await StallAsync(peer);
        }

        TimeSpan before = DaemonLab.ProcessorTime(_lab[_honest]);
        long sleeps = DaemonLab.Sleeps(_lab[_honest]);
        Stopwatch watch = Stopwatch.StartNew();
        bool closed = false;
        while (watch.ElapsedMilliseconds < 2000)
        {
            peer.Notify();
            if (!closed && watch.ElapsedMilliseconds % 50 == 0)
            {
                closed = peer.OtherSays is { Phase: not ChannelPhase.Connected };
            }
        }

        // A daemon that other programs keep from running wakes up too seldom to call it a flood.
        Assert.True(closed || DaemonLab.Sleeps(_lab[_honest]) - sleeps < 2500, $"{DaemonLab.Sleeps(_lab[_honest]) - sleeps} times woken\n{_lab.Messages()}");
        Assert.InRange((DaemonLab.ProcessorTime(_lab[_honest]) - before).TotalSeconds, 0, 1);
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task A_flood_of_events_that_each_take_a_few_bytes_is_answered_by_closing()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        await StallAsync(peer);
        long sleeps = DaemonLab.Sleeps(_lab[_honest]);
        Stopwatch watch = Stopwatch.StartNew();
        bool closed = false;
        // More than it takes to get to the half that is worth an event.
        for (uint taken = 0; !closed && taken + 8 < peer.RingBytes - RingRecord.MaxBytes && watch.ElapsedMilliseconds < 4000; taken += 8)
        {
            Take8();
            peer.Notify();
            Thread.SpinWait(1000);
            closed = taken % 512 == 0 && peer.OtherSays is { Phase: not ChannelPhase.Connected };
        }

        await Task.Delay(50);
        closed |= peer.OtherSays is { Phase: not ChannelPhase.Connected };
        Assert.True(closed || DaemonLab.Sleeps(_lab[_honest]) - sleeps < 2500, $"{DaemonLab.Sleeps(_lab[_honest]) - sleeps} times woken\n{_lab.Messages()}");
        await AliveAsync(peer, hostile.High);

        unsafe void Take8() => Volatile.Write(ref peer.Consumed->Index, peer.Consumed->Index + 8);
    }

    [Fact]
    public async Task A_flood_of_frames_that_are_refused_is_answered_by_closing()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        byte[] frame = peer.Datagram();
        // A checksum to be filled in, of what is neither TCP nor UDP.
        (frame[0], frame[10 + 14 + 9]) = (1, 132);
        Stopwatch watch = Stopwatch.StartNew();
        while (watch.ElapsedMilliseconds < 5000 && peer.OtherSays is { Phase: ChannelPhase.Connected })
        {
            peer.Fill(frame);
            peer.Notify();
        }

        Assert.True(peer.OtherSays is not { Phase: ChannelPhase.Connected }, _lab.Messages());
        Assert.True(CountMessages("frames a second that the kernel refuses") > 0, _lab.Messages());
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task A_node_that_changes_all_the_time_costs_little()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        int reads = 0, writes = 0;
        _lab.XenStore.Observer = (domid, _, done) =>
        {
            reads += domid == _honest.Domid && !done ? 1 : 0;
            return true;
        };
        TimeSpan before = DaemonLab.ProcessorTime(_lab[_honest]);
        Stopwatch watch = Stopwatch.StartNew();
        for (; watch.ElapsedMilliseconds < 3000; writes++)
        {
            peer.Say(ChannelPhase.Connected);
        }

        _lab.XenStore.Observer = null;
        double seconds = watch.Elapsed.TotalSeconds;
        Assert.True(writes / seconds > 500, $"{writes / seconds:f0} writes a second are no flood");
        Assert.InRange(reads / seconds, 0, 200);
        Assert.InRange((DaemonLab.ProcessorTime(_lab[_honest]) - before).TotalSeconds / seconds, 0, 0.15);
        // What it says last is heard.
        peer.Say(ChannelPhase.Closing);
        await _lab.UntilAsync("the listener closes", () => peer.OtherSays is { Phase: not ChannelPhase.Connected });
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task A_connector_that_never_finishes_the_close_is_waited_for_two_seconds()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        peer.Say(ChannelPhase.Closing);
        await _lab.UntilAsync("the listener closes", () => peer.OtherSays?.Phase == ChannelPhase.Closing);
        Stopwatch watch = Stopwatch.StartNew();
        await Ping.MustAsync(_honest, hostile.High);
        await _lab.UntilAsync("the listener waits no longer", () => peer.OtherClosed);
        Assert.InRange(watch.ElapsedMilliseconds, 1500, 10_000);
        Assert.Equal(0, _lab.Host.Broker.Count(_honest.Domid).Ports);
        await peer.ConnectAsync();
        await AliveAsync(peer, hostile.High);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task A_peer_that_never_unmaps_gets_the_same_pages_again_and_again_whatever_it_says(bool saysClosed)
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        List<BrokerUsage> usages = [];
        for (int round = 0; round < 10; round++)
        {
            await peer.ConnectAsync();
            usages.Add(_lab.Host.Broker.Count(_honest.Domid));
            await peer.AbandonAsync(saysClosed);
        }

        Assert.All(usages, u => Assert.InRange(u.PagesGranted + u.PagesLingering, OneSet, OneSet));
        await _lab.UntilAsync("the channel is forgotten", () => DaemonLab.Status(_honest)!.Value.GetProperty("kept_memory_bytes").GetInt64() == 2 * 128 * 1024);
        // It lets go of everything. Nobody knows.
        await AliveAsync(peer, hostile.High);
        Assert.Equal(OneSet, DaemonLab.Status(_honest)!.Value.GetProperty("kept_grants").GetInt32());
    }

    [Theory]
    [InlineData(3)]
    [InlineData(5)]
    [InlineData(255)]
    public async Task A_super_packet_of_a_kind_that_nobody_agreed_on_ends_the_channel(byte kind)
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        byte[] frame = peer.Datagram();
        (frame[0], frame[1], frame[4]) = (1, kind, 4);
        peer.Put(frame);
        peer.Notify();
        // Not by the log, where a failure that differs from the last by its numbers is no news.
        await _lab.UntilAsync("the channel is closed", () => DaemonLab.Channel(_honest, hostile.High) is { } channel
            && channel.TryGetProperty("last_error", out JsonElement error) && error.GetString()!.Contains($"super-packet of kind {kind}", StringComparison.Ordinal));
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task A_peer_answers_at_length_and_is_quoted_briefly()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        int before = _lab[_honest].Output.Length;
        for (int attempt = 0; attempt < 3; attempt++)
        {
            await peer.ListenerAsync();
            peer.Say($"closed {peer.OtherSays!.Value.Session:x16} {new string('\u00e9', 20)}{attempt} {new string('x', 1800)}");
            await _lab.UntilAsync("the listener gives up", () => peer.OtherClosed);
            Assert.InRange(_lab.XenStore.Read(DaemonLab.ChannelNode(_honest, hostile.High))?.Length ?? 0, 0, 200);
        }

        Assert.InRange(_lab[_honest].Output.Length - before, 0, 3 * 400);
        await peer.ConnectAsync();
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task A_peer_that_answers_nothing_does_not_keep_the_daemon_from_ending()
    {
        using HandPeer connector = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        using HandPeer listener = await HandPeer.StartAsync(_lab, hostile.Low, _honest);
        await connector.ConnectAsync();
        await listener.ListenAsync();
        Assert.Equal(0, await _lab.StopAsync(_honest));
        Assert.Empty(Namespaces.Traces(_honest));
        Assert.Null(_lab.XenStore.Read($"{_honest.Home}/data/xenloop"));
        hostile.StartHonest();
        await _lab.UntilAsync("the daemon is back", () => DaemonLab.Status(_honest) is not null);
    }

    [Fact]
    public async Task A_peer_that_never_empties_its_ring_gets_its_packets_by_the_bridge()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        await StallAsync(peer);
        Stopwatch watch = Stopwatch.StartNew();
        TimeSpan before = DaemonLab.ProcessorTime(_lab[_honest]);
        long diverted = DaemonLab.Diverted(_honest, hostile.High);
        await Ping.MustAsync(_honest, hostile.High, 50);
        Assert.Equal(diverted, DaemonLab.Diverted(_honest, hostile.High));
        Assert.InRange((DaemonLab.ProcessorTime(_lab[_honest]) - before) / watch.Elapsed, 0, 0.2);

        // It wakes up, and is trusted again.
        Assert.True(peer.Take() > 0);
        await _lab.UntilAsync("packets are diverted again", () =>
        {
            peer.Take();
            return DaemonLab.State(_honest, hostile.High) == "running";
        });
        Assert.NotEqual(0, (await _honest.RunAsync($"ping -c 1 -W 0.05 {hostile.High.IPv4}")).ExitCode);
        Assert.True(DaemonLab.Diverted(_honest, hostile.High) > diverted);
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task What_waits_in_the_TAP_is_sent_before_the_close()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        long before = DaemonLab.Diverted(_honest, hostile.High);
        await StallAsync(peer);
        long diverted = DaemonLab.Diverted(_honest, hostile.High) - before;

        // There is room in the ring only after the close has begun.
        peer.Say(ChannelPhase.Closing);
        int taken = 0;
        await _lab.UntilAsync("the daemon has said everything", () =>
        {
            bool closing = peer.OtherSays?.Phase == ChannelPhase.Closing;
            taken += peer.Take();
            return closing;
        });
        Assert.Equal(diverted, taken);
        await AliveAsync(peer, hostile.High);
    }

    [Fact]
    public async Task An_index_that_is_wrong_only_when_the_close_looks_at_it_ends_the_channel_alone()
    {
        using HandPeer peer = await HandPeer.StartAsync(_lab, hostile.High, _honest);
        await peer.ConnectAsync();
        await StallAsync(peer);
        Break();
        peer.Say(ChannelPhase.Closing);
        await _lab.UntilAsync("the channel is closed", () => peer.OtherClosed || _lab[_honest].HasExited);
        await AliveAsync(peer, hostile.High);

        unsafe void Break() => peer.Consumed->Index = 0x4000_0000;
    }

    /// <summary>The daemon lives, its traffic flows by whichever way, and it forgets the peer when that is withdrawn.</summary>
    private async Task AliveAsync(HandPeer peer, LabGuest guest)
    {
        await peer.LeaveAsync();
        await Ping.MustAsync(_honest, guest);
        Assert.False(_lab[_honest].HasExited, _lab.Messages());
        Assert.Equal(_pid, DaemonLab.Status(_honest)!.Value.GetProperty("pid").GetInt32());
        await _lab.UntilAsync("nothing is kept", () => _lab.Held(_honest) == default);
        Assert.Equal("none", DaemonLab.State(_honest, guest));
    }

    private int CountMessages(string text) => _lab.CountMessages(_honest, text);

    /// <summary>Sends what nobody takes out of the ring, until the daemon sees that nobody does.</summary>
    private async Task StallAsync(HandPeer peer)
    {
        using Socket socket = Namespaces.Run(_honest, () => new Socket(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp));
        IPEndPoint discard = new(hostile.High.IPv4, 9);
        byte[] datagram = new byte[1400];
        // More than the ring holds, and no more than ring and TAP hold together.
        for (int i = 0; i < 200; i++)
        {
            socket.SendTo(datagram, discard);
        }

        await _lab.UntilAsync("the daemon sees that the peer is stuck", () => DaemonLab.State(_honest, hostile.High) == "stalled");
        Assert.True(IsFull());

        unsafe bool IsFull() => peer.Page->Producer0.Index > peer.RingBytes - RingRecord.MaxBytes;
    }

    private static unsafe void OfferNonsense(HandPeer peer, string what)
    {
        peer.Grant(page =>
        {
            switch (what)
            {
                case "a ring page never granted":
                    page->RingReferences[3] = 77_777_777;
                    break;
                case "a page without magic":
                    page->Magic = 0;
                    break;
                case "a page of another version":
                    page->Version = 9;
                    break;
                case "a page of another session":
                    page->Session ^= 1;
                    break;
                case "rings of no size":
                    page->RingBytes = 0;
                    break;
                case "rings of an odd size":
                    page->RingBytes += 8;
                    break;
                case "rings of 2 GiB":
                    page->RingBytes = 1u << 31;
                    break;
            }
        });
        uint reference = what == "a reference never granted" ? 77_777_777 : peer.GrantReference;
        uint port = what == "a port never opened" ? 77_777_777 : peer.Port;
        int version = what == "a version of the future" ? 7 : 1;
        peer.Say($"listening {peer.Session:x16} {version} 0 {reference} {port}");
    }

    private static unsafe void BreakRules(HandPeer peer, string how)
    {
        uint index = peer.Produced->Index;
        uint* next = (uint*)(peer.Data + (index % peer.RingBytes));
        byte[] frame = peer.Datagram();
        Span<byte> destination = frame.AsSpan(10, 6), source = frame.AsSpan(16, 6);
        switch (how)
        {
            case "producer index beyond the ring":
                Volatile.Write(ref peer.Produced->Index, index + peer.RingBytes + 8);
                break;
            case "producer index between two records":
                Volatile.Write(ref peer.Produced->Index, index + 20);
                break;
            case "consumer index never produced":
                Volatile.Write(ref peer.Consumed->Index, 0x4000_0000);
                break;
            case "record of no bytes":
                *next = 0;
                Volatile.Write(ref peer.Produced->Index, index + 64);
                break;
            case "record longer than any":
                *next = uint.MaxValue;
                Volatile.Write(ref peer.Produced->Index, index + 64);
                break;
            case "record longer than what is there":
                *next = 1000;
                Volatile.Write(ref peer.Produced->Index, index + 64);
                break;
            case "frame without its header":
                peer.Put(frame[..20]);
                break;
            case "forged source":
                source[5] ^= 1;
                peer.Put(frame);
                break;
            case "broadcast source":
                source.Fill(0xff);
                peer.Put(frame);
                break;
            case "foreign destination":
                destination[5] ^= 1;
                peer.Put(frame);
                break;
            default:
                throw new ArgumentException(how);
        }
    }
}
