using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Text.Json;
using Tmds.Linux;
using XenLoop.Lab;
using XenLoop.Protocol;
using XenLoop.Service;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>What a guest holds: of the hypervisor, and of XenStore.</summary>
internal readonly record struct GuestUsage(BrokerUsage Hypervisor, (int Nodes, int Watches, int Connections) XenStore);

/// <summary>A lab whose domains run the published daemon. Needs root and /dev/net/tun. Every wait is bounded.</summary>
internal sealed class DaemonLab : IAsyncDisposable
{
    private const double Patience = 20;

    /// <summary>The repository.</summary>
    public static string Root { get; } = FindRoot();

    private readonly Dictionary<ushort, List<LabProcess>> _daemons = [];

    private DaemonLab(LabHost host) => Host = host;

    public static string Daemon => Published("xenloopd-lab");

    public static string Command => Published("xenloop");

    /// <summary>For <see cref="Command"/>, in a domain's shell: the domain's daemon. The command goes by nothing in its environment.</summary>
    public const string Socket = "--socket $RUNTIME_DIRECTORY/control.sock";

    public LabHost Host { get; }

    /// <summary>The guests of <see cref="StartWithChannelAsync"/>.</summary>
    public (LabGuest A, LabGuest B) Pair { get; private set; }

    public LabDomain Dom0 => Host.Dom0;

    public XenStoreServer XenStore => Host.Store;

    /// <summary>The daemon that was started last in this domain.</summary>
    public LabProcess this[LabDomain domain] => _daemons[domain.Domid][^1];

    /// <param name="introducer">Run the daemon in Dom0.</param>
    public static async Task<DaemonLab> StartAsync(bool introducer = true)
    {
        _ = Daemon;
        DaemonLab lab = new(await LabHost.StartAsync());
        if (introducer)
        {
            lab.Start(lab.Dom0);
        }

        return lab;
    }

    /// <summary>A lab with two guests, a and b, and a channel between them; a listens.</summary>
    public static async Task<DaemonLab> StartWithChannelAsync()
    {
        DaemonLab lab = await StartAsync();
        try
        {
            lab.Pair = (await lab.AddGuestAsync("a"), await lab.AddGuestAsync("b"));
            await lab.ChannelUpAsync(lab.Pair.A, lab.Pair.B);
            return lab;
        }
        catch
        {
            await lab.DisposeAsync();
            throw;
        }
    }

    /// <summary>Starts the daemon in a domain.</summary>
    public LabProcess Start(LabDomain domain, params string[] arguments)
    {
        LabProcess daemon = domain.StartDaemon(Daemon, arguments);
        if (!_daemons.TryGetValue(domain.Domid, out List<LabProcess>? all))
        {
            _daemons[domain.Domid] = all = [];
        }

        all.Add(daemon);
        return daemon;
    }

    /// <summary>A guest that runs the daemon.</summary>
    public async Task<LabGuest> AddGuestAsync(string name, string bridge = LabHost.DefaultBridge, ushort? domid = null, string? mac = null)
    {
        LabGuest guest = await Host.AddGuestAsync(name, bridge, domid, mac);
        Start(guest);
        return guest;
    }

    /// <summary>Ends the domain's daemon in good order.</summary>
    /// <returns>Its exit code.</returns>
    public async Task<int> StopAsync(LabDomain domain)
    {
        LabProcess daemon = this[domain];
        daemon.Signal(LibC.SIGTERM);
        await UntilAsync($"the daemon of {domain.Name} ends", () => daemon.HasExited);
        return daemon.ExitCode;
    }

    /// <summary>Kills the domain's daemon.</summary>
    public async Task KillAsync(LabDomain domain)
    {
        LabProcess daemon = this[domain];
        daemon.Signal(LibC.SIGKILL);
        await UntilAsync($"the daemon of {domain.Name} is dead", () => daemon.HasExited);
    }

    public Task UntilAsync(string what, Func<bool> condition, double seconds = Patience) =>
        UntilAsync(() => what, condition, seconds);

