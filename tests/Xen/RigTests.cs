using System.Security.Cryptography;
using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>What the other tests here take for granted of the rig itself.</summary>
public sealed class RigTests(RigFixture rig) : IClassFixture<RigFixture>
{
    [Fact]
    public async Task Scripts_give_their_exit_code_and_both_outputs()
    {
        foreach (Func<string, TimeSpan?, Task<CommandResult>> run in (Func<string, TimeSpan?, Task<CommandResult>>[])[rig.Host.RunAsync, rig.Pvh.RunAsync, rig.Pv.RunAsync])
        {
            CommandResult result = await run("echo out; echo error >&2; exit 7", null);
            Assert.Equal((7, "out\n", "error\n"), (result.ExitCode, result.Output, result.Error));

            result = await run("printf '\\000\\377\\n\\r'; kill -KILL $$", null);
            Assert.Equal((137, "00FF0A0D"), (result.ExitCode, Convert.ToHexString(result.OutputBytes.Span)));
        }
    }

    [Fact]
    public async Task Scripts_run_side_by_side()
    {
        Task<CommandResult> waiting = rig.Pvh.RunAsync("mkfifo /tmp/pipe; cat /tmp/pipe");
        Task<CommandResult> waitingInDom0 = rig.Host.RunAsync("mkfifo /tmp/pipe; cat /tmp/pipe");
        (await rig.Pvh.RunAsync("until [ -p /tmp/pipe ]; do sleep 0.1; done; echo hello >/tmp/pipe")).Check();
        (await rig.Host.RunAsync("until [ -p /tmp/pipe ]; do sleep 0.1; done; echo hello >/tmp/pipe")).Check();
        Assert.Equal("hello\n", (await waiting).Output);
        Assert.Equal("hello\n", (await waitingInDom0).Output);
    }

    [Fact]
    public async Task A_script_that_takes_too_long_is_killed()
    {
        await Assert.ThrowsAsync<TimeoutException>(
            () => rig.Pvh.RunAsync("sleep 12345", TimeSpan.FromSeconds(1)));
        await Assert.ThrowsAsync<TimeoutException>(
            () => rig.Host.RunAsync("sleep 12345", TimeSpan.FromSeconds(1)));
        const string UntilGone = "while pgrep -f 'sleep 1234[5]'; do sleep 0.1; done";
        (await rig.Pvh.RunAsync(UntilGone)).Check();
        (await rig.Host.RunAsync(UntilGone)).Check();
    }

    [Fact]
    public async Task Files_arrive_unchanged()
    {
        string path = Path.GetTempFileName();
        try
        {
            byte[] content = RandomNumberGenerator.GetBytes(4 << 20);
            await File.WriteAllBytesAsync(path, content);
            string expected = Convert.ToHexStringLower(SHA256.HashData(content));

            await rig.Host.PushAsync(path, "/tmp/pushed", "755");
            await rig.Pvh.PushAsync(path, "/tmp/pushed", "755");
            await rig.Pv.PushAsync(path, "/tmp/pushed", "755");

            const string Check = "sha256sum </tmp/pushed; stat -c %a /tmp/pushed; rm /tmp/pushed";
            Assert.Equal($"{expected}  -\n755\n", (await rig.Host.RunAsync(Check)).Output);
            Assert.Equal($"{expected}  -\n755\n", (await rig.Pvh.RunAsync(Check)).Output);
            Assert.Equal($"{expected}  -\n755\n", (await rig.Pv.RunAsync(Check)).Output);
        }
        finally
        {
            File.Delete(path);
        }
    }

    [Fact]
    public async Task Guests_reach_each_other_and_dom0_over_netfront()
    {
        foreach (string address in (string[])[rig.Pv.Ipv4, rig.Pv.Ipv6, rig.Pv.LinkLocal + "%eth0", "10.77.0.1", "fd77::1"])
        {
            (await rig.Pvh.RunAsync($"ping -q -c 3 -i 0.2 -W 10 {address}")).Check();
        }
    }

