using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>A guest whose daemon is killed at one of its requests.</summary>
/// <param name="Guest">Its guest.</param>
/// <param name="Listener">Its role towards the hub; else it connects.</param>
/// <param name="Moment">When it is killed.</param>
/// <param name="Before">What the guest held before there was a daemon.</param>
internal sealed record Victim(LabGuest Guest, bool Listener, Moment Moment, GuestUsage Before)
{
    public static string RoleName(bool listener) => listener ? "listener" : "connector";

    public override string ToString() => $"{Guest.Name} ({RoleName(Listener)}, killed {Moment})";
}

/// <summary>
/// A guest whose daemon goes on, the hub, and many whose daemons are killed, each at another of its requests. What takes
/// its time, deadlines and distances between attempts, takes it once for all. The victims do not know each other.
/// </summary>
internal sealed partial class FaultLab : IAsyncDisposable
{
    private const double LongestGapSeconds = 1;

    // Grants of a control page and two rings of 1 MiB.
    private const int OneSet = 513;
    private const ushort HubDomid = 500;
    private const string Policy = "[policy]\ndefault = \"deny\"\nallow = [[\"hub\", \"*\"]]\n[policy.groups]\nhub = [\"hub\"]\n";
    private const string ManyChannels = "[guest]\nmax-channels = 100\n";

    private readonly Stopwatch _watch = Stopwatch.StartNew();
    private readonly ITestOutputHelper _output;
    private readonly List<Victim> _victims = [];
    private readonly Dictionary<Victim, Ping> _pings = [];
    private readonly Dictionary<bool, GuestUsage> _heldWhenUp = [];
    private ushort _lastListener;
    private ushort _lastConnector = HubDomid;
    private GuestUsage _hubAlone;
    private string _hubDescriptors = "";
    private int _dom0Nodes;

    private FaultLab(DaemonLab lab, LabGuest hub, ITestOutputHelper output)
    {
        (Lab, Hub, _output) = (lab, hub, output);
        Requests = new(lab.Host);
    }

    public DaemonLab Lab { get; }

    public LabGuest Hub { get; }

    public Requests Requests { get; }

    public IReadOnlyList<Victim> Victims => _victims;

    /// <summary>What the hub held before it had a daemon.</summary>
    public GuestUsage HubBefore { get; private set; }

    public static async Task<FaultLab> StartAsync(ITestOutputHelper output)
    {
        DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        try
        {
            lab.StartWith(lab.Dom0, Policy);
            FaultLab faults = new(lab, await lab.Host.AddGuestAsync("hub", domid: HubDomid), output);
            faults.HubBefore = lab.Usage(faults.Hub);
            await faults.StartHubAsync();
            faults._hubAlone = lab.Usage(faults.Hub);
            return faults;
        }
        catch
        {
            await lab.DisposeAsync();
            throw;
        }
    }

    /// <summary>
    /// Lets one guest of each role do something undisturbed, and counts its requests. Then there is a victim for both moments
    /// of each of them, and of one more, for another time there may be one more.
    /// </summary>
    /// <param name="connected">The channels are to be up before.</param>
    /// <param name="actAsync">Ends when it is done.</param>
    public async Task AddVictimsAsync(bool connected, Func<Victim, Task> actAsync)
    {
        List<(bool Listener, Moment Moment)> wanted = [];
        foreach (bool listener in new[] { true, false })
        {
            Victim example = await AddAsync(listener, default);
            await IntroducedAsync([example]);
            if (connected)
            {
                await UpAsync([example]);
            }

            Requests.Record(example.Guest);
            await actAsync(example);
            string[] requests = Requests.Stop(example.Guest);
            Assert.NotEmpty(requests);
            _output.WriteLine($"{Victim.RoleName(listener)}, {requests.Length} requests:");
            _output.WriteLine(string.Join('\n', requests.Select((r, i) => string.Create(CultureInfo.InvariantCulture, $"{i + 1,4} {r}"))));
            wanted.AddRange(Moment.All(requests.Length + 1).Select(m => (listener, m)));
            // What the hub loads for its first channel it keeps: it is to be there before anything is counted.
            bool restarted = Lab[Hub].HasExited;
            if (restarted)
            {
                await StartHubAsync();
            }

            if (restarted || !connected)
            {
                await UpAsync([example]);
            }

            if (!Lab[example.Guest].HasExited)
            {
                Assert.Equal(0, await Lab.StopAsync(example.Guest));
            }
        }

        await HubIsAloneAsync();
        foreach ((bool listener, Moment moment) in wanted)
        {
            _victims.Add(await AddAsync(listener, moment));
        }

        _hubDescriptors = HubsDescriptors();
        _dom0Nodes = Lab.XenStore.Count(0).Nodes;
        await IntroducedAsync(_victims);
        if (connected)
        {
            await UpAsync(_victims);
        }
    }