    /// <summary>Waits for a condition; the failure shows what the daemons said.</summary>
    public async Task UntilAsync(Func<string> what, Func<bool> condition, double seconds = Patience)
    {
        Stopwatch watch = Stopwatch.StartNew();
        while (!condition())
        {
            if (watch.Elapsed.TotalSeconds > seconds)
            {
                Assert.Fail($"not within {seconds} s: {what()}\n{Messages()}");
            }

            await Task.Delay(5);
        }
    }

    /// <summary>Pings until both guests divert to each other, in the same session.</summary>
    public async Task ChannelUpAsync(LabGuest a, LabGuest b)
    {
        using CancellationTokenSource up = new();
        // From both sides: one that was there before may know the other's address with an old MAC.
        Task pinging = Task.WhenAll(PingAsync(a, b), PingAsync(b, a));
        try
        {
            await UntilAsync(() => $"a channel from {a.Name} to {b.Name}; states {State(a, b)}, {State(b, a)}", () => IsUp(a, b));
        }
        finally
        {
            await up.CancelAsync();
            await pinging;
        }

        async Task PingAsync(LabGuest from, LabGuest to)
        {
            while (!up.IsCancellationRequested)
            {
                await from.RunAsync($"ping -q -c 1 -W 0.3 {to.IPv4}", CancellationToken.None);
            }
        }
    }

    public bool IsUp(LabGuest a, LabGuest b) =>
        Said(a, b) is { Phase: ChannelPhase.Connected } mine
        && Said(b, a) is { Phase: ChannelPhase.Connected } peers
        && mine.Session == peers.Session
        && State(a, b) == "running"
        && State(b, a) == "running";

    /// <summary>What a guest says of its side of the channel.</summary>
    public ChannelMessage? Said(LabGuest guest, LabGuest peer) => ChannelMessage.Parse(XenStore.Read(ChannelNode(guest, peer)));

    /// <summary>The session that a guest is in or was in last.</summary>
    public ulong? Session(LabGuest guest, LabGuest peer) => Said(guest, peer)?.Session;

    /// <summary>What a guest holds, but for the pages that it keeps for the next channels with peers it had one with.</summary>
    public BrokerUsage Held(LabGuest guest)
    {
        int kept = Status(guest) is { } status && status.TryGetProperty("kept_grants", out JsonElement grants) ? grants.GetInt32() : 0;
        BrokerUsage usage = Host.Broker.Count(guest.Domid);
        return usage with { PagesGranted = usage.PagesGranted - kept };
    }

    public GuestUsage Usage(LabGuest guest) => new(Held(guest), XenStore.Count(guest.Domid));

    /// <summary>Waits until the guest holds what it held at an earlier time.</summary>
    public Task UsageIsAsync(LabGuest guest, GuestUsage usage) =>
        UntilAsync(() => $"{guest.Name} holds {usage}; it holds {Usage(guest)}", () => Usage(guest) == usage);

    /// <summary>Waits until nothing in the guest is of a daemon's making.</summary>
    public Task NothingLeftAsync(LabGuest guest, GuestUsage before) => UntilAsync(
        () => $"{guest.Name} holds {before} again and no traces; it holds {Usage(guest)}, {string.Join(", ", Namespaces.Traces(guest))}",
        () => Usage(guest) == before && Namespaces.Traces(guest).Length == 0 && !File.Exists(ControlSocketOf(guest)));

    /// <summary>What all daemons have said.</summary>
    public string Messages() => string.Concat(_daemons.OrderBy(d => d.Key).SelectMany(d => d.Value.Select(p => $"--- domain {d.Key}\n{p.Output}")));

    /// <summary>How many lines that contain the text the domain's daemon has said.</summary>
    public int CountMessages(LabDomain domain, string text) =>
        this[domain].Output.Split('\n').Count(l => l.Contains(text, StringComparison.Ordinal));

    public ValueTask DisposeAsync() => Host.DisposeAsync();

    public static string ChannelNode(LabGuest guest, LabGuest peer) => $"{guest.Home}/data/xenloop/0-{peer.Domid}-0";

