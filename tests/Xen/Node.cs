using System.Globalization;
using System.Text.Json;
using System.Text.RegularExpressions;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What names a channel at one of its ends: the vif there, the peer's domid and vif.</summary>
public readonly record struct PeerKey(int Vif, int Domid, int PeerVif);

/// <summary>What a guest's daemon says of somebody it was introduced to; the packets are those of the channel, if there is one.</summary>
public sealed record PeerStatus(PeerKey Key, string State, long Sent, long Received);

/// <summary>A guest and its daemon.</summary>
public sealed partial record Node(XenGuest Guest, XenLoopDaemon Daemon)
{
    public string Name => Guest.Name;

    public int Domid => Guest.Domid;

    public Task<CommandResult> RunAsync(string script, int seconds = 180) => Guest.RunAsync(script, TimeSpan.FromSeconds(seconds));

    /// <summary>Packets that went into the channel to the peer and came out of it here, since the channel was built.</summary>
    public async Task<(long Sent, long Received)> PacketsAsync(Node peer) =>
        await Daemon.PeerAsync(peer.Guest.Domid) is { } status && status.TryGetProperty("sent_packets", out var sent)
            ? (sent.GetInt64(), status.GetProperty("received_packets").GetInt64())
            : (0, 0);

    /// <summary>All that its daemon knows of.</summary>
    public async Task<PeerStatus[]> PeersAsync() => Peers(await Daemon.StatusAsync());

    /// <summary>The entries in what <c>xenloop status --json</c> printed.</summary>
    public static PeerStatus[] Peers(string status)
    {
        using JsonDocument document = JsonDocument.Parse(status);
        return Peers(document.RootElement);
    }

    private static PeerStatus[] Peers(JsonElement status) =>
    [
        .. from vif in status.GetProperty("vifs").EnumerateArray()
           from peer in vif.GetProperty("peers").EnumerateArray()
           let isUp = peer.TryGetProperty("sent_packets", out _)
           select new PeerStatus(
               new PeerKey(vif.GetProperty("vif").GetInt32(), peer.GetProperty("domid").GetInt32(), peer.GetProperty("vif").GetInt32()),
               peer.GetProperty("state").GetString()!,
               isUp ? peer.GetProperty("sent_packets").GetInt64() : 0,
               isUp ? peer.GetProperty("received_packets").GetInt64() : 0),
    ];

    /// <summary>Its kernel has complained of nothing, on all its lives.</summary>
    public async Task KernelIsWellAsync()
    {
        string console = await Guest.ConsoleLogAsync();
        Match complaint = Complaint().Match(console);
        Assert.False(complaint.Success, $"{Name}: {console[complaint.Index..Math.Min(console.Length, complaint.Index + 4000)]}");
    }

    [GeneratedRegex("BUG|Oops|Call Trace|WARNING")]
    private static partial Regex Complaint();

    /// <summary>Starts a ping that goes on until <see cref="StopPingAsync"/>.</summary>
    public async Task StartPingAsync(string address) =>
        (await RunAsync($"ping -i 0.1 {address} >/tmp/pings 2>&1 & echo $! >/tmp/pinging; sleep 0.5")).Check();

    /// <summary>Makes sure that the ping is being answered now, whatever was lost before, and ends it.</summary>
    public async Task PingsGoOnAsync() =>
        (await RunAsync("""
            before=$(grep -c 'bytes from' /tmp/pings)
            sleep 1
            kill -INT $(cat /tmp/pinging)
            [ $(grep -c 'bytes from' /tmp/pings) -ge $((before + 8)) ]
            """)).Check();

    /// <summary>Makes sure that the ping is being answered now and that each was answered, and ends it.</summary>
    /// <returns>How many.</returns>
    public async Task<int> StopPingAsync()
    {
        await PingsGoOnAsync();
        // Not ping's own percentage: the signal may come between a request and its answer.
        string[] counts = (await RunAsync("""
            while kill -0 $(cat /tmp/pinging) 2>/dev/null; do sleep 0.05; done
            sed -n 's/.*bytes from.*icmp_seq=\([0-9]*\) .*/\1/p' /tmp/pings | sort -un >/tmp/answered
            echo $(wc -l </tmp/answered) $(tail -n 1 /tmp/answered)
            """)).Check().Output.Split(' ');
        Assert.True(counts.Length == 2, $"no answers: {string.Join(' ', counts)}");
        int answered = int.Parse(counts[0], CultureInfo.InvariantCulture);
        Assert.Equal(int.Parse(counts[1], CultureInfo.InvariantCulture), answered);
        return answered;
    }
}
