using Tmds.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>Who is introduced to whom, and what becomes of it when guests and Dom0's daemon come and go.</summary>
[Collection(DaemonTests.Name)]
public class DaemonIntroductionTests
{
    [Fact]
    public async Task Guests_on_the_same_bridge_get_a_channel_and_others_do_not()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b"), other = await lab.AddGuestAsync("other", bridge: "xenbr1");
        await lab.ChannelUpAsync(a, b);
        ulong? session = lab.Session(a, b);

        // A third guest, later.
        LabGuest c = await lab.AddGuestAsync("c");
        await lab.ChannelUpAsync(a, c);
        await lab.ChannelUpAsync(b, c);
        Assert.Equal(session, lab.Session(a, b));
        Assert.Equal([$"{b.Domid}-0", $"{c.Domid}-0"], lab.Introduced(a)!);

        // Dom0 knows that the guest on the other bridge is willing, and introduces it to nobody.
        await lab.UntilAsync("the other guest's vif takes part", () => lab.XenStore.Read($"{other.Home}/xenloop/0") == other.MacText);
        Assert.Equal([], lab.Introduced(other)!);
        Assert.Equal("none", DaemonLab.State(other, a));
        Assert.Null(lab.XenStore.Read($"{a.Home}/xenloop/0/{other.Domid}-0"));
        Assert.Equal(2, lab.Host.Broker.Count(a.Domid).Ports);