    public static string ControlSocketOf(LabDomain domain) => Path.Combine(domain.RuntimeDirectory, "control.sock");

    /// <summary>The answer of a domain's daemon; null while none listens.</summary>
    public static string? Ask(LabDomain domain, string request = "status")
    {
        try
        {
            return ControlClient.Ask(ControlSocketOf(domain), request, TimeSpan.FromSeconds(10));
        }
        catch (Exception e) when (e is SocketException or IOException)
        {
            return null;
        }
    }

    public static JsonElement? Status(LabDomain domain) => Ask(domain) is { } json ? JsonDocument.Parse(json).RootElement : null;

    /// <summary>A channel, as the guest's daemon sees it.</summary>
    public static JsonElement? Channel(LabGuest guest, LabGuest peer) =>
        Status(guest) is { } status
            ? LabStatus.Peers(status).Cast<JsonElement?>().FirstOrDefault(p => p!.Value.GetProperty("domid").GetInt32() == peer.Domid)
            : null;

    /// <summary>"none" where there is no channel, or no daemon.</summary>
    public static string State(LabGuest guest, LabGuest peer) => Channel(guest, peer)?.GetProperty("state").GetString() ?? "none";

    public static long Diverted(LabGuest guest, LabGuest peer) => Channel(guest, peer)?.GetProperty("packets_diverted").GetInt64() ?? 0;

    /// <summary>The peers to whom Dom0's daemon has introduced a guest, as <c>domid-vif</c>; null while none answers.</summary>
    public string[]? Introduced(LabGuest guest)
    {
        if (Status(Dom0) is not { } status)
        {
            return null;
        }

        JsonElement? known = status.GetProperty("guests").EnumerateArray().Cast<JsonElement?>()
            .FirstOrDefault(g => g!.Value.GetProperty("domid").GetInt32() == guest.Domid);
        return known is null
            ? []
            : [.. known.Value.GetProperty("vifs").EnumerateArray().SelectMany(v => v.GetProperty("introduced").EnumerateArray()).Select(p => p.GetString()!)];
    }

    /// <summary>Processor time that a process has used.</summary>
    public static TimeSpan ProcessorTime(LabProcess process)
    {
        string stat = File.ReadAllText($"/proc/{process.Pid}/stat");
        string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
        // utime and stime, fields 14 and 15, in ticks of 10 ms.
        return TimeSpan.FromMilliseconds(10 * (long.Parse(fields[11], null) + long.Parse(fields[12], null)));
    }

    /// <summary>Times that any thread of a process has gone to sleep.</summary>
    public static long Sleeps(LabProcess process) =>
        Directory.EnumerateDirectories($"/proc/{process.Pid}/task").Sum(t => Field($"{t}/status", "voluntary_ctxt_switches"));

    /// <summary>Resident memory in KiB.</summary>
    public static long ResidentKiB(LabProcess process) => Field($"/proc/{process.Pid}/status", "VmRSS");

    private static long Field(string file, string name) => long.Parse(
        File.ReadLines(file).Single(l => l.StartsWith($"{name}:", StringComparison.Ordinal)).Split([':', ' ', '\t'], StringSplitOptions.RemoveEmptyEntries)[1],
        CultureInfo.InvariantCulture);

    private static string Published(string program)
    {
        string path = Path.Combine(Root, "artifacts", "publish", program, program);
        Assert.True(File.Exists(path), $"There is no {path}. Publish first: ./test does.");
        return path;
    }

    private static string FindRoot()
    {
        DirectoryInfo? directory = new(AppContext.BaseDirectory);
        while (directory is not null && !File.Exists(Path.Combine(directory.FullName, "XenLoop.sln")))
        {
            directory = directory.Parent;
        }

        return directory?.FullName ?? throw new InvalidOperationException($"{AppContext.BaseDirectory} is not below a folder with XenLoop.sln.");
    }
}

/// <summary>Daemons are tested when nothing else runs: their tests look at times and at the use of processors.</summary>
[CollectionDefinition(Name, DisableParallelization = true)]
public class DaemonTests
{
    public const string Name = "Daemons";
}