    [Fact]
    public async Task Iperf3_and_sockperf_run_between_guests()
    {
        (await rig.Pv.RunAsync("iperf3 -s -D; sockperf server --tcp -i 0.0.0.0 >/dev/null 2>&1 & sleep 1")).Check();
        (await rig.Pvh.RunAsync($"iperf3 -c {rig.Pv.Ipv4} -t 1 -J")).Check();
        (await rig.Pvh.RunAsync($"sockperf ping-pong --tcp -i {rig.Pv.Ipv4} -t 1")).Check();
        (await rig.Pv.RunAsync("killall iperf3 sockperf")).Check();
    }

    [Fact]
    public async Task Root_of_a_guest_can_ssh_to_another_and_asks_nobody()
    {
        CommandResult result = (await rig.Pvh.RunAsync($"ssh {rig.Pv.Ipv4} hostname")).Check();
        Assert.Equal("pv\n", result.Output);
    }

    [Fact]
    public async Task Tools_for_filters_and_shaping_work_in_guests()
    {
        const string Script = """
            set -ex
            ip link add rigdummy type dummy
            tc qdisc add dev rigdummy clsact
            tc filter add dev rigdummy ingress matchall action mirred egress redirect dev lo
            tc filter add dev rigdummy egress flower dst_mac 00:16:3e:00:00:01 action mirred ingress redirect dev lo
            tc filter add dev rigdummy egress protocol ip u32 match ip dport 7 0xffff action drop
            tc qdisc add dev rigdummy root netem delay 1ms
            ip link del rigdummy
            nft add table inet rig
            nft 'add chain inet rig input { type filter hook input priority 0; }'
            nft add rule inet rig input ct state invalid counter drop
            nft add rule inet rig input tcp dport 7 reject
            nft delete table inet rig
            iptables -A INPUT -p tcp --dport 7 -m state --state NEW -j DROP
            iptables -t nat -A POSTROUTING -o eth9 -j MASQUERADE
            ip6tables -A INPUT -p udp --dport 7 -j REJECT
            iptables -F; iptables -t nat -F; ip6tables -F
            ip tuntap add dev rigtap mode tap vnet_hdr
            ip link del rigtap
            timeout 20 tcpdump -i lo -c 1 -w /dev/null &
            sleep 1; ping -q -c 1 127.0.0.1; wait $!
            xenstore-write data/rig-test 1; [ "$(xenstore-read data/rig-test)" = 1 ]; xenstore-rm data/rig-test
            strace -c true; ethtool -k eth0; ss -t; mount | grep bpf
            """;
        (await rig.Pvh.RunAsync(Script)).Check();
        (await rig.Pv.RunAsync(Script)).Check();
    }

    [Fact]
    public async Task A_guest_survives_save_restore_and_a_migration_within_the_host()
    {
        XenGuest guest = await rig.Host.CreateGuestAsync(new GuestOptions { Name = "mover", MemoryMiB = 256 });
        (await guest.RunAsync("echo kept >/tmp/kept")).Check();
        int before = guest.Domid;

        (await rig.Host.RunAsync("xl save mover /tmp/saved && xl restore /tmp/saved && rm /tmp/saved", TimeSpan.FromMinutes(3))).Check();
        Assert.NotEqual(before, await guest.RefreshDomidAsync());
        Assert.Equal("kept\n", (await guest.RunAsync("cat /tmp/kept")).Output);

        (await rig.Host.RunAsync("xl migrate -s '' mover 'xl migrate-receive'", TimeSpan.FromMinutes(3))).Check();
        Assert.Equal("kept\n", (await guest.RunAsync("cat /tmp/kept")).Output);
        (await guest.RunAsync($"ping -q -c 1 -W 10 {rig.Pvh.Ipv4}")).Check();

        Assert.DoesNotContain("BUG", await guest.ConsoleLogAsync(), StringComparison.Ordinal);
        await guest.DestroyAsync();
        Assert.DoesNotContain(await rig.Host.DomainsAsync(), domain => domain.Name == "mover");
    }

    [Fact]
    public async Task Domains_are_listed_and_a_kernel_log_is_kept()
    {
        IReadOnlyList<XenDomain> domains = await rig.Host.DomainsAsync();
        Assert.Equal("Domain-0", domains[0].Name);
        Assert.Contains(domains, domain => domain.Name == "pv" && domain.Id == rig.Pv.Domid && !domain.IsZombie);
        Assert.NotEmpty(await rig.Pvh.ConsoleLogAsync());
    }
}
