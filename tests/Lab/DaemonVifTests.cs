using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>Guests with several vifs, which come, go, change and move, in Dom0 and in driver domains.</summary>
[Collection(DaemonTests.Name)]
public class DaemonVifTests
{
    private const string Bridge = LabHost.DefaultBridge;
    private const string OtherBridge = "xenbr1";
    private const string AllowDriverDomains = "[policy]\nignore-restrictions-on = [\"*/xenbr0*\"]\n";

    [Fact]
    public async Task Vifs_on_the_same_bridge_get_a_channel_each()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a", [new(Bridge), new(OtherBridge)]), b = await lab.AddGuestAsync("b", [new(Bridge), new(OtherBridge)]);
        // Its vifs meet others, and not each other.
        LabGuest c = await lab.AddGuestAsync("c", [new(OtherBridge), new(OtherBridge)]);
        (LabVif, LabVif)[] pairs = [(a[0], b[0]), (a[1], b[1]), (a[1], c[0]), (a[1], c[1]), (b[1], c[0]), (b[1], c[1])];
        await lab.IntroducedAsync(pairs);
        GuestUsage[] before = [.. new[] { a, b, c }.Select(lab.Usage)];
        foreach ((LabVif vif, LabVif peer) in pairs)
        {
            await lab.MustDivertAsync(vif, peer);
        }

        Assert.All(pairs, p => Assert.True(lab.IsUp(p.Item1, p.Item2), lab.Messages()));
        Assert.Equal([4, 4, 4], new[] { a, b, c }.Select(g => lab.Host.Broker.Count(g.Domid).Ports));
        Assert.Equal(["xl2.0", "xl2.1.1", "xl3.0.1", "xl3.1.1"], Taps(a));

