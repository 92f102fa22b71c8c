using XenLoop.Dom0;
using XenLoop.Interop.Linux;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>What in Dom0 keeps a vif to netfront, of what toolstack and kernel say.</summary>
public sealed class VifStandingTests
{
    private const string Name = "vif5.0";

    private static readonly VifRecord _vif = new(0, MacAddress.Parse("00:16:3e:00:00:05"), 0, Name, "xenbr0");

    [Fact]
    public void A_plain_port_of_a_plain_bridge_is_free()
    {
        Assert.Equal(new VifStanding("0/xenbr0"), Of(_vif, Port()));
        Assert.Null(Of(_vif, Port()).Restriction);
    }

    [Theory]
    [InlineData("rate", "rate")]
    [InlineData("forbidden", "locking mode")]
    [InlineData("openvswitch", "cannot be read")]
    [InlineData("driver domain", "cannot be read")]
    [InlineData("down", "down")]
    [InlineData("blocking", "does not forward")]
    [InlineData("locked", "locked")]
    [InlineData("no pvid", "VLAN")]
    [InlineData("xdp", "XDP")]
    [InlineData("tc", "tbf")]
    [InlineData("device", "netdev t c")]
    [InlineData("devices", "netdev t c")]
    [InlineData("frames", "bridge t c")]
    [InlineData("packets", "ip t c")]
    [InlineData("packets of this bridge", "ip t c")]
    public void Each_thing_that_would_stop_or_slow_its_frames_is_named(string what, string word)
    {
        VifStanding standing = what switch
        {
            "rate" => Of(_vif with { Rate = "10000,50000" }, Port()),
            "forbidden" => Of(_vif with { Forbidden = "the locking mode" }, Port()),
            "openvswitch" => Of(_vif, Port(isBridge: false)),
            "driver domain" => Of(_vif with { Backend = 3 }, Port()),
            "down" => Of(_vif, Port(isUp: false)),
            "blocking" => Of(_vif, Port(forwards: false)),
            "locked" => Of(_vif, Port(isLocked: true)),
            "no pvid" => Of(_vif, Port(filtersVlans: true, pvid: 0)),
            "xdp" => Of(_vif, Port(hasXdp: true)),
            "tc" => Of(_vif, Port(), new NetworkFacts { TrafficControl = new() { [7] = "the qdisc tbf" } }),
            "device" => Of(_vif, Port(), new NetworkFacts { DeviceFilters = new() { [Name] = "netdev t c" } }),
            "devices" => Of(_vif, Port(), new NetworkFacts { DeviceFilters = new() { ["eth*"] = "netdev t b", ["vif*"] = "netdev t c" } }),
            "frames" => Of(_vif, Port(), new NetworkFacts { BridgeFilter = "bridge t c" }),
            "packets" => Of(_vif, Port(), new NetworkFacts { PacketFilter = "ip t c", CallsIpTables = true }),
            _ => Of(_vif, Port(callsIpTables: true), new NetworkFacts { PacketFilter = "ip t c" }),
        };
        Assert.NotNull(standing.Segment);
        Assert.Null(standing.Ambiguity);
        Assert.Contains(word, standing.Barrier, StringComparison.Ordinal);
        Assert.Equal(standing.Barrier, standing.Restriction);
    }

    [Fact]
    public void What_is_not_in_its_way_does_not_count()
    {
        NetworkFacts facts = new() { TrafficControl = new() { [8] = "the qdisc tbf" }, DeviceFilters = new() { ["vif6.0"] = "netdev t c" }, PacketFilter = "ip t c" };
        Assert.Null(Of(_vif, Port(), facts).Restriction);
        Assert.Null(Of(_vif, Port(filtersVlans: true)).Restriction);
        Assert.Equal(VifStanding.Nowhere, VifStanding.Of(_vif, new NetworkFacts(), false, false));
    }

    [Fact]
    public void Whose_address_leads_elsewhere_is_not_free_however_plain_its_port_is()
    {
        Assert.Contains("same MAC", VifStanding.Of(_vif, Facts(Port()), isTwin: true, isElsewhere: false).Ambiguity, StringComparison.Ordinal);
        Assert.Contains("another port", VifStanding.Of(_vif, Facts(Port()), isTwin: false, isElsewhere: true).Ambiguity, StringComparison.Ordinal);
        Assert.True(Of(_vif, Port(isIsolated: true)) is { IsIsolated: true, Barrier: null, Restriction: not null });
    }

    [Theory]
    [InlineData("pfifo_fast", false, null)]
    [InlineData("noqueue", false, null)]
    [InlineData("fq_codel", false, null)]
    [InlineData("mq", false, null)]
    [InlineData("fq_codel", true, "a tc filter")]
    [InlineData("sfq", false, "the qdisc sfq")]
    [InlineData("clsact", false, null)]
    [InlineData("clsact", true, "a tc filter")]
    [InlineData("ingress", false, "a tc filter")]
    [InlineData("tbf", false, "the qdisc tbf")]
    [InlineData("htb", false, "the qdisc htb")]
    [InlineData("netem", false, "the qdisc netem")]
    public void Qdiscs(string kind, bool filters, string? found) =>
        Assert.Equal(found, NetworkFacts.DescribeQdiscs([Qdisc(kind)], _ => filters).GetValueOrDefault(7));

    [Fact]
    public void A_qdisc_fq_with_a_limit_is_one() =>
        Assert.Equal("the qdisc fq with maxrate", NetworkFacts.DescribeQdiscs([Qdisc("noqueue"), Qdisc("fq") with { FlowMaxRate = 125_000 }], _ => false)[7]);

    private static TcQdisc Qdisc(string kind) => new(7, kind, 0, kind is "clsact" or "ingress" ? 0xFFFFFFF1 : TcQdisc.Root);