    /// <summary>One victim after the other begins to do something, and is killed when its moment comes.</summary>
    /// <param name="act">Begins.</param>
    /// <param name="isOver">It was done before its moment came: it is killed then.</param>
    public async Task KillEachAsync(Action<Victim> act, Func<Victim, bool> isOver)
    {
        Say("the victims are killed");
        foreach (Victim victim in _victims)
        {
            LabProcess daemon = Lab[victim.Guest];
            Requests.Kill(victim.Guest, daemon, victim.Moment);
            act(victim);
            await Lab.UntilAsync($"{victim} is killed, or done", () => daemon.HasExited || isOver(victim));
        }

        await BuryAsync();
    }

    /// <summary>Kills the victims that were not; says where the others were.</summary>
    public async Task BuryAsync()
    {
        foreach (Victim victim in _victims)
        {
            await Lab.KillAsync(victim.Guest);
            string? request = Requests.Struck(victim.Guest);
            Requests.Stop(victim.Guest);
            _output.WriteLine(request is null ? $"{victim}: was done" : $"{victim}: {request}");
        }
    }

    public void StartPing(Victim victim) => _pings.Add(victim, Ping.Start(victim.Guest, Hub, interval: 0.1));

    /// <summary>Pings are answered, and have been all the time; then they end.</summary>
    public async Task TrafficWentOnAsync()
    {
        Say("traffic is to go on");
        (Victim Victim, Ping Ping, int Replies)[] pings = [.. _pings.Select(p => (p.Key, p.Value, p.Value.Replies))];
        foreach ((Victim victim, Ping ping, int replies) in pings)
        {
            await Lab.UntilAsync($"replies to {victim}", () => ping.Replies > replies + 2, seconds: 5);
        }

        foreach ((Victim victim, Ping ping, _) in pings)
        {
            (_, double gap, string summary) = await ping.StopAsync();
            Assert.True(gap < LongestGapSeconds, $"{victim}: {gap} s without a reply; {summary}\n{Lab.Messages()}");
        }

        _pings.Clear();
    }

    /// <summary>
    /// The hub lets go of all that it held for its peers. Programs and maps live as long as a descriptor, a filter or a link does:
    /// those are counted.
    /// </summary>
    public async Task HubIsAloneAsync()
    {
        Say("the hub is to let go");
        await Lab.UntilAsync(
            () => $"the hub holds {_hubAlone} and no TAP; it holds {Lab.Usage(Hub)}, {string.Join(", ", Namespaces.Traces(Hub))}",
            () => Lab.Usage(Hub) == _hubAlone && !HasTap(Hub));
        Say("the hub is alone");
    }

    /// <summary>The hub shares nothing any more, and has no TAP. What failed it remembers for a while, in a node and a watch.</summary>
    public async Task HubLetsGoAsync()
    {
        Say("the hub is to let go");
        await Lab.UntilAsync(
            () => $"the hub shares nothing and has no TAP; it holds {Lab.Usage(Hub)}, {string.Join(", ", Namespaces.Traces(Hub))}",
            () => Lab.Usage(Hub).Hypervisor == default && !HasTap(Hub));
    }

    /// <summary>The dead hold nothing.</summary>
    public async Task AreDeadAsync()
    {
        foreach (LabGuest guest in _victims.Select(v => v.Guest))
        {
            await Lab.UntilAsync(
                () => $"{guest.Name} holds nothing and has no TAP; it holds {Lab.Usage(guest)}, {string.Join(", ", Namespaces.Traces(guest))}",
                () => Lab.Usage(guest) is { XenStore: { Watches: 0, Connections: 0 } } usage && usage.Hypervisor == default && !HasTap(guest));
        }
    }

    /// <summary>Starts the victims' daemons again; channels come by traffic, and nobody holds more than is theirs.</summary>
    public async Task RestartAsync()
    {
        Say("the victims' daemons start again");
        foreach (Victim victim in _victims)
        {
            StartDaemon(victim);
        }

        await UpAsync(_victims);
    }

    public void StartDaemon(Victim victim) => Lab.Start(victim.Guest, "--ring-kib", "128");

