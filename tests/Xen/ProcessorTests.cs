using System.Globalization;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>A test for which the rig must have been able to build its own QEMU.</summary>
[AttributeUsage(AttributeTargets.Method)]
public sealed class OwnQemuFactAttribute : FactAttribute
{
    public OwnQemuFactAttribute()
    {
        if (!XenHost.HasOwnQemu)
        {
            Skip = "The rig could not build its own QEMU on this machine: rig/qemu/build says why.";
        }
    }
}

/// <summary>A host with several processors: that they run at the same time, and that times are exact there, too.</summary>
public sealed class ProcessorTests
{
    [OwnQemuFact]
    public async Task Processors_run_at_the_same_time_and_figures_repeat()
    {
        await using XenHost host = await XenHost.StartAsync(new XenHostOptions { Processors = 4, Dom0Vcpus = 2 });
        XenGuest[] guests = await Task.WhenAll(
            host.CreateGuestAsync(new GuestOptions { Name = "a" }), host.CreateGuestAsync(new GuestOptions { Name = "b" }));
        XenGuest a = guests[0], b = guests[1];

        // The same work by one guest alone and by both at once takes the same time.
        double alone = await WorkAsync(a);
        double[] together = await Task.WhenAll(WorkAsync(a), WorkAsync(b));
        Assert.All(together, seconds => Assert.InRange(seconds / alone, 0.95, 1.1));

        // And it is the time that so many instructions take: a domain's processor time is what its clock has seen.
        long before = (await host.ProcessorTimesAsync())[a.Domid];
        double took = await WorkAsync(a);
        double used = ((await host.ProcessorTimesAsync())[a.Domid] - before) / 1e9;
        Assert.InRange(used / took, 1, 1.2);

        // What booting leaves to do is done after a while, and the first request is not like the others.
        (await a.RunAsync($"sleep 10; ping -q -c 20 -A {b.Ipv4}")).Check();
        double[] pings = [await PingAsync(a, b), await PingAsync(a, b), await PingAsync(a, b)];
        // How timers of several processors fall is a few per cent of a round trip; what a busy machine beneath does would be more.
        Assert.InRange(pings.Max() / pings.Min(), 1, 1.06);
    }

    /// <summary>Seconds by the guest's clock that a shell takes to count.</summary>
    private static async Task<double> WorkAsync(XenGuest guest) => Number((await guest.RunAsync("""
        read -r begin _ </proc/uptime
        i=0
        while [ $i -lt 30000 ]; do i=$((i + 1)); done
        read -r end _ </proc/uptime
        awk "BEGIN { print $end - $begin }"
        """)).Check().Output);

    private static async Task<double> PingAsync(XenGuest from, XenGuest to) =>
        Number((await from.RunAsync($"ping -q -A -c 300 {to.Ipv4} | sed -n 's|.*= [0-9.]*/\\([0-9.]*\\)/.*|\\1|p'")).Check().Output);

    private static double Number(string text) => double.Parse(text, CultureInfo.InvariantCulture);
}
