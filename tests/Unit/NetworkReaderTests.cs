using System.Runtime.InteropServices;
using XenLoop.Dom0;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Dom0's network as its kernel tells of it: a real bridge with two ports, in a namespace.</summary>
public sealed partial class NetworkReaderTests : IDisposable
{
    private readonly NetworkNamespace _dom0 = new();
    private readonly NetworkReader _reader;
    private TimeSpan _now = TimeSpan.FromHours(1);

    public NetworkReaderTests()
    {
        Ip("link add br0 up type bridge forward_delay 0 mcast_snooping 0");
        Ip("link add vif1.0 master br0 up type veth peer name eth1");
        Ip("link add vif2.0 master br0 up type veth peer name eth2");
        Ip("link set eth1 up");
        Ip("link set eth2 up");
        _reader = _dom0.Run(() => new NetworkReader());
        Assert.True(Read());
        // The other end has come up.
        Thread.Sleep(300);
        Read();
        Assert.Null(Standing().Restriction);
    }

    public void Dispose()
    {
        _reader.Dispose();
        _dom0.Dispose();
    }

    [Theory]
    [InlineData("bridge link set dev vif1.0 state 0", "does not forward", "bridge link set dev vif1.0 state 3")]
    [InlineData("bridge link set dev vif1.0 learning off locked on", "locked", "bridge link set dev vif1.0 learning on locked off")]
    [InlineData("bridge link set dev vif1.0 isolated on", "isolated", "bridge link set dev vif1.0 isolated off")]
    [InlineData("ip link set vif1.0 down", "down", "ip link set vif1.0 up")]
    [InlineData("ip link set br0 down", "does not forward", "ip link set br0 up")]
    [InlineData("tc qdisc add dev vif1.0 root tbf rate 1mbit burst 32k latency 50ms", "tbf", "tc qdisc del dev vif1.0 root")]
    [InlineData("tc qdisc add dev vif1.0 root htb", "htb", "tc qdisc del dev vif1.0 root")]
    [InlineData("tc qdisc add dev vif1.0 ingress", "tc filter", "tc qdisc del dev vif1.0 ingress")]
    [InlineData("tc qdisc add dev vif1.0 clsact ; tc filter add dev vif1.0 egress protocol all u32 match u32 0 0 flowid 1:1", "tc filter", "tc qdisc del dev vif1.0 clsact")]
    [InlineData("ebtables -A FORWARD -i vif2.0 -j DROP", "bridge filter FORWARD", "ebtables -F FORWARD")]
    [InlineData("ebtables -P FORWARD DROP", "bridge filter FORWARD", "ebtables -P FORWARD ACCEPT")]
    [InlineData("iptables -A FORWARD -p udp -j DROP", "ip filter FORWARD", "iptables -F FORWARD")]
    [InlineData("iptables -P FORWARD DROP", "ip filter FORWARD", "iptables -P FORWARD ACCEPT")]
    [InlineData("iptables -N mine ; iptables -A mine -s 10.0.0.1 -j REJECT ; iptables -A FORWARD -j mine", "ip filter FORWARD", "iptables -F ; iptables -X mine")]
    [InlineData("iptables -t nat -A POSTROUTING -j MASQUERADE", "ip nat POSTROUTING", "iptables -t nat -F")]
    [InlineData("ip6tables -A FORWARD -j DROP", "ip6 filter FORWARD", "ip6tables -F FORWARD")]
    [InlineData("iptables-legacy -A FORWARD -p udp -j DROP", "iptables-legacy: filter", "iptables-legacy -F FORWARD")]
    [InlineData("iptables-legacy -P FORWARD DROP", "iptables-legacy: filter", "iptables-legacy -P FORWARD ACCEPT")]
    [InlineData("iptables-legacy -N mine ; iptables-legacy -A mine -j DROP ; iptables-legacy -A FORWARD -j mine", "iptables-legacy: filter", "iptables-legacy -F ; iptables-legacy -X mine")]
    [InlineData("ip6tables-legacy -A FORWARD -j REJECT", "ip6tables-legacy: filter", "ip6tables-legacy -F FORWARD")]
    public void What_restricts_a_vif_is_seen_when_it_comes_and_when_it_goes(string set, string word, string unset)
    {
        // The kernel tells nobody of the old tables: who relies on them has to look.
        bool silent = set.Contains("legacy", StringComparison.Ordinal);
        Commands(set);
        Assert.True(Read(look: silent), "nobody told");
        Assert.Contains(word, Standing().Restriction ?? "nothing", StringComparison.Ordinal);
        Commands(unset);
        Thread.Sleep(50);
        Assert.True(Read(look: silent), "nobody told");
        Assert.Null(Standing().Restriction);
        Assert.False(Read(), "it is quiet again");
    }

