using System.Net.Sockets;
using System.Text.Json;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>The control socket, and the operator's command.</summary>
[Collection(DaemonTests.Name)]
public class DaemonControlTests
{
    [Fact]
    public async Task Status_is_JSON_with_what_an_operator_asks_for()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await Ping.MustAsync(a, b, 5);

        (int exit, string output) = await a.RunAsync($"{DaemonLab.Command} status --json {DaemonLab.Socket}");
        Assert.True(exit == 0, output);
        JsonElement guest = JsonDocument.Parse(output).RootElement;
        AssertMembers(guest, "version", "pid", "mode", "garbage_collections", "resident_bytes", "role", "domid", "vifs");
        Assert.Equal("guest", guest.GetProperty("role").GetString());
        Assert.Equal(a.Domid, guest.GetProperty("domid").GetInt32());
        Assert.Equal(lab[a].Pid, guest.GetProperty("pid").GetInt32());
        Assert.Equal("adaptive", guest.GetProperty("mode").GetString());
        JsonElement vif = Assert.Single(guest.GetProperty("vifs").EnumerateArray());
        AssertMembers(vif, "vif", "interface", "mac", "divert", "peers");
        Assert.Equal("eth0", vif.GetProperty("interface").GetString());
        Assert.Equal(a.MacText, vif.GetProperty("mac").GetString());
        JsonElement peer = Assert.Single(vif.GetProperty("peers").EnumerateArray());
        AssertMembers(
            peer, "domid", "vif", "mac", "state", "role", "packets_seen", "packets_diverted", "tap", "ring_bytes", "sent_packets",
            "sent_bytes", "received_packets", "received_bytes", "receive_errors", "notifications", "stalls", "discarded_packets");
        Assert.Equal((b.Domid, b.MacText), (peer.GetProperty("domid").GetUInt16(), peer.GetProperty("mac").GetString()));
        Assert.Equal(("running", "listener"), (peer.GetProperty("state").GetString(), peer.GetProperty("role").GetString()));
        Assert.Equal((1 << 20, $"xl{b.Domid}.0"), (peer.GetProperty("ring_bytes").GetInt32(), peer.GetProperty("tap").GetString()));
        Assert.InRange(peer.GetProperty("sent_packets").GetInt32(), 5, 100);

