using System.Net.Sockets;
using System.Text.Json;
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

        (int exit, string output) = await a.RunAsync($"{DaemonLab.Command} status {DaemonLab.Socket}");
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
            "sent_bytes", "received_packets", "received_bytes", "receive_errors", "notifications", "stalls");
        Assert.Equal((b.Domid, b.MacText), (peer.GetProperty("domid").GetUInt16(), peer.GetProperty("mac").GetString()));
        Assert.Equal(("running", "listener"), (peer.GetProperty("state").GetString(), peer.GetProperty("role").GetString()));
        Assert.Equal((1 << 20, $"xl{b.Domid}.0"), (peer.GetProperty("ring_bytes").GetInt32(), peer.GetProperty("tap").GetString()));
        Assert.InRange(peer.GetProperty("sent_packets").GetInt32(), 5, 100);

        JsonElement dom0 = JsonDocument.Parse((await lab.Dom0.RunAsync($"{DaemonLab.Command} status {DaemonLab.Socket}")).Output).RootElement;
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
        (int exit, string output) = await a.RunAsync($"{DaemonLab.Command} status {DaemonLab.Socket}");
        Assert.Equal(1, exit);
        Assert.Contains("no daemon answers", output, StringComparison.Ordinal);
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
