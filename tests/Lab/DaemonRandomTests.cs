using System.Diagnostics;
using System.Globalization;
using Tmds.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>
/// Hundreds of random events, as fast as the lab makes them, and in the end the one state that is right. A seed makes the
/// same sequence each time; how it meets the daemons' own doings is another each time.
/// </summary>
[Collection(DaemonTests.Name)]
public class DaemonRandomTests(ITestOutputHelper output)
{
    private const int Events = 500;

    [Theory]
    [InlineData(20)]
    [InlineData(18)]
    [InlineData(23)]
    public async Task Whatever_happens_the_end_is_right(int seed)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        RandomHost host = new(lab, seed);
        try
        {
            Stopwatch watch = Stopwatch.StartNew();
            await host.StartAsync();
            while (host.History.Count < Events)
            {
                await host.StepAsync();
            }

            double events = watch.Elapsed.TotalSeconds;
            await host.SettleAsync();
            double settled = watch.Elapsed.TotalSeconds;
            await host.EndAsync();
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"seed {seed}: events {events:f1} s, right {settled - events:f1} s later, end {watch.Elapsed.TotalSeconds - settled:f1} s; {host.End}"));
        }
        catch (Exception e)
        {
            string said = e.Message.Contains("--- domain", StringComparison.Ordinal) ? "" : lab.Messages();
            Assert.Fail($"seed {seed}, last of {host.History.Count} events:\n{string.Join('\n', host.History.TakeLast(30))}\n{e.Message}\n{e.StackTrace}\n{said}");
        }
    }

    /// <summary>The lab, and what must be true of it.</summary>
    private sealed class RandomHost(DaemonLab lab, int seed)
    {
        private const int MostGuests = 8;
        private const int MostVifs = 3;
        private const int LastVifIndex = 3;

        // A daemon that failed to reach a peer a few times, killed ones say, keeps its distance for half a minute.
        private const double ChannelSeconds = 45;

        private static readonly string[] _colours = ["red", "blue", "green"];

        private static readonly (string File, Func<string, string, bool> MayMeet)[] _policies =
        [
            ("[policy]\n" + Ignored, (_, _) => true),
            ("[policy]\n" + Ignored + "deny = [[\"red\", \"blue\"]]\n" + Groups, (one, other) => !Are(one, other, "red", "blue")),
            ("[policy]\n" + Ignored + "deny = [[\"green\", \"*\"]]\n" + Groups, (one, other) => !Are(one, other, "green", "")),
            ("[policy]\n" + Ignored + "default = \"deny\"\nallow = [[\"red\", \"red\"], [\"red\", \"blue\"]]\n" + Groups,
                (one, other) => Are(one, other, "red", "red") || Are(one, other, "red", "blue")),
        ];

        // Driver domains, which cannot be looked into.
        private const string Ignored = "ignore-restrictions-on = [\"1/*\"]\n";
        private const string Groups = "[policy.groups]\nred = [\"red-*\"]\nblue = [\"blue-*\"]\ngreen = [\"green-*\"]\n";

        private readonly Random _random = new(seed);
        private readonly List<LabGuest> _guests = [];
        // Those whose daemon was started and not told to end since.
        private readonly HashSet<LabGuest> _running = [];
        private readonly List<ushort> _freeDomids = [];
        private readonly List<string> _freeMacs = [];
        private LabGuest _driver = null!;
        private bool _introducer;
        private int _policy;
        private int _names;

        /// <summary>How much there was to be right.</summary>
        public string End { get; private set; } = "";

        public List<string> History { get; } = [];

        private LabDomain Dom0 => lab.Dom0;

        public async Task StartAsync()
        {
            // It only holds bridges, and nobody ends it: with backends that end, what is left of a vif is netback's affair.
            _driver = await lab.Host.AddGuestAsync("driver", []);
            File.WriteAllText(VifLab.ConfigurationFile(Dom0), _policies[_policy].File);
            StartIntroducer();
            for (int i = 0; i < 4; i++)
            {
                await AddGuestAsync();
            }
        }

        public async Task StepAsync()
        {
            (int Weight, Func<Task> Event)[] events =
            [
                (30, PingAsync), (8, AddGuestAsync), (3, DestroyGuestAsync), (5, TerminateAsync), (6, KillAsync), (12, StartDaemonAsync),
                (6, PlugAsync), (5, UnplugAsync), (5, MoveAsync), (4, SetMacAsync), (4, RenameAsync), (5, ChangePolicyAsync), (4, RestartIntroducerAsync),
            ];
            int pick = _random.Next(events.Sum(e => e.Weight));
            await events.First(e => (pick -= e.Weight) < 0).Event();
            foreach (LabGuest guest in _running)
            {
                Assert.False(lab[guest].HasExited, $"the daemon of {guest.Name} has ended");
            }

            if (_random.Next(4) == 0)
            {
                await Task.Delay(_random.Next(30));
            }
        }

        /// <summary>From here on nothing changes, and everything comes to be right.</summary>
        public async Task SettleAsync()
        {
            if (!_introducer)
            {
                StartIntroducer();
            }

            await lab.UntilAsync("Dom0's daemon answers", () => DaemonLab.Status(Dom0) is not null);
            foreach (LabGuest guest in _guests)
            {
                await lab.UntilAsync($"{guest.Name}'s daemon answers, or has ended", () =>
                    _running.Contains(guest) ? DaemonLab.Status(guest) is not null && IsWilling(guest) : !HasDaemon(guest));
                Assert.False(HasDaemon(guest) && lab[guest].HasExited && lab[guest].ExitCode == 0 && IsWilling(guest), $"{guest.Name} has left its offer");
            }

            (LabVif Vif, LabVif Peer)[] pairs = [.. Pairs()];
            (LabVif Vif, LabVif Peer)[] introduced = [.. pairs.Where(p => IsWilling(p.Vif.Guest) && IsWilling(p.Peer.Guest) && MayMeet(p))];
            await lab.IntroducedAsync(introduced);

            HashSet<(LabVif, LabVif)> channels = [.. introduced.Where(p => _running.Contains(p.Vif.Guest) && _running.Contains(p.Peer.Guest))];
            End = $"{_guests.Count} guests, {pairs.Length} pairs of vifs, {introduced.Length} introduced, {channels.Count} with a channel";
            List<(LabVif Vif, LabVif Peer, Echo Echo)> echoes = [];
            foreach ((LabVif vif, LabVif peer) in pairs)
            {
                echoes.Add((vif, peer, Echo.Open(vif, peer)));
            }

            long due = 0;
            await lab.UntilAsync(() => $"channels: {Differences(pairs, channels)}", () =>
            {
                if (Environment.TickCount64 >= due)
                {
                    echoes.ForEach(e => e.Echo.Send());
                    due = Environment.TickCount64 + 500;
                }

                return Differences(pairs, channels).Length == 0;
            }, ChannelSeconds);

            int[] missing = [.. echoes.Select(e => e.Echo.Missing)];
            for (int i = 0; i < 3; i++)
            {
                echoes.ForEach(e => e.Echo.Send());
                await Task.Delay(20);
            }

            await lab.UntilAsync(
                () => $"replies: {string.Join(", ", echoes.Select((e, i) => (e, i)).Where(e => e.e.Echo.Missing > missing[e.i]).Select(e => Name((e.e.Vif, e.e.Peer))))}",
                () => !echoes.Where((e, i) => e.Echo.Missing > missing[i]).Any(), seconds: 3);
            echoes.ForEach(e => e.Echo.Dispose());
            Assert.Equal("", Differences(pairs, channels));
            foreach (LabGuest guest in _guests)
            {
                // A port for each channel, after some seconds also where a killed peer has left its offer; no grant that ended and is still mapped; and none beyond those.
                int expected = channels.Count(c => c.Item1.Guest == guest || c.Item2.Guest == guest);
                await lab.UntilAsync(() => $"{guest.Name} has {expected} channels; it holds {lab.Usage(guest)}", () =>
                    lab.Host.Broker.Count(guest.Domid) is var count && count.Ports == expected && count.PagesLingering == 0);
            }

            Assert.Equal(_guests.Append(_driver).Append(Dom0).Select(g => $"{g.Domid}").Order(), Homes());
        }

        /// <summary>Everybody goes, and leaves nothing.</summary>
        public async Task EndAsync()
        {
            foreach (LabGuest guest in _running)
            {
                lab[guest].Signal(LibC.SIGTERM);
            }

            foreach (LabGuest guest in _guests)
            {
                if (_running.Contains(guest))
                {
                    await lab.UntilAsync($"the daemon of {guest.Name} ends", () => lab[guest].HasExited);
                    Assert.Equal(0, lab[guest].ExitCode);
                }
                else
                {
                    // What a killed one has left.
                    Assert.Equal((0, ""), await guest.RunAsync($"{DaemonLab.Daemon} --forget"));
                }

                Assert.Null(lab.XenStore.Read($"{guest.Home}/data/xenloop"));
                await lab.UntilAsync(() => $"nothing is left in {guest.Name}: {string.Join(", ", Namespaces.Traces(guest))}", () => Namespaces.Traces(guest).Length == 0);
                Assert.Equal(default, lab.Host.Broker.Count(guest.Domid));
                Assert.Equal((0, 0), (lab.XenStore.Count(guest.Domid).Watches, lab.XenStore.Count(guest.Domid).Connections));
            }

            await lab.IntroducedAsync();
            Assert.Equal(0, await lab.StopAsync(Dom0));
            Assert.Equal((0, ""), await Dom0.RunAsync($"{DaemonLab.Daemon} --forget"));
            Assert.All(_guests, g => Assert.Null(lab.XenStore.Read($"{g.Home}/xenloop")));
            Assert.Equal(_guests.Append(_driver).Append(Dom0).Select(g => $"{g.Domid}").Order(), Homes());
        }

        private static bool Are(string one, string other, string colour, string otherColour) =>
            (Is(one, colour) && Is(other, otherColour)) || (Is(one, otherColour) && Is(other, colour));

        private static bool Is(string name, string colour) => name.StartsWith(colour, StringComparison.Ordinal);

        private static string Name((LabVif, LabVif) pair) => $"{pair.Item1.Guest.Domid}.{pair.Item1.Index}-{pair.Item2.Guest.Domid}.{pair.Item2.Index}";

        private static bool IsSegment(LabVif one, LabVif other) => one.Bridge == other.Bridge && one.BackendDomain == other.BackendDomain;

        private async Task PingAsync()
        {
            (LabVif Vif, LabVif Peer)[] pairs = [.. Pairs()];
            if (pairs.Length == 0)
            {
                return;
            }

            (LabVif from, LabVif to) = Pick(pairs);
            if (_random.Next(2) == 0)
            {
                (from, to) = (to, from);
            }

            Tell($"ping {VifLab.Name(from)} {VifLab.Name(to)}");
            using Echo echo = Echo.Open(from, to);
            for (int i = _random.Next(1, 4); i > 0; i--)
            {
                echo.Send();
            }

            await Task.CompletedTask;
        }

        private async Task AddGuestAsync()
        {
            if (_guests.Count == MostGuests)
            {
                return;
            }

            LabVifOptions[] vifs = [.. Enumerable.Range(0, _random.Next(1, MostVifs + 1)).Select(_ => NewVif())];
            ushort? domid = _freeDomids.Count > 0 && _random.Next(2) == 0 ? Take(_freeDomids) : null;
            string name = NewName();
            Tell($"add {name} ({string.Join(", ", vifs.Select(v => $"{v.BackendDomain?.Domid}/{v.Bridge}"))}) {domid}");
            LabGuest guest = await lab.Host.AddGuestAsync(name, vifs, domid);
            _guests.Add(guest);
            StartDaemon(guest);
        }

        private async Task DestroyGuestAsync()
        {
            if (_guests.Count <= 2)
            {
                return;
            }

            LabGuest guest = Take(_guests);
            Tell($"destroy {guest.Name}, domain {guest.Domid}");
            _running.Remove(guest);
            await lab.Host.DestroyGuestAsync(guest);
            _freeDomids.Add(guest.Domid);
            _freeMacs.AddRange(guest.Vifs.Select(v => v.MacText));
        }

        private Task TerminateAsync()
        {
            if (PickGuest(_running.Contains) is { } guest)
            {
                Tell($"SIGTERM {guest.Name}");
                _running.Remove(guest);
                lab[guest].Signal(LibC.SIGTERM);
            }

            return Task.CompletedTask;
        }

        private async Task KillAsync()
        {
            if (PickGuest(_running.Contains) is { } guest)
            {
                Tell($"SIGKILL {guest.Name}");
                _running.Remove(guest);
                await lab.KillAsync(guest);
            }
        }

        private async Task StartDaemonAsync()
        {
            if (PickGuest(g => !_running.Contains(g)) is { } guest)
            {
                Tell($"start {guest.Name}");
                await lab.UntilAsync($"the daemon of {guest.Name} ends", () => lab[guest].HasExited);
                StartDaemon(guest);
            }
        }

        private async Task PlugAsync()
        {
            if (PickGuest(g => g.Vifs.Count < MostVifs) is { } guest)
            {
                int index = Pick([.. Enumerable.Range(0, LastVifIndex + 1).Except(guest.Vifs.Select(v => v.Index))]);
                LabVifOptions vif = NewVif();
                Tell($"plug {guest.Name}.{index} into {vif.BackendDomain?.Domid}/{vif.Bridge} {vif.Mac}");
                await lab.Host.PlugAsync(guest, index, vif);
            }
        }

        private async Task UnplugAsync()
        {
            if (PickGuest(g => g.Vifs.Count > 0) is { } guest)
            {
                LabVif vif = Pick(guest.Vifs);
                Tell($"unplug {VifLab.Name(vif)}");
                await lab.Host.UnplugAsync(guest, vif.Index);
                _freeMacs.Add(vif.MacText);
            }
        }

        private async Task MoveAsync()
        {
            // In a driver domain nobody would hear of it.
            LabVif[] vifs = [.. _guests.SelectMany(g => g.Vifs).Where(v => v.BackendDomain == Dom0)];
            if (vifs.Length > 0)
            {
                LabVif vif = Pick(vifs);
                string bridge = $"xenbr{_random.Next(2)}";
                Tell($"move {VifLab.Name(vif)} to {bridge}");
                await lab.Host.MoveAsync(vif.Guest, vif.Index, bridge);
            }
        }

        private async Task SetMacAsync()
        {
            if (PickGuest(g => g.Vifs.Count > 0) is { } guest)
            {
                LabVif vif = Pick(guest.Vifs);
                string mac = _freeMacs.Count > 0 && _random.Next(2) == 0 ? Take(_freeMacs) : NewMac();
                Tell($"MAC of {VifLab.Name(vif)} {mac}");
                await lab.Host.SetMacAsync(guest, vif.Index, mac);
                _freeMacs.Add(vif.MacText);
            }
        }

        private async Task RenameAsync()
        {
            LabGuest guest = Pick(_guests);
            string name = NewName();
            Tell($"rename {guest.Name} to {name}");
            await lab.Host.RenameAsync(guest, name);
        }

        private async Task ChangePolicyAsync()
        {
            _policy = _random.Next(_policies.Length);
            Tell($"policy {_policy}");
            // Before it answers it does not know the signal.
            await lab.UntilAsync("Dom0's daemon answers", () => !_introducer || DaemonLab.Status(Dom0) is not null);
            File.WriteAllText(VifLab.ConfigurationFile(Dom0), _policies[_policy].File);
            if (_introducer)
            {
                lab[Dom0].Signal(LibC.SIGHUP);
            }
        }

        private async Task RestartIntroducerAsync()
        {
            if (!_introducer)
            {
                Tell("start Dom0");
                StartIntroducer();
            }
            else if (_random.Next(2) == 0)
            {
                Tell("SIGKILL Dom0");
                await lab.KillAsync(Dom0);
                _introducer = false;
            }
            else
            {
                Tell("restart Dom0");
                lab[Dom0].Signal(LibC.SIGTERM);
                await lab.UntilAsync("Dom0's daemon ends", () => lab[Dom0].HasExited);
                StartIntroducer();
            }
        }

        private void StartIntroducer()
        {
            lab.Start(Dom0, "--config", VifLab.ConfigurationFile(Dom0));
            _introducer = true;
        }

        private void StartDaemon(LabGuest guest)
        {
            // Small rings: there may be a hundred channels.
            lab.Start(guest, "--ring-kib", "128");
            _running.Add(guest);
        }

        /// <summary>Pairs of vifs on one segment.</summary>
        private IEnumerable<(LabVif Vif, LabVif Peer)> Pairs()
        {
            LabVif[] vifs = [.. _guests.SelectMany(g => g.Vifs)];
            return vifs.SelectMany((v, i) => vifs.Skip(i + 1).Where(p => p.Guest != v.Guest && IsSegment(v, p)).Select(p => (v, p)));
        }

        private bool MayMeet((LabVif Vif, LabVif Peer) pair) => _policies[_policy].MayMeet(pair.Vif.Guest.Name, pair.Peer.Guest.Name);

        /// <summary>A killed daemon is not withdrawn: what it offered stands.</summary>
        private bool IsWilling(LabGuest guest) => lab.XenStore.Read($"{guest.Home}/data/xenloop/offer") is not null;

        private bool HasDaemon(LabGuest guest) => !lab[guest].HasExited;

        /// <summary>Channels that are not up, or up and should not be.</summary>
        private string Differences((LabVif Vif, LabVif Peer)[] pairs, HashSet<(LabVif, LabVif)> channels)
        {
            string[] wrong = [.. pairs.Where(p => lab.IsConnected(p.Vif, p.Peer) != channels.Contains(p)).Select(p => $"{Name(p)} {lab.Said(p.Vif, p.Peer)}, {lab.Said(p.Peer, p.Vif)}")];
            if (wrong.Length == 0)
            {
                wrong = [.. channels.Where(p => !lab.IsUp(p.Item1, p.Item2)).Select(Name)];
            }

            return string.Join("; ", wrong);
        }

        /// <summary>The domains that have one; of those that are gone, what is in it.</summary>
        private IEnumerable<string> Homes()
        {
            using XenStore store = XenStoreFixture.Open(Dom0.StoreSocket);
            HashSet<string> known = [.. _guests.Append(_driver).Append(Dom0).Select(g => $"{g.Domid}")];
            return store.List("/local/domain").Select(d => known.Contains(d) ? d : $"{d}: {string.Join(", ", store.List($"/local/domain/{d}"))}").Order();
        }

        private LabVifOptions NewVif() => new(
            $"xenbr{_random.Next(2)}",
            _freeMacs.Count > 0 && _random.Next(3) == 0 ? Take(_freeMacs) : NewMac(),
            BackendDomain: _random.Next(4) == 0 ? _driver : null);

        private string NewMac() => $"00:16:3e:{_random.Next(0x80):x2}:{_random.Next(256):x2}:{_random.Next(256):x2}";

        private string NewName() => $"{Pick(_colours)}-{++_names}";

        private LabGuest? PickGuest(Func<LabGuest, bool> condition)
        {
            LabGuest[] guests = [.. _guests.Where(condition)];
            return guests.Length > 0 ? Pick(guests) : null;
        }

        private T Pick<T>(IReadOnlyList<T> from) => from[_random.Next(from.Count)];

        private T Take<T>(List<T> from)
        {
            T taken = Pick(from);
            from.Remove(taken);
            return taken;
        }

        private void Tell(string what) => History.Add($"{History.Count + 1} {DateTime.Now:HH:mm:ss.fff} {what}");
    }
}
