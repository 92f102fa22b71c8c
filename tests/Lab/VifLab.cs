using System.Text.Json;
using Tmds.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>A daemons' lab where guests have several vifs, and daemons their configuration.</summary>
internal static class VifLab
{
    /// <summary>A guest that runs the daemon, with these vifs.</summary>
    public static async Task<LabGuest> AddGuestAsync(this DaemonLab lab, string name, IReadOnlyList<LabVifOptions> vifs)
    {
        LabGuest guest = await lab.Host.AddGuestAsync(name, vifs);
        lab.Start(guest);
        return guest;
    }

    /// <summary>The file that <see cref="StartWith"/> names to the daemon. It goes with the lab.</summary>
    public static string ConfigurationFile(LabDomain domain) => Path.Combine(domain.RuntimeDirectory, "xenloopd.toml");

    /// <summary>Starts the daemon with a configuration.</summary>
    public static LabProcess StartWith(this DaemonLab lab, LabDomain domain, string configuration)
    {
        File.WriteAllText(ConfigurationFile(domain), configuration);
        return lab.Start(domain, "--config", ConfigurationFile(domain));
    }

    /// <summary>Puts another configuration in force by SIGHUP; ends when the daemon says that it has.</summary>
    public static async Task ReloadAsync(this DaemonLab lab, LabDomain domain, string configuration)
    {
        File.WriteAllText(ConfigurationFile(domain), configuration);
        int reloads = lab.CountMessages(domain, "configuration reloaded");
        lab[domain].Signal(LibC.SIGHUP);
        await lab.UntilAsync($"{domain.Name} reloads", () => lab.CountMessages(domain, "configuration reloaded") > reloads);
    }

    /// <summary>Where Dom0 introduces a peer's vif to a vif.</summary>
    public static string IntroductionNode(LabVif vif, LabVif peer) => $"{vif.Guest.Home}/xenloop/{vif.Index}/{peer.Guest.Domid}-{peer.Index}";

    /// <summary>Dom0 has introduced them to each other, with their present MAC addresses.</summary>
    public static bool IsIntroduced(this DaemonLab lab, LabVif vif, LabVif peer) => Knows(lab, vif, peer) && Knows(lab, peer, vif);

    /// <summary>Neither is introduced to the other.</summary>
    public static bool IsStranger(this DaemonLab lab, LabVif vif, LabVif peer) =>
        lab.XenStore.Read(IntroductionNode(vif, peer)) is null && lab.XenStore.Read(IntroductionNode(peer, vif)) is null;

    /// <summary>All that stands in XenStore, one word for each vif that knows another: "5.0>6.0 00:16:3e:78:00:02", with the other's MAC.</summary>
    public static string[] Introductions(this DaemonLab lab)
    {
        using XenStore store = XenStoreFixture.Open(lab.Dom0.StoreSocket);
        List<string> found = [];
        foreach (string domid in store.List("/local/domain"))
        {
            string home = $"/local/domain/{domid}/xenloop";
            foreach (string vif in store.List(home))
            {
                found.AddRange(store.List($"{home}/{vif}").Select(p =>
                    $"{domid}.{vif}>{p.Replace('-', '.')} {Introduction.Parse(store.Read($"{home}/{vif}/{p}"))?.Mac}"));
            }
        }

        return [.. found.Order(StringComparer.Ordinal)];
    }

    /// <summary>What <see cref="Introductions(DaemonLab)"/> gives when these and no others know each other.</summary>
    public static string[] Introductions(params IEnumerable<(LabVif, LabVif)> pairs) =>
        [.. pairs.SelectMany(p => new[] { Word(p.Item1, p.Item2), Word(p.Item2, p.Item1) }).Order(StringComparer.Ordinal)];

    /// <summary>Waits until these and no others know each other.</summary>
    public static Task IntroducedAsync(this DaemonLab lab, params IEnumerable<(LabVif, LabVif)> pairs)
    {
        string[] wanted = Introductions(pairs);
        return lab.UntilAsync(
            () => $"introductions missing: {string.Join(", ", wanted.Except(lab.Introductions()))}; wrong: {string.Join(", ", lab.Introductions().Except(wanted))}",
            () => lab.Introductions().SequenceEqual(wanted));
    }

