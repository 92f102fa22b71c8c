using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>
/// After a suspend the guest's watches fire, and its home in XenStore may be another one. What that does to ports and mappings
/// only real Xen shows; here is what the daemon makes of the news.
/// </summary>
[Collection(DaemonTests.Name)]
public class DaemonResumeTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task Who_resumes_with_a_channel_begins_anew_in_place(bool listener)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest guest = listener ? a : b;
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        string[] traces = Namespaces.Traces(guest);
        int pid = Pid(guest);
        ulong? session = lab.Session(a, b);
        Ping ping = Ping.Start(a, b, interval: 0.02);
        await lab.UntilAsync("replies", () => ping.Replies > 20);
        Resume(lab, guest);
        await lab.UntilAsync("another channel", () => lab.IsUp(a, b) && lab.Session(a, b) != session);
        int replies = ping.Replies;
        await lab.UntilAsync("replies by it", () => ping.Replies > replies + 20);
        (_, double gap, string summary) = await ping.StopAsync();
        Assert.True(gap < 1, $"{gap} s without a reply; {summary}\n{lab.Messages()}");
        Assert.Equal(1, lab.CountMessages(guest, "this guest was suspended while it had channels"));
        Assert.Equal(pid, Pid(guest));
        await lab.UsageIsAsync(a, usageA);
        await lab.UsageIsAsync(b, usageB);
        Assert.Equal(traces, Namespaces.Traces(guest));
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Who_was_quiesced_offers_itself_in_its_new_home(bool newHome)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        Assert.Equal(0, (await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} {b.Name}")).ExitCode);
        if (newHome)
        {
            // On another host, where it has the same domid by chance.
            lab.XenStore.Remove($"{b.Home}/data/xenloop");
            lab.XenStore.Remove($"{b.Home}/xenloop");
            await lab.StopAsync(lab.Dom0);
        }

        Resume(lab, b);
        await lab.UntilAsync("the offer", () => lab.XenStore.Read($"{b.Home}/data/xenloop/offer") is not null && lab.CountMessages(b, "resumed after a suspend") == 1);
        Assert.Equal(0, lab.CountMessages(b, "begins anew"));
        if (newHome)
        {
            lab.Start(lab.Dom0);
        }
        else
        {
            Assert.Equal(0, (await lab.Dom0.RunAsync($"{DaemonLab.Command} resume {DaemonLab.Socket} {b.Name}")).ExitCode);
        }

        await lab.ChannelUpAsync(a, b);
    }

    /// <summary>The kernel sets the guest's watches again, and each fires.</summary>
    private static void Resume(DaemonLab lab, LabGuest guest) => lab.XenStore.Write($"{guest.Home}/domid", guest.Domid.ToString(null, null));

    private static int Pid(LabGuest guest) => DaemonLab.Status(guest)!.Value.GetProperty("pid").GetInt32();
}
