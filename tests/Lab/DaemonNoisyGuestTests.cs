using System.Diagnostics;
using System.Globalization;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using XenLoop.Protocol;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>Guests that write to XenStore whatever they may. Dom0's daemon serves the others as before.</summary>
[Collection(DaemonTests.Name)]
public class DaemonNoisyGuestTests(ITestOutputHelper output)
{
    private const int RequestsPerSecond = 200;

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task More_nodes_than_fit_into_a_message_do_not_end_Dom0s_daemon(bool oxenstored)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        lab.XenStore.IsOxenstored = oxenstored;
        LabGuest noisy = await lab.Host.AddGuestAsync("noisy");
        using XenStore store = XenStoreFixture.Open(noisy.StoreSocket);
        store.Write("data/xenloop/offer", "1 0");
        Fill(store);
        lab.Start(lab.Dom0);
        (LabGuest a, LabGuest b) = (await lab.AddGuestAsync("a"), await lab.AddGuestAsync("b"));
        await lab.ChannelUpAsync(a, b);
        store.Write("data/xenloop/more", "");
        // And when it makes all of them anew.
        store.Remove("data/xenloop");
        store.Write("data/xenloop/offer", "1 0");
        Fill(store);
        await lab.UntilAsync("the noisy one is introduced, too", () => lab.Introduced(a)?.Length == 2);
        Assert.False(lab[lab.Dom0].HasExited, lab.Messages());

        // As many as it may have: C's xenstored counts the names as a part of the directory.
        void Fill(XenStore store)
        {
            for (int i = 0; i < (oxenstored ? 120 : 35); i++)
            {
                store.Write($"data/xenloop/{i}-{new string('x', 40)}", "");
            }
        }
    }

    [Theory]
    [InlineData("calls")]
    [InlineData("offers")]
    [InlineData("nodes of no meaning")]
    [InlineData("its whole area, again and again")]
    public async Task One_guest_causes_200_requests_a_second_at_most(string what)
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest noisy = await lab.Host.AddGuestAsync("noisy");
        LabGuest[] others = [await lab.Host.AddGuestAsync("o1"), await lab.Host.AddGuestAsync("o2"), await lab.Host.AddGuestAsync("o3")];
        foreach (LabGuest other in others)
        {
            using XenStore stores = XenStoreFixture.Open(other.StoreSocket);
            stores.Write("data/xenloop/offer", "1 0");
        }

        using XenStore store = XenStoreFixture.Open(noisy.StoreSocket);
        store.Write("data/xenloop/offer", "1 0");
        await lab.UntilAsync("all are introduced", () => lab.Introduced(noisy)?.Length == others.Length);

        int requests = 0;
        lab.XenStore.Observer = (domid, _, done) =>
        {
            requests += domid == 0 && !done ? 1 : 0;
            return true;
        };
        TimeSpan before = DaemonLab.ProcessorTime(lab[lab.Dom0]);
        Stopwatch watch = Stopwatch.StartNew();
        long writes = Storm(store, what, others, () => watch.Elapsed.TotalSeconds > 4);
        double seconds = watch.Elapsed.TotalSeconds;
        double load = (DaemonLab.ProcessorTime(lab[lab.Dom0]) - before).TotalSeconds / seconds;
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"{what}: {writes / seconds:f0} changes a second cause {requests / seconds:f0} requests of Dom0's daemon, {load:f2} of a processor"));
        Assert.InRange(requests / seconds, 1, RequestsPerSecond * 1.1);
        Assert.InRange(load, 0, 0.2);

        // It is listened to again.
        store.Write("data/xenloop/offer", "1 0");
        lab.XenStore.Observer = null;
        store.Write($"data/xenloop/0-{others[0].Domid}-0", "calling 00000000000000ff");
        await lab.UntilAsync("its call is heard", () => lab.XenStore.Read(VifLab.IntroductionNode(others[0][0], noisy[0]))?.EndsWith("00000000000000ff", StringComparison.Ordinal) == true);
    }

    [Fact]
    public async Task Six_noisy_guests_do_not_delay_anothers_quiesce()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        LabGuest[] noisy = await Task.WhenAll(Enumerable.Range(0, 6).Select(i => lab.Host.AddGuestAsync($"n{i}")));
        XenStore[] stores = [.. noisy.Select(n => XenStoreFixture.Open(n.StoreSocket))];
        using CancellationTokenSource end = new();
        foreach (XenStore store in stores)
        {
            store.Write("data/xenloop/offer", "1 0");
        }

        await lab.UntilAsync("all are introduced", () => lab.Introduced(a)?.Length == noisy.Length + 1);
        Task[] storms = [.. stores.Select(s => Task.Factory.StartNew(
            () => Storm(s, "offers", [a, b, .. noisy], () => end.IsCancellationRequested), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default))];
        await Task.Delay(500);
        Stopwatch watch = Stopwatch.StartNew();
        (int exit, string answer) = await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} {a.Name}");
        output.WriteLine($"quiesced in {watch.ElapsedMilliseconds} ms");
        Assert.Equal((0, "quiesced\n"), (exit, answer));
        Assert.InRange(watch.ElapsedMilliseconds, 0, 500);
        await end.CancelAsync();
        await Task.WhenAll(storms);
        Array.ForEach(stores, s => s.Dispose());
    }

    /// <summary>Changes nodes as fast as XenStore takes it.</summary>
    /// <returns>How often.</returns>
    private static long Storm(XenStore store, string what, LabGuest[] others, Func<bool> isOver)
    {
        long writes = 0;
        for (; !isOver(); writes++)
        {
            string node = "data/xenloop/" + what switch
            {
                "calls" => $"0-{others[writes % others.Length].Domid}-0",
                "offers" => "offer",
                _ => $"x-{writes % 100}",
            };
            try
            {
                if (what.Contains("area", StringComparison.Ordinal))
                {
                    store.Remove("data/xenloop");
                    store.Write("data/xenloop/offer", "1 0");
                }
                else
                {
                    store.Write(node, what == "offers" ? (writes % 2 == 0 ? "" : "1 0") : $"calling {writes + 1:x16}");
                }
            }
            catch (NativeException)
            {
                return writes;
            }
        }

        return writes;
    }
}