        JsonElement dom0 = JsonDocument.Parse((await lab.Dom0.RunAsync($"{DaemonLab.Command} status --json {DaemonLab.Socket}")).Output).RootElement;
        AssertMembers(dom0, "version", "pid", "mode", "garbage_collections", "role", "guests");
        Assert.Equal("dom0", dom0.GetProperty("role").GetString());
        JsonElement first = dom0.GetProperty("guests")[0];
        AssertMembers(first, "domid", "name", "willing", "vifs");
        Assert.Equal(("a", true), (first.GetProperty("name").GetString(), first.GetProperty("willing").GetBoolean()));
        AssertMembers(first.GetProperty("vifs")[0], "vif", "mac", "segment", "introduced");
        Assert.Equal([$"{b.Domid}-0"], lab.Introduced(a)!);
    }

    [Fact]
    public async Task Unknown_requests_silent_clients_and_absent_daemons_are_told_apart()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        foreach (string request in new[] { "", "dance", "status now", new string('x', 10_000), "\0\u0001\"" })
        {
            // Longer than what the daemon reads of a request: it may hang up before it was all sent.
            string? answer = DaemonLab.Ask(a, request);
            Assert.True(answer is not null || request.Length > 256, $"no answer to {request}");
            if (answer is not null)
            {
                Assert.Contains("unknown request", JsonDocument.Parse(answer).RootElement.GetProperty("error").GetString(), StringComparison.Ordinal);
            }
        }

        using Socket silent = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        silent.Connect(new UnixDomainSocketEndPoint(DaemonLab.ControlSocketOf(a)));
        Assert.NotNull(DaemonLab.Status(a));
        Assert.Equal("running", DaemonLab.State(a, b));

        await lab.StopAsync(a);
        (int exit, string output) = await a.RunAsync($"{DaemonLab.Command} status --json {DaemonLab.Socket}");
        Assert.Equal(5, exit);
        Assert.Contains("no daemon answers", output, StringComparison.Ordinal);
        Assert.Contains("systemctl start xenloopd", output, StringComparison.Ordinal);
        Assert.DoesNotContain("root", output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Each_kind_of_failure_has_its_exit_code_and_its_message()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabProcess daemon = lab[lab.Dom0];
        await lab.UntilAsync("Dom0's daemon answers", () => DaemonLab.Status(lab.Dom0) is not null);
        await FailsAsync("dance", 2, "Unrecognized command");
        await FailsAsync("ping --count 0 1", 2, "--count is \"0\"; write a number from 1 to 1000\n\nxenloop: \"xenloop ping --help\" has what it takes");
        await FailsAsync($"status {DaemonLab.Socket} >/dev/full", 8, "xenloop: write on standard output: ENOSPC");
        await FailsAsync("--help >/dev/full", 8, "xenloop: write on standard output: ENOSPC");
        await FailsAsync($"resume 99 {DaemonLab.Socket}", 1, "there is no domain");
        LabGuest guest = await lab.Host.AddGuestAsync("guest");
        (int exit, string output) = await guest.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} another");
        Assert.True(exit == 6, $"{exit}, {output}");
        Assert.Contains("ask in Dom0", output, StringComparison.Ordinal);
        // Nobody: the socket's folder is root's. The program itself may lie where only root comes.
        (exit, output) = await lab.Dom0.RunAsync($"""
            folder=$(mktemp -d) && chmod 755 $folder && cp -r {Path.GetDirectoryName(DaemonLab.Command)}/. $folder
            setpriv --reuid=65534 --regid=65534 --clear-groups $folder/xenloop status {DaemonLab.Socket}
            code=$?
            rm -r $folder
            exit $code
            """);
        Assert.True(exit == 7, $"{exit}, {output}");
        Assert.Contains("root", output, StringComparison.Ordinal);

        // One that is stopped is not one that is not there.
        daemon.Signal(LibC.SIGSTOP);
        await FailsAsync($"status {DaemonLab.Socket}", 5, "systemctl restart xenloopd");
        daemon.Signal(LibC.SIGCONT);
        await lab.KillAsync(lab.Dom0);
        await FailsAsync($"status {DaemonLab.Socket}", 5, "it was killed");
        // Its reader has gone: nothing is said of it.
        Assert.Equal("8\n", (await lab.Dom0.RunAsync($"(sleep 0.3; {DaemonLab.Command} --help; echo $? >&2) | true; sleep 1")).Output);

        async Task FailsAsync(string arguments, int code, string message)
        {
            (int ended, string said) = await lab.Dom0.RunAsync($"{DaemonLab.Command} {arguments}");
            Assert.True(ended == code, $"{arguments}: {ended}, {said}");
            Assert.Contains(message, said, StringComparison.Ordinal);
            Assert.DoesNotContain("   at ", said, StringComparison.Ordinal);
        }
    }

    [Fact]
    public async Task JSON_is_written_for_people_too()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        await lab.UntilAsync("Dom0's daemon answers", () => DaemonLab.Status(lab.Dom0) is not null);
        Assert.DoesNotContain("\\u00", DaemonLab.Ask(lab.Dom0)!, StringComparison.Ordinal);
        // What has a meaning to a terminal stays escaped.
        Assert.Contains("\\u001B[31m+<>&'", DaemonLab.Ask(lab.Dom0, "\u001b[31m+<>&'")!, StringComparison.Ordinal);
    }

    [Fact]
    public async Task A_second_daemon_is_refused_and_costs_the_first_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        LabProcess first = lab[a];
        GuestUsage usage = lab.Usage(a);
        foreach (LabDomain domain in new[] { a, lab.Dom0 })
        {
            LabProcess second = lab.Start(domain);
            await lab.UntilAsync("the second daemon ends", () => second.HasExited);
            await second.WaitForExitAsync();
            Assert.Equal(1, second.ExitCode);
            Assert.Contains("another xenloopd answers", second.Output, StringComparison.Ordinal);
        }

        await lab.UsageIsAsync(a, usage);
        Assert.False(first.HasExited);
        Assert.NotNull(lab.XenStore.Read($"{a.Home}/data/xenloop/offer"));
        Assert.True(lab.IsUp(a, b), lab.Messages());
        Assert.Equal(session, lab.Session(a, b));
    }

    private static void AssertMembers(JsonElement element, params string[] names) =>
        Assert.Superset(names.ToHashSet(), element.EnumerateObject().Select(m => m.Name).ToHashSet());
}