    [Theory]
    [InlineData(NfFamily.Bridge, 2u, 0, 1u, "-", "", "")]
    [InlineData(NfFamily.Bridge, 2u, 1, 1u, "-", "frames", "")]
    [InlineData(NfFamily.Bridge, 0u, 1, 1u, "-", "frames", "")]
    [InlineData(NfFamily.Bridge, 4u, 0, 0u, "-", "frames", "")]
    [InlineData(NfFamily.Bridge, 1u, 1, 0u, "-", "", "")]
    [InlineData(NfFamily.Bridge, 3u, 1, 0u, "-", "", "")]
    [InlineData(NfFamily.Ip, 2u, 3, 1u, "accept", "", "")]
    [InlineData(NfFamily.Ip, 2u, 3, 1u, "stop", "", "packets")]
    [InlineData(NfFamily.Ip6, 2u, 3, 1u, "far", "", "packets")]
    [InlineData(NfFamily.Ip, 2u, 3, 1u, "unreached", "", "")]
    [InlineData(NfFamily.Inet, 2u, 0, 0u, "-", "", "packets")]
    [InlineData(NfFamily.Ip, 1u, 1, 0u, "stop", "", "")]
    [InlineData(NfFamily.Netdev, 0u, 1, 1u, "device", "device", "")]
    [InlineData(NfFamily.Netdev, 0u, 0, 1u, "device", "", "")]
    public void Chains(object family, uint hook, int rules, uint policy, string what, string found, string packets)
    {
        NfChain chain = new()
        {
            Family = (NfFamily)family,
            Table = "t",
            Name = "c",
            Hook = hook,
            Policy = policy,
            Devices = what == "device" ? [Name] : [],
            Rules = rules,
            MayStop = what == "stop",
        };
        List<NfChain> chains = [chain, Own("near", false), Own("far", true)];
        if (what == "far")
        {
            chain.Targets.Add("near");
            chains[1].Targets.Add("far");
        }

        (string? frames, string? packetsFound, Dictionary<string, string> devices) = NetworkFacts.DescribeChains(chains);
        Assert.Equal(found == "frames", frames is not null);
        Assert.Equal(packets.Length > 0, packetsFound is not null);
        Assert.Equal(found == "device", devices.ContainsKey(Name));

        NfChain Own(string name, bool stops) => new() { Family = (NfFamily)family, Table = "t", Name = name, MayStop = stops };
    }

    [Theory]
    [InlineData(null, null)]
    [InlineData("", null)]
    [InlineData("10.0.0.5", "10.0.0.5,::/0,other")]
    [InlineData("10.0.0.5 10.0.1.0/24", "10.0.0.5,10.0.1.0/24,::/0,other")]
    [InlineData("10.0.0.5/32,fd00:0::5", "10.0.0.5,fd00::5,other")]
    [InlineData("fd00::/64", "fd00::/64,0.0.0.0/0,other")]
    [InlineData("10.0.0", "!")]
    [InlineData("010.0.0.5", "!")]
    [InlineData("10.0.0.5/33", "!")]
    [InlineData("fe80::1%eth0", "!")]
    [InlineData("web", "!")]
    public void What_xl_says_of_addresses(string? ip, string? sources)
    {
        (string? found, string? forbidden) = VifRecord.Ip(ip);
        Assert.Equal(sources == "!" ? null : sources, found);
        Assert.Equal(sources == "!", forbidden is not null);
        Assert.True(found is null || AddressList.Parse(found) is not null);
    }

    [Theory]
    [InlineData("locked", "10.0.0.5,10.0.0.6", "", "10.0.0.5,10.0.0.6")]
    [InlineData("locked", "10.0.0.5", "fd00::5", "10.0.0.5,fd00::5")]
    [InlineData("locked", "", "", "!")]
    [InlineData("locked", null, null, "!")]
    [InlineData("locked", "10.0.0.5", "what", "!")]
    [InlineData("disabled", "10.0.0.5", "", "!")]
    public void What_XAPI_says_of_addresses(string mode, string? ipv4, string? ipv6, string sources)
    {
        (string? found, string? forbidden) = VifRecord.Locked(mode, ipv4, ipv6);
        Assert.Equal(sources == "!" ? null : sources, found);
        Assert.Equal(sources == "!", forbidden is not null);
    }

    private static VifStanding Of(VifRecord vif, SwitchPort port, NetworkFacts? facts = null) =>
        VifStanding.Of(
            vif,
            new NetworkFacts
            {
                Ports = new() { [Name] = port },
                TrafficControl = facts?.TrafficControl ?? [],
                DeviceFilters = facts?.DeviceFilters ?? [],
                BridgeFilter = facts?.BridgeFilter,
                PacketFilter = facts?.PacketFilter,
                CallsIpTables = facts?.CallsIpTables ?? false,
            },
            isTwin: false,
            isElsewhere: false);

    private static SwitchPort Port(
        bool isBridge = true, bool isUp = true, bool forwards = true, bool isLocked = false, bool filtersVlans = false, int pvid = 1, bool hasXdp = false,
        bool callsIpTables = false, bool isIsolated = false) => new()
        {
            Index = 7,
            Master = "xenbr0",
            MasterIndex = 3,
            IsBridge = isBridge,
            IsUp = isUp,
            Forwards = forwards,
            IsLocked = isLocked,
            FiltersVlans = filtersVlans,
            Pvid = pvid,
            HasXdp = hasXdp,
            CallsIpTables = callsIpTables,
            IsIsolated = isIsolated,
        };

    private static NetworkFacts Facts(SwitchPort port) => new() { Ports = new() { [Name] = port } };
}
