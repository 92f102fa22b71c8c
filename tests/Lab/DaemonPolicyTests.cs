using System.Diagnostics;
using System.Globalization;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>Who may meet is for Dom0's configuration to say, and for a guest's own: at the start, by a reload, and after a restart.</summary>
[Collection(DaemonTests.Name)]
public class DaemonPolicyTests(ITestOutputHelper output)
{
    private const double MostMilliseconds = 200;
    private const string AllowAll = "[policy]\n";
    private const string DenyCustomers = "[policy]\ndeny = [[\"customers\", \"*\"]]\n[policy.groups]\ncustomers = [\"customer-*\"]\n";

    [Fact]
    public async Task Denied_by_default_an_allowed_pair_of_groups_meets()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, """
            [policy]
            default = "deny"
            allow = [["web", "db"]]
            [policy.groups]
            web = ["web-*"]
            db = ["db-?"]
            """);
        LabGuest web1 = await lab.AddGuestAsync("web-1"), web2 = await lab.AddGuestAsync("web-2");
        LabGuest db = await lab.AddGuestAsync("db-1"), other = await lab.AddGuestAsync("db-10");
        await lab.IntroducedAsync((web1[0], db[0]), (web2[0], db[0]));
        await lab.MustDivertAsync(web1[0], db[0]);
        await lab.MustDivertAsync(db[0], web2[0]);

        // The others reach each other all the same, and never by a channel.
        foreach ((LabGuest from, LabGuest to) in new[] { (web1, web2), (web1, other), (other, db) })
        {
            await lab.EchoAsync(from[0], to[0], 10);
            Assert.Equal(("none", "none"), (DaemonLab.State(from, to), DaemonLab.State(to, from)));
        }

        Assert.Equal(VifLab.Introductions((web1[0], db[0]), (web2[0], db[0])), lab.Introductions());
        Assert.Equal([1, 0], new[] { web1, other }.Select(g => lab.Host.Broker.Count(g.Domid).Ports));
    }

    [Fact]
    public async Task A_denial_closes_a_running_channel_at_once_and_loses_nothing()
    {
        (DaemonLab lab, LabGuest a, LabGuest b) = await StartAsync(AllowAll, "customer-1", "b");
        await using DaemonLab disposed = lab;
        GuestUsage usageA = lab.Usage(a), usageB = lab.Usage(b);
        using Echo echo = Echo.Open(a[0], b[0]);
        using CancellationTokenSource end = new();
        Task sending = echo.SendAsync(200, end.Token);
        List<double> times = [];
        for (int i = 0; i < 5; i++)
        {
            await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
            File.WriteAllText(VifLab.ConfigurationFile(lab.Dom0), DenyCustomers);
            Stopwatch watch = Stopwatch.StartNew();
            lab[lab.Dom0].Signal(LibC.SIGHUP);
            TimeSpan elapsed = default;
            await lab.UntilAsync("the channel is closed", () =>
            {
                elapsed = watch.Elapsed;
                return !lab.IsConnected(a[0], b[0]) && lab.Held(a) == default && lab.Held(b) == default;
            });
            times.Add(elapsed.TotalMilliseconds);
            Assert.True(lab.IsStranger(a[0], b[0]));
            if (i == 0)
            {
                await Task.Delay(500);
                Assert.Equal(("none", "none"), (DaemonLab.State(a, b), DaemonLab.State(b, a)));
            }

            await lab.ReloadAsync(lab.Dom0, AllowAll);
        }

        times.Sort();
        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"denial to closed: {times[0]:f1} ms at least, {times[2]:f1} median, {times[^1]:f1} at most"));
        Assert.InRange(times[^1], 0, MostMilliseconds);
        await lab.ReloadAsync(lab.Dom0, DenyCustomers);
        await end.CancelAsync();
        await sending;
        await lab.UntilAsync(() => $"{echo.Missing} replies more", () => echo.Missing == 0, seconds: 1);
        // A node for the vif is what a guest keeps that may meet nobody.
        await lab.UsageIsAsync(a, usageA);
        await lab.UsageIsAsync(b, usageB);
        Assert.Equal(a.MacText, lab.XenStore.Read($"{a.Home}/xenloop/0"));
    }

    [Fact]
    public async Task A_group_names_guests_by_UUID()
    {
        (DaemonLab lab, LabGuest a, LabGuest b) = await StartAsync(AllowAll, "a", "b");
        await using DaemonLab disposed = lab;
        LabGuest c = await lab.AddGuestAsync("c");
        await lab.IntroducedAsync((a[0], b[0]), (a[0], c[0]), (b[0], c[0]));
        await lab.MustDivertAsync(a[0], b[0]);
        string start = a.Uuid.ToString().ToUpperInvariant()[..13];
        await lab.ReloadAsync(lab.Dom0, $"[policy]\ndeny = [[\"one\", \"*\"]]\n[policy.groups]\none = [\"{start}-*\"]\n");
        await lab.IntroducedAsync((b[0], c[0]));
        await lab.UntilAsync("a is on netfront", () => DaemonLab.State(a, b) == "none" && DaemonLab.State(b, a) == "none");
        await lab.EchoAsync(a[0], b[0], 5);
    }

    [Fact]
    public async Task A_guest_that_is_renamed_into_a_denied_group_leaves_its_channels()
    {
        (DaemonLab lab, LabGuest a, LabGuest b) = await StartAsync(DenyCustomers, "a", "b");
        await using DaemonLab disposed = lab;
        using Echo echo = Echo.Open(b[0], a[0]);
        using CancellationTokenSource end = new();
        Task sending = echo.SendAsync(100, end.Token);
        await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
        await lab.Host.RenameAsync(a, "customer-7");
        await lab.IntroducedAsync();
        await lab.UntilAsync("both are on netfront", () => DaemonLab.State(a, b) == "none" && DaemonLab.State(b, a) == "none");
        await lab.Host.RenameAsync(a, "a-again");
        await lab.IntroducedAsync((a[0], b[0]));
        await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
        await end.CancelAsync();
        await sending;
        await lab.UntilAsync(() => $"{echo.Missing} replies more", () => echo.Missing == 0, seconds: 1);
    }

    [Fact]
    public async Task A_file_with_a_mistake_keeps_the_policy_in_force()
    {
        (DaemonLab lab, LabGuest a, LabGuest b) = await StartAsync(DenyCustomers, "a", "b");
        await using DaemonLab disposed = lab;
        await lab.MustDivertAsync(a[0], b[0]);
        ulong? session = lab.Session(a, b);
        File.WriteAllText(VifLab.ConfigurationFile(lab.Dom0), "[policy]\ndefault = \"deny\"\ndeny = [[\"nobody-knows\", \"*\"]]\n");
        lab[lab.Dom0].Signal(LibC.SIGHUP);
        await lab.UntilAsync("the file is refused", () => lab.CountMessages(lab.Dom0, "the configuration in force stays") == 1);
        LabGuest c = await lab.AddGuestAsync("c"), customer = await lab.AddGuestAsync("customer-1");
        await lab.UntilAsync("the customer takes part", () => lab.XenStore.Read($"{customer.Home}/xenloop/0") == customer.MacText);
        await lab.IntroducedAsync((a[0], b[0]), (a[0], c[0]), (b[0], c[0]));
        Assert.True(lab.IsUp(a, b), lab.Messages());
        Assert.Equal(session, lab.Session(a, b));
    }

    [Fact]
    public async Task A_guest_switches_itself_off_and_on()
    {
        (DaemonLab lab, LabGuest a, LabGuest b) = await StartAsync(AllowAll, "a", "b");
        await using DaemonLab disposed = lab;
        await lab.MustDivertAsync(a[0], b[0]);
        using Echo echo = Echo.Open(b[0], a[0]);
        using CancellationTokenSource end = new();
        Task sending = echo.SendAsync(100, end.Token);
        for (int i = 0; i < 3; i++)
        {
            await lab.ReloadAsync(a, "[guest]\nenabled = false\n");
            await lab.IntroducedAsync();
            await lab.UntilAsync("both are on netfront", () => DaemonLab.State(a, b) == "none" && DaemonLab.State(b, a) == "none");
            Assert.Equal("off", lab.XenStore.Read($"{a.Home}/data/xenloop/offer"));
            await lab.UntilAsync("a holds nothing", () => lab.Held(a) == default && Namespaces.Traces(a).Length == 0);
            await lab.ReloadAsync(a, "[guest]\nenabled = true\n");
            await lab.UntilAsync("a channel", () => lab.IsUp(a, b));
        }

        await end.CancelAsync();
        await sending;
        await lab.UntilAsync(() => $"{echo.Missing} replies more", () => echo.Missing == 0, seconds: 1);
    }

    /// <summary>So fast that Dom0 does not notice, or while Dom0 has no daemon: the introductions stay what they were.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task A_guest_switches_itself_off_and_on_unseen(bool killed)
    {
        (DaemonLab lab, LabGuest a, LabGuest b) = await StartAsync(AllowAll, "a", "b");
        await using DaemonLab disposed = lab;
        await lab.MustDivertAsync(a[0], b[0]);
        if (killed)
        {
            await lab.KillAsync(lab.Dom0);
        }
        else
        {
            lab[lab.Dom0].Signal(LibC.SIGSTOP);
        }

        await lab.ReloadAsync(a, "[guest]\nenabled = false\n");
        await lab.UntilAsync("a holds nothing", () => lab.Held(a) == default && Namespaces.Traces(a).Length == 0);
        await lab.ReloadAsync(a, "[guest]\nenabled = true\n");
        if (killed)
        {
            lab.StartWith(lab.Dom0, AllowAll);
        }
        else
        {
            lab[lab.Dom0].Signal(LibC.SIGCONT);
        }

        // Before a packet: one of b's would make Dom0 write, and that wake a.
        await lab.IntroducedAsync(a[0], b[0]);
        await lab.MustDivertAsync(a[0], b[0]);
    }

    [Fact]
    public async Task Dom0s_daemon_comes_back_with_another_policy()
    {
        (DaemonLab lab, LabGuest a, LabGuest customer) = await StartAsync(AllowAll, "a", "customer-1");
        await using DaemonLab disposed = lab;
        LabGuest b = await lab.AddGuestAsync("b");
        await lab.MustDivertAsync(a[0], customer[0]);
        await lab.MustDivertAsync(a[0], b[0]);
        ulong? session = lab.Session(a, b);

        Assert.Equal(0, await lab.StopAsync(lab.Dom0));
        lab.StartWith(lab.Dom0, DenyCustomers);
        await lab.IntroducedAsync((a[0], b[0]));
        await lab.UntilAsync("the customer is on netfront", () => DaemonLab.State(a, customer) == "none" && DaemonLab.State(customer, a) == "none");

        // Killed, at whatever it does: the next one finishes it.
        Random random = new(Seed: 5);
        for (int i = 0; i < 10; i++)
        {
            // Earlier, the signal would end it.
            await lab.UntilAsync("Dom0's daemon answers", () => DaemonLab.Status(lab.Dom0) is not null);
            File.WriteAllText(VifLab.ConfigurationFile(lab.Dom0), i % 2 == 0 ? AllowAll : DenyCustomers);
            lab[lab.Dom0].Signal(LibC.SIGHUP);
            await Task.Delay(random.Next(4));
            await lab.KillAsync(lab.Dom0);
            bool all = random.Next(2) == 0;
            lab.StartWith(lab.Dom0, all ? AllowAll : DenyCustomers);
            await lab.IntroducedAsync(all ? [(a[0], b[0]), (a[0], customer[0]), (b[0], customer[0])] : [(a[0], b[0])]);
        }

        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b), lab.Messages());
        await lab.UntilAsync("Dom0's daemon answers", () => DaemonLab.Status(lab.Dom0) is not null);
        await lab.ReloadAsync(lab.Dom0, AllowAll);
        await lab.MustDivertAsync(a[0], customer[0]);
    }

    /// <summary>Two guests that know each other if the policy allows, each with a configuration of its own.</summary>
    private static async Task<(DaemonLab Lab, LabGuest A, LabGuest B)> StartAsync(string policy, string a, string b)
    {
        DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.StartWith(lab.Dom0, policy);
        LabGuest[] guests = [await lab.Host.AddGuestAsync(a), await lab.Host.AddGuestAsync(b)];
        Array.ForEach(guests, g => lab.StartWith(g, ""));
        await lab.IntroducedAsync(guests[0][0], guests[1][0]);
        return (lab, guests[0], guests[1]);
    }
}
