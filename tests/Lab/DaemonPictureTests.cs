using System.Text.RegularExpressions;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>
/// What a terminal shows of a run: docs/status.svg and docs/top.svg. They are written when XENLOOP_PICTURES names a folder:
/// XENLOOP_PICTURES=$PWD/docs ./test --filter FullyQualifiedName~Picture lab
/// </summary>
[Collection(DaemonTests.Name)]
public class DaemonPictureTests(ITestOutputHelper output)
{
    private const string Good = "\e[32m", Bad = "\e[31m", End = "\e[0m";

    [Fact]
    public async Task A_terminal_has_colours_and_top_a_screen()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, "[policy]\ndeny = [[\"customers\", \"*\"]]\n[policy.groups]\ncustomers = [\"customer-*\"]\n");
        LabGuest web = await lab.AddGuestAsync("web"), db = await lab.AddGuestAsync("db"), cache = await lab.AddGuestAsync("cache");
        LabGuest mail = await lab.AddGuestAsync("mail"), backup = await lab.AddGuestAsync("backup"), customer = await lab.AddGuestAsync("customer-1");
        await lab.Host.AddGuestAsync("legacy");
        await lab.ChannelUpAsync(web, db);
        await lab.ChannelUpAsync(web, cache);
        await lab.UntilAsync("all are introduced", () => lab.Introduced(web) is { Length: 4 } && DaemonLab.Status(lab.Dom0)?.GetProperty("guests").GetArrayLength() == 7
            && lab.XenStore.Read($"{customer.Home}/data/xenloop/offer") is not null);
        Assert.Equal(0, (await web.RunAsync($"ping -q -c 1 {backup.IPv4}; {DaemonLab.Command} disable {backup.Domid} {DaemonLab.Socket}")).ExitCode);
        string hosts = Path.Combine(web.RuntimeDirectory, "hosts");
        File.WriteAllLines(hosts, new[] { db, cache, mail, backup }.Select(g => $"{g.IPv4} {g.Name}"));

        string dom0 = await LookAsync(lab.Dom0, "status");
        Assert.Contains($"{Bad}no daemon runs in it{End}", dom0, StringComparison.Ordinal);
        Save("status.svg", "xenloop status", dom0);

        db.Start("iperf3 -s -1");
        web.Start($"sleep 0.5; iperf3 -c {db.IPv4} -t 6");
        web.Start($"ping -q -i 0.002 -w 7 {cache.IPv4}");
        string top = await LookAsync(web, "top --interval 1 --count 4");
        string[] screens = top.Split("\e[H");
        Assert.Equal(5, screens.Length);
        string last = screens[^1].Replace("\e[K", "", StringComparison.Ordinal).Replace("\e[J", "", StringComparison.Ordinal);
        Assert.Matches($@"(?m)^ +db +{db.Domid} .*{Regex.Escape(Good)}shared memory *{Regex.Escape(End)} .* pkt/s, .*b/s ", last);
        Assert.Contains($"{Bad}switched off here", last, StringComparison.Ordinal);
        Save("top.svg", "xenloop top", last);

        // As on a terminal, with names for the addresses.
        async Task<string> LookAsync(LabDomain domain, string command)
        {
            (int code, string text) = await domain.RunAsync(
                $"[ ! -e $RUNTIME_DIRECTORY/hosts ] || mount --bind $RUNTIME_DIRECTORY/hosts /etc/hosts; TERM=xterm exec script -qec \"{DaemonLab.Command} {command} {DaemonLab.Socket}\" /dev/null");
            output.WriteLine(text);
            Assert.Equal(0, code);
            return text;
        }

        static void Save(string name, string command, string screen)
        {
            string picture = TerminalPicture.Draw(command, screen);
            Assert.DoesNotContain('\e', picture);
            if (Environment.GetEnvironmentVariable("XENLOOP_PICTURES") is { Length: > 0 } folder)
            {
                File.WriteAllText(Path.Combine(folder, name), picture);
            }
        }
    }
}
