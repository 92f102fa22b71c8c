using System.Text.RegularExpressions;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>Several classes, one host: booting eight guests is most of what it costs.</summary>
[CollectionDefinition(Name)]
public sealed class Neighbourhood : ICollectionFixture<NeighbourFixture>
{
    public const string Name = "Neighbourhood";
}

/// <summary>A host with two bridges and eight guests of both kinds, the last two on both bridges; daemons everywhere.</summary>
public sealed partial class NeighbourFixture : DaemonsFixture
{
    // Small rings: twenty channels are built over and over, and it is not throughput that is at stake here.
    public const string DaemonArguments = "--ring-kib 128";

    private const string Bridge0 = "xenbr0";
    private const string Bridge1 = "xenbr1";

    public NeighbourFixture()
        : base(new(), DaemonArguments, On("g1", GuestKind.Pvh, Bridge0), On("g2", GuestKind.Pv, Bridge0), On("g3", GuestKind.Pvh, Bridge0),
            On("g4", GuestKind.Pv, Bridge1), On("g5", GuestKind.Pvh, Bridge1), On("g6", GuestKind.Pv, Bridge1),
            On("g7", GuestKind.Pvh, Bridge0, Bridge1), On("g8", GuestKind.Pv, Bridge0, Bridge1))
    {
    }

    /// <summary>Whom a guest shares a bridge with: by its own vif, and with the interface there.</summary>
    public IEnumerable<(PeerKey Key, Node Peer)> Neighbours(Node guest) =>
        guest.Guest.Options.Vifs.SelectMany((vif, i) => On(vif.Bridge, i, guest));

    /// <summary>Whom a vif would have as neighbours on a bridge.</summary>
    public IEnumerable<(PeerKey Key, Node Peer)> On(string bridge, int vif, Node guest) =>
        from peer in Guests
        where peer != guest
        from peerVif in Enumerable.Range(0, peer.Guest.Options.Vifs.Count)
        where peer.Guest.Options.Vifs[peerVif].Bridge == bridge
        select (new PeerKey(vif, peer.Domid, peerVif), peer);

    /// <summary>Sends something to every neighbour of these guests until there is a channel to each, and to nobody else.</summary>
    public async Task ConvergeAsync(params IEnumerable<Node> guests)
    {
        await Task.WhenAll(guests.Select(async guest =>
        {
            (PeerKey Key, Node Peer)[] neighbours = [.. Neighbours(guest)];
            // One packet of either side is enough, and here each costs a process.
            IEnumerable<string> addresses = neighbours.Where(n => guest.Domid < n.Peer.Domid || !guests.Contains(n.Peer)).Select(n => n.Peer.Guest.Ipv4Of(n.Key.PeerVif));
            string status = (await guest.RunAsync($$"""
                for i in $(seq 60); do
                  xenloop status --json >/tmp/status
                  [ "$(grep -c '"state": "running"' /tmp/status)" != {{neighbours.Length}} ] || break
                  for address in {{string.Join(' ', addresses)}}; do ping -q -c 1 -W 1 $address >/dev/null; done
                  sleep 0.5
                done
                cat /tmp/status
                """)).Check().Output;
            if (!IsUp(Node.Peers(status)))
            {
                await EventuallyAsync(guest, "a channel to each neighbour", IsUp);
            }

            bool IsUp(PeerStatus[] peers) => Holds(peers, neighbours) && peers.All(p => p.State == "running");
        }));
    }

    /// <summary>Waits until a guest's daemon knows of these and of nobody else.</summary>
    public Task KnowsAsync(Node guest, IEnumerable<(PeerKey, Node)> neighbours) =>
        EventuallyAsync(guest, "entries for exactly its neighbours", peers => Holds(peers, neighbours));

    /// <summary>Waits until something holds of what a guest's daemon says of its peers.</summary>
    public async Task EventuallyAsync(Node guest, string what, Func<PeerStatus[], bool> holds)
    {
        PeerStatus[] peers = [];
        for (int i = 0; i < 50; i++)
        {
            peers = await guest.PeersAsync();
            if (holds(peers))
            {
                return;
            }

            await SleepAsync(0.2);
        }

        Assert.Fail($"{guest.Name} (domain {guest.Domid}) should have {what}, and has\n{string.Join('\n', (object[])peers)}\n"
            + $"--- its log\n{await guest.Daemon.LogAsync()}\n--- Dom0's log\n{await Dom0.LogAsync()}\n"
            + $"--- introductions\n{string.Join('\n', await IntroductionsAsync())}");
    }

    /// <summary>Gives Dom0 a configuration, or none, and has it read.</summary>
    /// <returns>Of <c>xenloop reload</c>; the output ends with the time at which it was done.</returns>
    public Task<CommandResult> ReloadAsync(string? configuration) => Host.RunAsync(
        $"""
        mkdir -p /etc/xenloop
        {(configuration is null ? $"rm -f {Configuration}" : $"cat >{Configuration} <<'END'\n{configuration}\nEND")}
        xenloop reload
        code=$?
        bash -c 'echo $EPOCHREALTIME'
        exit $code
        """);

    /// <summary>All introductions in XenStore, without calls, which come and go.</summary>
    public async Task<string[]> IntroductionsAsync()
    {
        string nodes = (await Host.RunAsync("for d in $(xenstore-list /local/domain); do xenstore-ls -f /local/domain/$d/xenloop 2>/dev/null; done; true")).Output;
        return [.. nodes.Split('\n', StringSplitOptions.RemoveEmptyEntries).Select(line => Call().Replace(line, "\""))];
    }

    private static bool Holds(PeerStatus[] peers, IEnumerable<(PeerKey Key, Node)> neighbours) =>
        peers.Select(p => p.Key).ToHashSet().SetEquals(neighbours.Select(n => n.Key));

    private static GuestOptions On(string name, GuestKind kind, params string[] bridges) =>
        new() { Name = name, Kind = kind, MemoryMiB = 256, Vifs = [.. bridges.Select(bridge => new GuestVif(bridge))] };

    [GeneratedRegex("(?<= = \"[^ ]+ [^ ]+ [^ ]+) [^\"]*\"")]
    private static partial Regex Call();
}
