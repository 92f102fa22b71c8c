using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text.RegularExpressions;
using Tmds.Linux;
using XenLoop.Guest.Channels;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>
/// Guests that do a victim all the harm they know, as a seed has it, while the victim talks to an honest guest. XENLOOP_EVIL_SECONDS has
/// it go on for longer, XENLOOP_EVIL_SEED otherwise.
/// </summary>
[Collection(DaemonTests.Name)]
public sealed partial class DaemonEvilPeerTests(ITestOutputHelper output) : IDisposable
{
    private const int Seconds = 25;
    private const int Seed = 1;
    private const int CalmSeconds = 5;
    private const int PingsPerSecond = 250;

    // The pages of a control page and two of the smallest rings.
    private const int OneSet = 1 + (2 * 128 / 4);

    // Twice what it is otherwise, and what the scheduler takes: the evil guests, XenStore and the hypervisor are one process here, with both
    // guests' daemons and stacks on the same few processors, where whoever is runnable waits for the turns, of 3 ms each, of three others. On a host they have processors of their own.
    private const double MostTimes = 2;
    private const double SchedulerMilliseconds = 10;

    private const double MostProcessors = 0.1;
    private const long MostGrownKiB = 1024;
    private const int MostQuiesceMilliseconds = 1500;

    // Of both daemons, Dom0's and XenStore, each of which waits for a processor where others keep it busy as long as the longest round trips do.
    private const int TurnsOfAQuiesce = 20;

    private readonly string _file = Path.GetTempFileName();

    public void Dispose() => File.Delete(_file);