    /// <summary>The victims' daemons end in good order, and everything is as it was before they were there.</summary>
    public async Task EndAsync()
    {
        Say("the victims' daemons end");
        foreach (Victim victim in _victims)
        {
            Lab[victim.Guest].Signal(LibC.SIGTERM);
        }

        foreach (Victim victim in _victims)
        {
            Assert.Equal(0, await Lab.StopAsync(victim.Guest));
            await Lab.NothingLeftAsync(victim.Guest, victim.Before);
        }

        await HubIsAloneAsync();
        await Lab.UntilAsync(
            () => $"the hub's descriptors are\n{_hubDescriptors}\nthey are\n{HubsDescriptors()}", () => HubsDescriptors() == _hubDescriptors);
        await Lab.UntilAsync(
            () => $"Dom0 has {_dom0Nodes} nodes; it has {Lab.XenStore.Count(0).Nodes}", () => Lab.XenStore.Count(0).Nodes == _dom0Nodes);
    }

    /// <summary>Pings until these have their channels, and looks that they hold what one holds that nothing has happened to.</summary>
    public async Task UpAsync(IReadOnlyList<Victim> victims)
    {
        Ping[] pings = [.. victims.Select(v => Ping.Start(v.Guest, Hub, interval: 0.2))];
        await Lab.UntilAsync(
            () => $"channels of {string.Join(", ", victims.Where(v => !IsConnected(v)))}", () => victims.All(IsConnected), seconds: 40);
        foreach (Ping ping in pings)
        {
            await Lab.UntilAsync("a reply", () => ping.Replies > 0);
            await ping.StopAsync();
        }

        foreach (Victim victim in victims)
        {
            _heldWhenUp.TryAdd(victim.Listener, Lab.Usage(victim.Guest));
            await Lab.UsageIsAsync(victim.Guest, _heldWhenUp[victim.Listener]);
        }

        await Lab.UntilAsync(() => $"the hub has {victims.Count} ports; it holds {Lab.Usage(Hub)}", () => Lab.Usage(Hub).Hypervisor.Ports == victims.Count);
    }

    public bool IsConnected(Victim victim) => Lab.IsConnected(victim.Guest[0], Hub[0]);

    public ValueTask DisposeAsync() => Lab.DisposeAsync();

    private void Say(string what) => _output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{_watch.Elapsed.TotalSeconds:f1} s: {what}"));

    private static bool HasTap(LabGuest guest) => Namespaces.Traces(guest).Any(t => t.StartsWith("xl", StringComparison.Ordinal));

    /// <summary>What the hub has open or mapped, a kind in a line: TAPs, event channels, granted pages, programs, maps, links.</summary>
    private string HubsDescriptors()
    {
        LabProcess process = Lab[Hub];
        // A set that is kept for a victim's next channel is mapped as a control page and as rings.
        int kept = 2 * (DaemonLab.Status(Hub)?.GetProperty("kept_grants").GetInt32() ?? 0) / OneSet;
        IEnumerable<string> open = Directory.EnumerateFiles($"/proc/{process.Pid}/fd").Select(f => new FileInfo(f).LinkTarget ?? "closed");
        IEnumerable<string> mapped = File.ReadLines($"/proc/{process.Pid}/maps").Where(l => l.Contains("memfd:granted", StringComparison.Ordinal)).Skip(kept).Select(_ => "mapped");
        return string.Join('\n', open.Concat(mapped).Select(n => Number().Replace(n, "")).CountBy(n => n).OrderBy(n => n.Key, StringComparer.Ordinal).Select(n => $"{n.Value} {n.Key}"));
    }

    [GeneratedRegex("[0-9]+")]
    private static partial Regex Number();

    public async Task StartHubAsync()
    {
        Lab.StartWith(Hub, ManyChannels);
        await Lab.UntilAsync("the hub's daemon is ready", () => DaemonLab.Status(Hub) is not null && Lab.XenStore.Read($"{Hub.Home}/xenloop/0") is not null);
    }

    private async Task<Victim> AddAsync(bool listener, Moment moment)
    {
        ushort domid = listener ? ++_lastListener : ++_lastConnector;
        LabGuest guest = await Lab.Host.AddGuestAsync($"guest-{domid}", domid: domid);
        return new(guest, listener, moment, Lab.Usage(guest));
    }

    private async Task IntroducedAsync(IReadOnlyList<Victim> victims)
    {
        foreach (Victim victim in victims)
        {
            StartDaemon(victim);
        }

        foreach (Victim victim in victims)
        {
            await Lab.IntroducedAsync(victim.Guest[0], Hub[0]);
        }
    }
}
