using System.Diagnostics;
using XenLoop.Rig;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Xen;

/// <summary>What the other tests here take for granted of the rig itself.</summary>
public sealed class RigTests(ITestOutputHelper log)
{
    [Fact]
    public async Task A_host_with_guests_of_both_kinds_does_what_tests_need()
    {
        Stopwatch clock = Stopwatch.StartNew();
        await using XenHost host = await XenHost.StartAsync();
        log.WriteLine($"Dom0 after {clock.Elapsed}");
        XenGuest pvh = await host.CreateGuestAsync(new GuestOptions { Name = "pvh", Kind = GuestKind.Pvh });
        log.WriteLine($"PVH guest after {clock.Elapsed}");

        CommandResult result = await pvh.RunAsync("echo out; echo error >&2; exit 7");
        Assert.Equal((7, "out\n", "error\n"), (result.ExitCode, result.Output, result.Error));
        log.WriteLine((await pvh.RunAsync("ip addr; ps; lsmod; free; dmesg | tail -5; ls -la /dev/xen; cat /proc/meminfo | head -3")).ToString());
        log.WriteLine((await host.RunAsync("ps; free; dmesg | tail -5; ls -la /var/log/xen; cat /var/log/xen/xen-hotplug.log")).ToString());
        log.WriteLine(await pvh.ConsoleLogAsync());
    }
}