    [Fact]
    public async Task Whatever_evil_peers_do_the_others_hardly_notice()
    {
        int seconds = Setting("SECONDS", Seconds), seed = Setting("SEED", Seed);
        await File.WriteAllTextAsync(_file, "[guest]\nidle-seconds = 100000\n");
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest low = await lab.Host.AddGuestAsync("low");
        LabGuest victim = await lab.Host.AddGuestAsync("victim"), honest = await lab.Host.AddGuestAsync("honest");
        lab.Start(victim, "--ring-kib", "128", "--config", _file);
        lab.Start(honest, "--ring-kib", "128", "--config", _file);
        LabGuest[] guests = [low, await lab.Host.AddGuestAsync("high1"), await lab.Host.AddGuestAsync("high2"), await lab.Host.AddGuestAsync("high3")];
        List<EvilPeer> evil = [];
        try
        {
            await lab.ChannelUpAsync(victim, honest);
            ulong? session = lab.Session(victim, honest);
            TimeSpan perFrame = CostByEth0(guests[1], victim);

            TimeSpan before = DaemonLab.ProcessorTime(lab[victim]);
            Stopwatch watch = Stopwatch.StartNew();
            double calm = await PercentileAsync(honest, victim, CalmSeconds);
            double calmShare = (DaemonLab.ProcessorTime(lab[victim]) - before) / watch.Elapsed;

            for (int i = 0; i < guests.Length; i++)
            {
                evil.Add(await EvilPeer.StartAsync(lab, guests[i], victim, seed + i));
            }

            using CancellationTokenSource end = new();
            Task[] evils = [.. evil.Select(e => e.Run(end.Token))];
            try
            {
                // What it takes to know them: a set of pages for each, and code that runs for the first time.
                await Task.Delay(TimeSpan.FromSeconds(Math.Min(seconds / 2.0, 60)));
                long resident = DaemonLab.ResidentKiB(lab[victim]);
                long frames = evil.Sum(e => e.FramesSent);
                before = DaemonLab.ProcessorTime(lab[victim]);
                watch.Restart();
                double attacked = await PercentileAsync(honest, victim, Math.Max(seconds / 2, 5));
                double took = watch.Elapsed.TotalSeconds;
                double share = (DaemonLab.ProcessorTime(lab[victim]) - before).TotalSeconds / took;
                double byEth0 = (evil.Sum(e => e.FramesSent) - frames) * perFrame.TotalSeconds / took;
                long grown = DaemonLab.ResidentKiB(lab[victim]) - resident;
                BrokerUsage usage = lab.Host.Broker.Count(victim.Domid);

                watch.Restart();
                (int exit, string answer) = await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} {victim.Name}");
                long quiesced = watch.ElapsedMilliseconds;
                string figures = string.Create(CultureInfo.InvariantCulture,
                    $"""
                    seed {seed}, {seconds} s: p99 of a round trip {calm:f3} ms in calm, {attacked:f3} ms; processors {calmShare:f3} in calm, {share:f3}, of which by eth0 {byEth0:f3};
                    resident {resident} KiB, {grown} more at the end; {usage}; quiesced in {quiesced} ms
                    {string.Join('\n', evil.Select(e => e.Account))}
                    """);
                output.WriteLine(figures);
                Assert.False(lab[victim].HasExited || lab[lab.Dom0].HasExited, $"{figures}\n{lab.Messages()}");
                Assert.True(attacked <= (MostTimes * calm) + SchedulerMilliseconds, figures);
                Assert.True(share <= calmShare + byEth0 + MostProcessors, figures);
                Assert.True(grown <= MostGrownKiB, figures);
                // The honest guest's, and one for each of the others. What lingers, a peer has lied about, of which each has an allowance, in time.
                int lies = seconds < KeptMemory.Unused.TotalSeconds ? 0 : KeptMemory.PagesOnWord;
                Assert.True(usage.PagesGranted <= (1 + guests.Length) * OneSet && usage.PagesLingering <= guests.Length * lies, figures);
                Assert.True((exit, answer) == (0, "quiesced\n") && quiesced <= MostQuiesceMilliseconds + (TurnsOfAQuiesce * calm), $"{exit} {answer}\n{figures}\n{lab.Messages()}");
                Assert.Equal(0, (await lab.Dom0.RunAsync($"{DaemonLab.Command} resume {DaemonLab.Socket} {victim.Name}")).ExitCode);
                await lab.ChannelUpAsync(victim, honest);
                Assert.True(seconds < Seconds || EvilPeer.AllDeeds(evil[0]).All(d => evil.Exists(e => e.Deeds.Contains(d))), figures);
            }
            finally
            {
                await end.CancelAsync();
                await Task.WhenAll(evils);
            }

            Assert.NotNull(session);
            evil.ForEach(e => e.Dispose());
            evil.Clear();
            await lab.UntilAsync("what they had mapped is free again", () => lab.Host.Broker.Count(victim.Domid) is { PagesLingering: 0 });
        }
        finally
        {
            evil.ForEach(e => e.Dispose());
        }
    }

    /// <summary>The round trip that 99 of 100 are not longer than, in milliseconds.</summary>
    private static async Task<double> PercentileAsync(LabGuest from, LabGuest to, int seconds)
    {
        LabProcess ping = from.Start(string.Create(CultureInfo.InvariantCulture, $"exec ping -n -i {1.0 / PingsPerSecond} -w {seconds} {to.IPv4}"));
        await ping.WaitForExitAsync();
        double[] times = [.. Time().Matches(ping.Output).Select(m => double.Parse(m.Groups[1].ValueSpan, CultureInfo.InvariantCulture)).Order()];
        Assert.True(times.Length > seconds * PingsPerSecond / 4, $"{times.Length} answers in {seconds} s\n{ping.Output[^Math.Min(300, ping.Output.Length)..]}");
        return times[times.Length * 99 / 100];
    }

    /// <summary>Processor time for a datagram that arrives by eth0. Whoever sends it pays for it here, and for its sending: it is a little more.</summary>
    private static TimeSpan CostByEth0(LabGuest from, LabGuest to)
    {
        const int Count = 20_000;
        byte[] datagram = new byte[8];
        IPEndPoint discard = new(to.IPv4, 9);
        using Socket socket = Namespaces.Run(from, () => new Socket(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp));
        TimeSpan before = Environment.CpuUsage.TotalTime;
        for (int i = 0; i < Count; i++)
        {
            try
            {
                socket.SendTo(datagram, discard);
            }
            catch (SocketException)
            {
                // Nobody listens there, says an answer to one before.
            }
        }

        return (Environment.CpuUsage.TotalTime - before) / Count;
    }

    private static int Setting(string name, int byDefault) =>
        int.TryParse(Environment.GetEnvironmentVariable($"XENLOOP_EVIL_{name}"), NumberStyles.None, CultureInfo.InvariantCulture, out int value) ? value : byDefault;

    [GeneratedRegex(" time=([0-9.]+) ms")]
    private static partial Regex Time();
}