    /// <summary>What a vif's side says of its channel to a peer's.</summary>
    public static ChannelMessage? Said(this DaemonLab lab, LabVif vif, LabVif peer) =>
        ChannelMessage.Parse(lab.XenStore.Read($"{vif.Guest.Home}/data/xenloop/{vif.Index}-{peer.Guest.Domid}-{peer.Index}"));

    /// <summary>Both sides say that they divert. Costs no daemon anything.</summary>
    public static bool IsConnected(this DaemonLab lab, LabVif vif, LabVif peer) =>
        lab.Said(vif, peer) is { Phase: ChannelPhase.Connected } mine
        && lab.Said(peer, vif) is { Phase: ChannelPhase.Connected } peers
        && mine.Session == peers.Session;

    /// <summary>"none" where there is no introduction, or no daemon.</summary>
    public static string State(LabVif vif, LabVif peer) => Channel(vif, peer)?.GetProperty("state").GetString() ?? "none";

    private static long Diverted(LabVif vif, LabVif peer) => Channel(vif, peer)?.GetProperty("packets_diverted").GetInt64() ?? 0;

    private static string Word(LabVif vif, LabVif peer) => $"{vif.Guest.Domid}.{vif.Index}>{peer.Guest.Domid}.{peer.Index} {peer.MacText}";

    private static JsonElement? Channel(LabVif vif, LabVif peer)
    {
        JsonElement? port = DaemonLab.Status(vif.Guest)?.GetProperty("vifs").EnumerateArray().Cast<JsonElement?>()
            .FirstOrDefault(v => v!.Value.GetProperty("vif").GetInt32() == vif.Index);
        return port?.GetProperty("peers").EnumerateArray().Cast<JsonElement?>().FirstOrDefault(p =>
            p!.Value.GetProperty("domid").GetInt32() == peer.Guest.Domid && p.Value.GetProperty("vif").GetInt32() == peer.Index);
    }

    public static bool IsUp(this DaemonLab lab, LabVif vif, LabVif peer) =>
        lab.IsConnected(vif, peer) && State(vif, peer) == "running" && State(peer, vif) == "running";

    /// <summary>Waits until both know each other and have no channel.</summary>
    public static Task IntroducedAsync(this DaemonLab lab, LabVif vif, LabVif peer) => lab.UntilAsync(
        () => $"{Name(vif)} and {Name(peer)} are introduced; states {State(vif, peer)}, {State(peer, vif)}",
        () => lab.IsIntroduced(vif, peer) && State(vif, peer) == "idle" && State(peer, vif) == "idle");

    /// <summary>Sends requests until both divert to each other.</summary>
    public static async Task ChannelUpAsync(this DaemonLab lab, LabVif vif, LabVif peer)
    {
        using Echo echo = Echo.Open(vif, peer);
        long due = 0;
        await lab.UntilAsync(() => $"a channel from {Name(vif)} to {Name(peer)}; states {State(vif, peer)}, {State(peer, vif)}", () =>
        {
            if (Environment.TickCount64 >= due)
            {
                echo.Send();
                due = Environment.TickCount64 + 200;
            }

            return lab.IsConnected(vif, peer) && lab.IsUp(vif, peer);
        });
    }

    /// <summary>So many requests, all of which must be answered.</summary>
    public static async Task EchoAsync(this DaemonLab lab, LabVif from, LabVif to, int count = 1)
    {
        using Echo echo = Echo.Open(from, to);
        await echo.SendAsync(100, count / 100.0);
        await lab.UntilAsync(() => $"{echo.Missing} replies more from {Name(to)} to {Name(from)}", () => echo.Missing == 0, seconds: 5);
    }

    /// <summary>Some requests, all answered, by a channel. A channel is built if there is none.</summary>
    public static async Task MustDivertAsync(this DaemonLab lab, LabVif vif, LabVif peer)
    {
        await lab.ChannelUpAsync(vif, peer);
        long diverted = Diverted(vif, peer);
        await lab.EchoAsync(vif, peer, 10);
        Assert.InRange(Diverted(vif, peer), diverted + 10, long.MaxValue);
    }

    public static string Name(LabVif vif) => $"{vif.Guest.Name}.{vif.Index}";

    private static bool Knows(DaemonLab lab, LabVif vif, LabVif peer) =>
        lab.XenStore.Read($"{vif.Guest.Home}/xenloop/{vif.Index}") == vif.MacText
        && Introduction.Parse(lab.XenStore.Read(IntroductionNode(vif, peer)))?.Mac.ToString() == peer.MacText;
}