    [Theory]
    [InlineData("ebtables -A INPUT -i vif1.0 -j DROP")]
    [InlineData("iptables -A INPUT -p tcp -j DROP ; iptables -A FORWARD -p udp -j ACCEPT ; iptables -A FORWARD -p tcp -j LOG")]
    [InlineData("iptables -N mine ; iptables -A mine -j DROP ; iptables -A INPUT -j mine")]
    [InlineData("iptables-legacy -A INPUT -p tcp -j DROP ; iptables-legacy -A FORWARD -p udp -j ACCEPT")]
    [InlineData("tc qdisc add dev vif1.0 clsact")]
    [InlineData("tc qdisc add dev vif2.0 root tbf rate 1mbit burst 32k latency 50ms")]
    [InlineData("sysctl -q -w net.bridge.bridge-nf-call-iptables=0 ; iptables -A FORWARD -j DROP ; sysctl -q -w net.bridge.bridge-nf-call-ip6tables=0 ; sysctl -q -w net.bridge.bridge-nf-call-arptables=0")]
    public void What_is_not_in_a_vifs_way_does_not_count(string set)
    {
        Commands(set);
        Read(look: true);
        Assert.Null(Standing().Restriction);
    }

    /// <summary>As a service that the kernel does not answer has them.</summary>
    [Fact]
    public void Old_tables_that_cannot_be_read_count_as_filters()
    {
        Commands("iptables-legacy -A INPUT -p tcp -j DROP");
        Assert.Null(_dom0.Run(LegacyTables.FindIpTables));
        string? found = _dom0.Run(() =>
        {
            // Of the namespace's thread alone, which is asked for nothing else.
            DropCapabilities();
            return LegacyTables.FindIpTables();
        });
        Assert.StartsWith("filter, which cannot be read: EPERM", found, StringComparison.Ordinal);
    }

    [Fact]
    public void A_TCX_program_is_seen_where_the_kernel_has_it()
    {
        using SafeFd program = Bpf.LoadClassifier("xenloop_test", new BpfProgram().Move(BpfRegister.R0, -1).Exit().ToArray());
        int index = _reader.Facts.Ports["vif1.0"].Index;
        SafeFd link;
        try
        {
            link = _dom0.Run(() => Bpf.CreateTcxLink(program, index, BpfAttachType.BPF_TCX_EGRESS));
        }
        catch (Interop.NativeException)
        {
            // Before Linux 6.6.
            return;
        }

        Read(look: true);
        Assert.Contains("TCX", Standing().Restriction, StringComparison.Ordinal);
        link.Dispose();
        Read(look: true);
        Assert.Null(Standing().Restriction);
    }