        long diverted = DaemonLab.Diverted(a, c);
        await Ping.MustAsync(a, c, 5);
        Assert.Equal(diverted + 5, DaemonLab.Diverted(a, c));
    }

    [Fact]
    public async Task A_guest_that_leaves_is_withdrawn_and_its_domid_can_be_used_again()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;

        // By SIGTERM of its daemon.
        Assert.Equal(0, await lab.StopAsync(b));
        Assert.Null(lab.XenStore.Read($"{b.Home}/data/xenloop"));
        await lab.UntilAsync("a is not introduced any more", () => lab.Introduced(a) is [] && DaemonLab.State(a, b) == "none");
        Assert.Null(lab.XenStore.Read(DaemonLab.ChannelNode(a, b)));
        GuestUsage alone = lab.Usage(a);
        lab.Start(b);
        await lab.ChannelUpAsync(a, b);

        // By its end, in the middle of everything.
        await lab.Host.DestroyGuestAsync(b);
        await lab.UntilAsync("a is not introduced any more", () => lab.Introduced(a) is [] && DaemonLab.State(a, b) == "none");
        await lab.UsageIsAsync(a, alone);

        // Another guest with the same domid, and then the first one's MAC as well.
        LabGuest second = await lab.AddGuestAsync("second", domid: b.Domid);
        await lab.ChannelUpAsync(a, second);
        await Ping.MustAsync(a, second);
        await lab.Host.DestroyGuestAsync(second);
        LabGuest third = await lab.AddGuestAsync("third", domid: b.Domid, mac: second.MacText);
        await lab.ChannelUpAsync(a, third);
        await Ping.MustAsync(a, third);
    }

    [Fact]
    public async Task Introductions_outlive_Dom0s_daemon()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest c = await lab.AddGuestAsync("c");
        await lab.ChannelUpAsync(a, c);
        ulong? session = lab.Session(a, b);
        using XenStore dom0 = XenStoreFixture.Open(lab.Dom0.StoreSocket);
        dom0.Watch($"{a.Home}/xenloop/0/{b.Domid}-0", "a to b");
        XenStoreFixture.TakeEvents(dom0, 1);

        await lab.KillAsync(lab.Dom0);
        await Ping.MustAsync(a, b);
        await lab.Host.DestroyGuestAsync(c);
        lab.Start(lab.Dom0);
        await lab.UntilAsync("the guest that is gone is withdrawn", () => lab.Introduced(a) is [string one] && one == $"{b.Domid}-0");
        Assert.Null(lab.XenStore.Read($"{a.Home}/xenloop/0/{c.Domid}-0"));

        // The one that stayed was not withdrawn even for a moment.
        XenStoreFixture.AssertNoEvents(dom0);
        Assert.True(lab.IsUp(a, b), lab.Messages());
        Assert.Equal(session, lab.Session(a, b));
    }

    [Fact]
    public async Task A_neighbour_whose_MAC_changes_unseen_gets_its_channel()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;

        // a's daemon sleeps through the change, and finds another MAC where the first one was.
        lab[a].Signal(LibC.SIGSTOP);
        await lab.Host.DestroyGuestAsync(b);
        LabGuest successor = await lab.AddGuestAsync("successor", domid: b.Domid);
        await lab.UntilAsync("a's introduction has the new MAC", () =>
            lab.XenStore.Read($"{a.Home}/xenloop/0/{b.Domid}-0")?.StartsWith(successor.MacText, StringComparison.Ordinal) == true);
        lab[a].Signal(LibC.SIGCONT);
        await lab.ChannelUpAsync(a, successor);
        await Ping.MustAsync(a, successor);
    }

    [Fact]
    public async Task Hundreds_of_neighbours_cost_no_watch()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        LabGuest a = await lab.AddGuestAsync("a");
        await lab.UntilAsync("a answers", () => DaemonLab.Status(a) is not null);
        int watches = lab.XenStore.Count(a.Domid).Watches;
        (ushort, XenStoreAccess)[] readable = [(0, XenStoreAccess.None), (a.Domid, XenStoreAccess.Read)];
        lab.XenStore.Write($"{a.Home}/xenloop", "", readable);
        lab.XenStore.Write($"{a.Home}/xenloop/0", a.MacText, readable);
        for (int i = 0; i < 200; i++)
        {
            lab.XenStore.Write($"{a.Home}/xenloop/0/{1000 + i}-0", $"00:16:3e:99:00:{i:x2} 1 0", readable);
        }

        await lab.UntilAsync("a follows its introductions", () => LabStatus.Peers(DaemonLab.Status(a)!.Value).Count() == 200);
        Assert.Equal(watches, lab.XenStore.Count(a.Domid).Watches);
        Assert.Equal(default, lab.Host.Broker.Count(a.Domid));
    }

    [Fact]
    public async Task Garbage_in_introductions_is_ignored()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.UntilAsync("both answer", () => DaemonLab.Status(a) is not null && DaemonLab.Status(b) is not null);
        Random random = new(Seed: 7);
        string[] vifs = ["0", "1", "-1", "00", "99999999999", "x", "0-0"];
        string[] peers = [$"{b.Domid}-0", $"{b.Domid}", $"{b.Domid}-0-0", "65536-0", "-", "0-0", $"{a.Domid}-0", $"{b.Domid}-99999999999", "x-y", $"{b.Domid}-7"];
        string[] values = ["", " ", a.MacText, $"{b.MacText} x y z", "00:16:3e", "ff:ff:ff:ff:ff:ff 1 0", "\0\u0001\n", new string('9', 1900), "zz:zz:zz:zz:zz:zz 1 0", $"{b.MacText} 99999999999 0"];
        for (int i = 0; i < 300; i++)
        {
            string node = $"{a.Home}/xenloop/{Pick(vifs)}";
            if (random.Next(3) > 0)
            {
                node += $"/{Pick(peers)}";
            }

            if (random.Next(5) == 0)
            {
                lab.XenStore.Remove(node);
            }
            else
            {
                lab.XenStore.Write(node, Pick(values));
            }
        }

        Assert.NotNull(DaemonLab.Status(a));
        lab.XenStore.Remove($"{a.Home}/xenloop");
        lab.Start(lab.Dom0);
        await lab.ChannelUpAsync(a, b);
        Assert.False(lab[a].HasExited);

        string Pick(string[] from) => from[random.Next(from.Length)];
    }
}
