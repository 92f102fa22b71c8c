using System.Diagnostics;
using System.Globalization;
using System.Text.RegularExpressions;
using XenLoop.Rig;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Xen;

/// <summary>A peer that comes back again and again, and what it does not give back of what it was granted.</summary>
[Collection(SuspendHost.Name)]
public sealed partial class KeptPagesTests(ChannelFixture xen, ITestOutputHelper output)
{
    // Or for so long. See ./test.
    private static readonly double _seconds = double.Parse(Environment.GetEnvironmentVariable("XENLOOP_EVIL_SECONDS") ?? "0", CultureInfo.InvariantCulture);

    // A control page and two rings of 1 MiB.
    private const int OneSet = 1 + (2 * 1024 / 4);

    // Its pages stay mapped, and the next daemon may have what it needs.
    private const string Stop = """
        kill -STOP $(cat /run/xenloopd.pid)
        ip link del xl$victim.0
        """;

    private const string Kill = "kill -KILL $(cat /run/xenloopd.pid)";

    /// <summary>What the peer does in each round, as a guest's administrator can, with what is there; whether its daemons live on, stopped; and how many rounds there are at least.</summary>
    public static readonly TheoryData<string, string, bool, int> Hostilities = new()
    {
        { "keeps them", Stop, true, 5 },
        { "keeps them and says that it does not", $"{Stop}\nxenstore-write $node \"closed $(xenstore-read $node | cut -d ' ' -f 2)\"; sleep 0.5", true, 5 },
        { "ends without a word", Kill, false, 2 },
        { "says whatever it likes", $"for i in $(seq 100); do xenstore-write $node \"offer $i $i $i\" 2>/dev/null; xenstore-write $node closed; done\n{Kill}", false, 2 },
        { "fills its area", $"for i in $(seq 120); do xenstore-write data/xenloop/$(printf %040d $i) x 2>/dev/null; done\n{Kill}", false, 2 },
    };

    [Theory, MemberData(nameof(Hostilities))]
    public async Task A_peer_has_the_pages_of_one_channel_whatever_it_does(string what, string script, bool stays, int leastRounds)
    {
        Node victim = xen["pvh1"], other = xen["pvh2"];
        // Its daemons stay.
        Node keeper = await xen.AddGuestAsync(ChannelFixture.Small("keeper", GuestKind.Pvh) with { MemoryMiB = _seconds > 0 ? 768 : 256 });
        await ChannelFixture.ChannelUpAsync(victim, other);
        await other.StartPingAsync(victim.Guest.Ipv4);
        await ChannelFixture.ChannelUpAsync(victim, keeper);
        List<int> counts = [await MappedAsync(victim, keeper)];
        Stopwatch watch = Stopwatch.StartNew();
        while (counts.Count <= leastRounds || watch.Elapsed.TotalSeconds < _seconds)
        {
            // For as many stopped daemons the keeper has memory.
            await xen.SleepAsync(_seconds / 60);
            (await keeper.RunAsync($"""
                victim={victim.Domid}
                node=data/xenloop/0-$victim-0
                {script}
                rm -f /run/xenloop/control.sock
                xenstore-rm data/xenloop
                """)).Check();
            await keeper.Daemon.StartAsync();
            await ChannelFixture.ChannelUpAsync(victim, keeper);
            counts.Add(await MappedAsync(victim, keeper));
        }

        output.WriteLine($"{what}: grants of the victim that the peer has mapped, after each round, {watch.Elapsed.TotalSeconds:f0} s in all: {string.Join(' ', counts)}");
        Assert.All(counts, count => Assert.Equal(OneSet, count));
        Assert.Equal($"{(stays ? counts.Count : 1)}\n", (await keeper.RunAsync("cat /proc/[0-9]*/comm | grep -c '^xenloopd$'")).Output);
        await other.StopPingAsync();
        (long sent, _) = await other.PacketsAsync(victim);
        Assert.True(sent > 0, "the other channel did not stay");
        await keeper.Guest.DestroyAsync();
        await victim.KernelIsWellAsync();
    }

    /// <summary>The grants of a guest that another has mapped, as the hypervisor has them.</summary>
    private async Task<int> MappedAsync(Node owner, Node by)
    {
        string said = (await xen.Host.RunAsync("xl dmesg -c >/dev/null; xl debug-keys g; sleep 1; xl dmesg")).Check().Output;
        string domain = string.Create(CultureInfo.InvariantCulture, $"grant-table for remote d{owner.Domid} ");
        string[] tables = said.Split("grant-table for remote d");
        string table = Assert.Single(tables[1..], t => $"grant-table for remote d{t}".StartsWith(domain, StringComparison.Ordinal));
        return Mapping().Matches(table).Count(m => int.Parse(m.Groups[1].ValueSpan, CultureInfo.InvariantCulture) == by.Domid);
    }

    // "[0x01f]     3 0x1234 0x00000002 ...": an entry that guest 3 has mapped.
    [GeneratedRegex(@"^.*\[0x[0-9a-f]+\] +(\d+) 0x.*$", RegexOptions.Multiline)]
    private static partial Regex Mapping();
}