        // All of one guest's go with its daemon, and nothing of them stays.
        Assert.Equal(0, await lab.StopAsync(c));
        await lab.NothingLeftAsync(c, new(default, lab.XenStore.Count(c.Domid) with { Watches = 0, Connections = 0 }));
        await lab.IntroducedAsync((a[0], b[0]), (a[1], b[1]));
        await lab.UntilAsync("their channels go", () => Taps(a) is ["xl2.0", "xl2.1.1"] && Taps(b) is ["xl1.0", "xl1.1.1"]);
        Assert.True(lab.IsUp(a[0], b[0]) && lab.IsUp(a[1], b[1]), lab.Messages());
        Assert.Equal(2, lab.Host.Broker.Count(a.Domid).Ports);
        Assert.True(lab.Usage(a).XenStore.Nodes < before[0].XenStore.Nodes + 3, lab.Messages());
    }

    [Fact]
    public async Task A_vif_is_plugged_in_and_out_beside_one_that_works()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b", [new(Bridge), new(OtherBridge)]);
        await lab.IntroducedAsync((a[0], b[0]));
        await lab.MustDivertAsync(a[0], b[0]);
        ulong? session = lab.Session(a, b);
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        string[] tracesA = Namespaces.Traces(a), tracesB = Namespaces.Traces(b);
        using Echo echo = Echo.Open(a[0], b[0]);
        using CancellationTokenSource end = new();
        Task sending = echo.SendAsync(100, end.Token);
        for (int i = 0; i < 4; i++)
        {
            // In turn: on the bridge where b is, and on one where nobody is.
            bool meets = i % 2 == 0;
            LabVif vif = await lab.Host.PlugAsync(a, 1, new(meets ? OtherBridge : "xenbr2"));
            if (meets)
            {
                await lab.IntroducedAsync((a[0], b[0]), (vif, b[1]));
                await lab.MustDivertAsync(vif, b[1]);
                Assert.Equal(2, lab.Host.Broker.Count(a.Domid).Ports);
            }
            else
            {
                await lab.UntilAsync("the vif takes part", () => lab.XenStore.Read($"{a.Home}/xenloop/1") == vif.MacText);
                Assert.Equal(VifLab.Introductions((a[0], b[0])), lab.Introductions());
            }

            await lab.Host.UnplugAsync(a, 1);
            await lab.IntroducedAsync((a[0], b[0]));
            await lab.UsageIsAsync(a, usageA);
            await lab.UsageIsAsync(b, usageB);
            await lab.UntilAsync("nothing is left of it", () => tracesA.SequenceEqual(Namespaces.Traces(a)) && tracesB.SequenceEqual(Namespaces.Traces(b)));
            Assert.Null(lab.XenStore.Read($"{a.Home}/xenloop/1"));
        }

        await end.CancelAsync();
        await sending;
        await lab.UntilAsync(() => $"{echo.Missing} replies more", () => echo.Missing == 0, seconds: 1);
        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b), lab.Messages());
    }

    [Fact]
    public async Task A_vif_that_is_moved_by_hand_meets_those_on_its_new_bridge()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b"), c = await lab.AddGuestAsync("c", [new(OtherBridge)]);
        await lab.IntroducedAsync((a[0], b[0]));
        GuestUsage idle = lab.Usage(a);
        for (int i = 0; i < 3; i++)
        {
            await lab.MustDivertAsync(a[0], b[0]);
            await lab.Host.MoveAsync(a, 0, OtherBridge);
            await lab.IntroducedAsync((a[0], c[0]));
            await lab.UntilAsync("a and b have no channel", () => DaemonLab.State(a, b) == "none" && DaemonLab.State(b, a) == "none");
            await lab.UsageIsAsync(a, idle);
            await lab.MustDivertAsync(a[0], c[0]);
            await lab.Host.MoveAsync(a, 0, Bridge);
            await lab.IntroducedAsync((a[0], b[0]));
            await lab.UsageIsAsync(a, idle);
        }

        // No bridge is no segment.
        (int exit, string said) = await lab.Dom0.RunAsync($"ip link set {a[0].BackendInterface} nomaster");
        Assert.True(exit == 0, said);
        await lab.IntroducedAsync();
        await lab.UntilAsync("a does not take part", () => lab.XenStore.Read($"{a.Home}/xenloop") is null);
    }

    [Fact]
    public async Task A_vif_with_a_new_MAC_gets_its_channel_and_a_rename_costs_none()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.MustDivertAsync(a[0], b[0]);
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        string[] traces = Namespaces.Traces(a);
        for (int i = 0; i < 4; i++)
        {
            // Either end of a channel.
            LabGuest guest = i % 2 == 0 ? a : b;
            await lab.Host.SetMacAsync(guest, 0, $"00:16:3e:aa:00:0{i}");
            await lab.IntroducedAsync((a[0], b[0]));
            await lab.MustDivertAsync(a[0], b[0]);
            await lab.UsageIsAsync(a, usageA);
            await lab.UsageIsAsync(b, usageB);
            Assert.Equal(traces, Namespaces.Traces(a));
        }

        // With the MAC it had: another vif all the same.
        await lab.Host.SetMacAsync(a, 0, a.MacText);
        await lab.IntroducedAsync((a[0], b[0]));
        await lab.MustDivertAsync(a[0], b[0]);

        ulong? session = lab.Session(a, b);
        await lab.Host.RenameAsync(a, "renamed");
        await lab.UntilAsync("Dom0 knows the name", () => DaemonLab.Ask(lab.Dom0)!.Contains("\"renamed\"", StringComparison.Ordinal));
        await lab.MustDivertAsync(b[0], a[0]);
        Assert.Equal(session, lab.Session(a, b));
        await lab.UsageIsAsync(a, usageA);
    }

    [Fact]
    public async Task Guests_behind_a_driver_domain_meet_each_other_only()
    {
        await using DaemonLab lab = await StartWithDriverDomainsAsync();
        LabGuest driver = await lab.AddGuestAsync("driver"), second = await lab.Host.AddGuestAsync("second");
        // A bridge of the same name in three domains.
        LabGuest a = await lab.AddGuestAsync("a", [new(Bridge, BackendDomain: driver)]);
        LabGuest b = await lab.AddGuestAsync("b", [new(Bridge, BackendDomain: driver), new(Bridge)]);
        LabGuest c = await lab.AddGuestAsync("c"), d = await lab.AddGuestAsync("d", [new(Bridge, BackendDomain: second)]);
        (LabVif, LabVif)[] inDom0 = [(b[1], c[0]), (b[1], driver[0]), (c[0], driver[0])];
        await lab.IntroducedAsync([(a[0], b[0]), .. inDom0]);
        GuestUsage idle = lab.Usage(a);
        await lab.MustDivertAsync(a[0], b[0]);
        await lab.MustDivertAsync(b[1], c[0]);
        Assert.Equal(0, lab.Host.Broker.Count(d.Domid).Ports);

        // Hot-plug there.
        LabVif vif = await lab.Host.PlugAsync(c, 1, new(Bridge, BackendDomain: driver));
        await lab.IntroducedAsync([(a[0], b[0]), (a[0], vif), (b[0], vif), .. inDom0]);
        await lab.MustDivertAsync(a[0], vif);
        await lab.Host.UnplugAsync(c, 1);
        await lab.IntroducedAsync([(a[0], b[0]), .. inDom0]);

        // The backends end, with the vifs' interfaces.
        await lab.Host.DestroyGuestAsync(driver);
        await lab.IntroducedAsync((b[1], c[0]));
        await lab.UntilAsync("a and b have no channel", () => lab.Held(a) == default && lab.Host.Broker.Count(b.Domid).Ports == 1);
        await lab.UntilAsync(() => $"nothing is left: {string.Join(", ", Namespaces.Traces(a))}", () => Namespaces.Traces(a).Length == 0);
        Assert.True(lab.Usage(a).XenStore.Watches <= idle.XenStore.Watches, lab.Messages());
        await lab.MustDivertAsync(b[1], c[0]);

        // What is left can be plugged elsewhere.
        await lab.Host.UnplugAsync(a, 0);
        vif = await lab.Host.PlugAsync(a, 0, new(Bridge, BackendDomain: second));
        await lab.IntroducedAsync((b[1], c[0]), (vif, d[0]));
        await lab.MustDivertAsync(d[0], vif);
    }

    [Fact]
    public async Task Guests_in_different_VLANs_of_a_driver_domain_do_not_meet()
    {
        await using DaemonLab lab = await StartWithDriverDomainsAsync();
        LabGuest driver = await lab.Host.AddGuestAsync("driver");
        LabGuest[] guests =
        [
            await lab.AddGuestAsync("five", [new(Bridge, Vlan: 5, BackendDomain: driver)]),
            await lab.AddGuestAsync("five2", [new(Bridge, Vlan: 5, BackendDomain: driver)]),
            await lab.AddGuestAsync("six", [new(Bridge, Vlan: 6, BackendDomain: driver)]),
            await lab.AddGuestAsync("none", [new(Bridge, BackendDomain: driver)]),
        ];
        foreach (LabGuest guest in guests)
        {
            await lab.UntilAsync($"{guest.Name} takes part", () => lab.XenStore.Read($"{guest.Home}/xenloop/0") == guest.MacText);
        }

        await lab.IntroducedAsync((guests[0][0], guests[1][0]));
        await lab.MustDivertAsync(guests[0][0], guests[1][0]);

        // A vif that comes into another VLAN is another vif.
        await lab.Host.UnplugAsync(guests[1], 0);
        LabVif vif = await lab.Host.PlugAsync(guests[1], 0, new(Bridge, Vlan: 6, BackendDomain: driver));
        await lab.IntroducedAsync((vif, guests[2][0]));
        await lab.MustDivertAsync(vif, guests[2][0]);
        Assert.Equal(default, lab.Held(guests[0]));
    }

    [Fact]
    public async Task Behind_a_driver_domain_nobody_is_introduced_unless_the_policy_says_so()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, "");
        LabGuest driver = await lab.Host.AddGuestAsync("driver");
        LabGuest a = await lab.AddGuestAsync("a", [new(Bridge, BackendDomain: driver)]), b = await lab.AddGuestAsync("b", [new(Bridge, BackendDomain: driver)]);
        await lab.UntilAsync("both take part", () => lab.XenStore.Read($"{a.Home}/xenloop/0") is not null && lab.XenStore.Read($"{b.Home}/xenloop/0") is not null);
        await lab.EchoAsync(a[0], b[0], 5);
        Assert.Empty(lab.Introductions());
        await lab.ReloadAsync(lab.Dom0, AllowDriverDomains);
        await lab.IntroducedAsync((a[0], b[0]));
        await lab.MustDivertAsync(a[0], b[0]);
    }

    /// <summary>What they do to frames nobody in Dom0 can see: the administrator says that it is nothing.</summary>
    private static async Task<DaemonLab> StartWithDriverDomainsAsync()
    {
        DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, AllowDriverDomains);
        return lab;
    }

    private static string[] Taps(LabGuest guest) =>
        [.. Namespaces.Traces(guest).Where(t => t.StartsWith("xl", StringComparison.Ordinal)).Order(StringComparer.Ordinal)];
}