    [Fact]
    public void The_forwarding_table_tells_of_addresses_that_are_followed_and_of_no_others()
    {
        using BridgeFdb fdb = _dom0.Run(() => new BridgeFdb());
        MacAddress mac = MacAddress.Parse("00:16:3e:00:00:05"), other = MacAddress.Parse("00:16:3e:00:00:06");
        int bridge = _reader.Facts.Ports["vif1.0"].MasterIndex, one = _reader.Facts.Ports["vif1.0"].Index, two = _reader.Facts.Ports["vif2.0"].Index;
        FdbKey key = new(bridge, 0, mac);
        fdb.Follow([key, key with { Mac = MacAddress.Parse("02:00:00:00:00:01") }]);
        Assert.Null(fdb.Find(key));
        List<(FdbKey, FdbEntry?)> changes = [];
        Bridge($"fdb add {mac} dev vif1.0 master static");
        Bridge($"fdb add {other} dev vif1.0 master static");
        Bridge($"fdb replace {mac} dev vif2.0 master static");
        Bridge($"fdb del {mac} dev vif2.0 master");
        Assert.True(fdb.TakeChanges((k, e) => changes.Add((k, e))));
        Assert.Equal([(key, new FdbEntry(one, false)), (key, new FdbEntry(two, false)), (key, null)], changes);
        Assert.Equal(new FdbEntry(one, false), fdb.Find(key with { Mac = other }));
        Bridge($"fdb add {mac} dev vif2.0 master permanent");
        Assert.Equal(new FdbEntry(two, true), fdb.Find(key));
        Assert.Null(fdb.Find(key with { Vlan = 5 }));
        Assert.Null(fdb.Find(key with { Bridge = 999 }));

        // None, and more than a filter has room for.
        changes.Clear();
        fdb.TakeChanges((_, _) => { });
        fdb.Follow([]);
        Bridge($"fdb del {mac} dev vif2.0 master");
        fdb.TakeChanges((k, e) => changes.Add((k, e)));
        Assert.Empty(changes);
        fdb.Follow([.. Enumerable.Range(0, 579).Select(Others), key]);
        Bridge($"fdb add {mac} dev vif2.0 master static");
        fdb.TakeChanges((k, e) => changes.Add((k, e)));
        Assert.Single(changes);
        fdb.Follow([.. Enumerable.Range(0, 2000).Select(Others)]);
        Bridge($"fdb del {mac} dev vif2.0 master");
        fdb.TakeChanges((k, e) => changes.Add((k, e)));
        Assert.Equal(2, changes.Count);

        FdbKey Others(int i) => key with { Mac = MacAddress.Read([2, 0, 0, 0, (byte)(i >> 8), (byte)i]) };
    }

    [Fact]
    public void An_address_in_a_VLAN_is_told_with_it()
    {
        if (!_dom0.Run(() => File.Exists("/sys/class/net/br0/bridge/vlan_filtering")) && !TryVlans())
        {
            return;
        }

        using BridgeFdb fdb = _dom0.Run(() => new BridgeFdb());
        Commands("ip link set br0 type bridge vlan_filtering 1 ; bridge vlan add dev vif1.0 vid 5 pvid untagged");
        Read();
        SwitchPort port = _reader.Facts.Ports["vif1.0"];
        Assert.Equal((5, true, 5), (port.Pvid, port.FiltersVlans, port.FdbVlan));
        MacAddress mac = MacAddress.Parse("00:16:3e:00:00:05");
        FdbKey key = new(port.MasterIndex, 5, mac);
        fdb.Follow([key]);
        Bridge($"fdb add {mac} dev vif1.0 master static vlan 5");
        Assert.Equal(new FdbEntry(port.Index, false), fdb.Find(key));
        Assert.Null(fdb.Find(key with { Vlan = 1 }));
        List<FdbKey> told = [];
        fdb.TakeChanges((k, _) => told.Add(k));
        Assert.Equal([key], told);
        Commands("bridge vlan del dev vif1.0 vid 5");
        Read();
        Assert.Contains("VLAN", Standing().Restriction, StringComparison.Ordinal);
    }

    private bool TryVlans()
    {
        try
        {
            Ip("link set br0 type bridge vlan_filtering 1");
            return true;
        }
        catch (InvalidOperationException)
        {
            return false;
        }
    }

    private bool Read(bool look = false)
    {
        // Far enough after the last reading.
        _now += TimeSpan.FromSeconds(1);
        return _dom0.Run(() => _reader.Follow(_now, introduced: false, look));
    }

    private VifStanding Standing() => VifStanding.Of(
        new VifRecord(0, MacAddress.Parse("00:16:3e:00:00:05"), 0, "vif1.0", null), _reader.Facts, isTwin: false, isElsewhere: false);

    private void Commands(string commands)
    {
        foreach (string[] words in commands.Split(" ; ").Select(c => c.Split(' ')))
        {
            _dom0.Command(words[0], words[1..]);
        }
    }

    private void Ip(string arguments) => _dom0.Command("ip", arguments.Split(' '));

    private void Bridge(string arguments) => _dom0.Command("bridge", arguments.Split(' '));

    private static unsafe void DropCapabilities()
    {
        uint* header = stackalloc uint[] { 0x20080522, 0 }; // _LINUX_CAPABILITY_VERSION_3, this thread
        uint* none = stackalloc uint[6];
        new Span<uint>(none, 6).Clear();
        Assert.Equal(0, capset(header, none));
    }

    // int capset(cap_user_header_t hdrp, const cap_user_data_t datap);
    [LibraryImport("libc")]
    private static unsafe partial int capset(uint* header, uint* data);
}
