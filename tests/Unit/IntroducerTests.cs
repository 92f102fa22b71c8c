using XenLoop.Dom0;
using XenLoop.Interop.Linux;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Settings;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Who is to meet whom, and how much one guest can make Dom0 do.</summary>
public sealed class IntroducerTests
{
    private static readonly Offer _offer = new(1, Features.Uso);

    [Fact]
    public void Willing_guests_on_one_segment_meet_vif_by_vif()
    {
        GuestRecord a = Guest(1, "0/br0", "0/br1"), b = Guest(2, "0/br1", "0/br0");
        Assert.Equal([(new ChannelKey(0, 2, 1), new Introduction(Mac(2, 1), _offer)), (new ChannelKey(1, 2, 0), new Introduction(Mac(2, 0), _offer))], Peers(a, b));
        Assert.Equal([(new ChannelKey(0, 1, 1), new Introduction(Mac(1, 1), _offer)), (new ChannelKey(1, 1, 0), new Introduction(Mac(1, 0), _offer))], Peers(b, a));
    }

    [Fact]
    public void Several_vifs_on_one_segment_all_meet()
    {
        GuestRecord a = Guest(1, "0/br0", "0/br0"), b = Guest(2, "0/br0");
        Assert.Equal([new ChannelKey(0, 2, 0), new ChannelKey(1, 2, 0)], Peers(a, b).Select(p => p.Key));
        Assert.Equal([new ChannelKey(0, 1, 0), new ChannelKey(0, 1, 1)], Peers(b, a).Select(p => p.Key));
    }

    /// <summary>Either of the two that lacks something keeps them apart, in both directions.</summary>
    [Theory]
    [InlineData("nothing", true)]
    [InlineData("segment", false)]
    [InlineData("same segment", false)]
    [InlineData("offer", false)]
    [InlineData("name", false)]
    [InlineData("uuid", false)]
    [InlineData("quiesce", false)]
    [InlineData("policy", false)]
    public void What_keeps_guests_apart(string what, bool meet)
    {
        foreach (bool first in new[] { true, false })
        {
            GuestRecord a = Guest(1, "0/br0"), b = Guest(2, "0/br0"), guest = first ? a : b;
            Policy policy = what == "policy" ? new Policy { AllowedByDefault = false } : new Policy();
            switch (what)
            {
                case "segment":
                    guest.Standings = [VifStanding.Nowhere];
                    break;
                case "same segment":
                    guest.Standings = [new VifStanding("0/br0.7")];
                    break;
                case "offer":
                    guest.Offer = null;
                    break;
                case "name":
                    guest.Identity = new("", guest.Identity.Uuid);
                    break;
                case "uuid":
                    guest.Identity = new(guest.Identity.Name, "");
                    break;
                case "quiesce":
                    guest.Quiesce = new QuiesceRequest(1, 0, 0);
                    break;
            }

            Assert.Equal(meet, Introducer.Peers(policy, a, b).Length > 0);
            Assert.Equal(meet, Introducer.Peers(policy, b, a).Length > 0);
        }
    }

    /// <summary>What Dom0 restricts, it does not go round, unless the policy says so of each vif that is restricted.</summary>
    [Theory]
    [InlineData("barrier", "", false)]
    [InlineData("barrier", "guest-1", true)]
    [InlineData("barrier", "guest-2", false)]
    [InlineData("barrier", "place br0", true)]
    [InlineData("barrier", "place 0/br0", true)]
    [InlineData("barrier", "place vif1.0", true)]
    [InlineData("barrier", "place vif2.0", false)]
    [InlineData("isolated", "", true)]
    [InlineData("both isolated", "", false)]
    [InlineData("both isolated", "guest-1", false)]
    [InlineData("both isolated", "guest-*", true)]
    [InlineData("ambiguity", "", false)]
    [InlineData("ambiguity", "guest-*", false)]
    public void What_restricts_a_vif_in_Dom0(string what, string ignored, bool meet)
    {
        GuestRecord a = Guest(1, "0/br0"), b = Guest(2, "0/br0");
        a.Standings = what switch
        {
            "barrier" => [new VifStanding("0/br0", Barrier: "a filter")],
            "ambiguity" => [new VifStanding("0/br0", Ambiguity: "a twin")],
            _ => [new VifStanding("0/br0", IsIsolated: true)],
        };
        b.Standings = what == "both isolated" ? a.Standings : b.Standings;
        bool place = ignored.StartsWith("place ", StringComparison.Ordinal);
        Policy policy = new(new Dictionary<string, Glob[]> { ["some"] = [new Glob(place ? "" : ignored)] }, [], [])
        {
            UnrestrictedGroups = ["some"],
            UnrestrictedPlaces = place ? [new Glob(ignored[6..])] : [],
        };
        Assert.Equal(meet, Introducer.Peers(policy, a, b).Length > 0);
        Assert.Equal(meet, Introducer.Peers(policy, b, a).Length > 0);
    }

    [Fact]
    public void The_addresses_that_a_vif_may_use_are_told_to_those_it_meets()
    {
        GuestRecord a = Guest(1, "0/br0"), b = Guest(2, "0/br0");
        a.Vifs = [a.Vifs[0] with { Sources = "10.0.0.1,::/0,other" }];
        Assert.Equal("10.0.0.1,::/0,other", Assert.Single(Peers(b, a)).Value.Sources);
        Assert.Null(Assert.Single(Peers(a, b)).Value.Sources);
    }

    [Fact]
    public void Vifs_with_one_MAC_on_one_segment_are_twins_whosever_they_are_and_whether_they_take_part_or_not()
    {
        Dictionary<string, SwitchPort> ports = [];
        GuestRecord[] guests = [Guest(1, "0/br0", "0/br0"), Guest(2, "0/br0"), Guest(3, "0/br0"), Guest(4, "0/br1")];
        guests[1].Vifs = [guests[1].Vifs[0] with { Mac = Mac(1, 0) }];
        guests[1].Offer = null;
        guests[3].Vifs = [guests[3].Vifs[0] with { Mac = Mac(1, 0) }];
        int index = 0;
        foreach (VifRecord vif in guests.SelectMany(g => g.Vifs))
        {
            ports[vif.Interface] = new SwitchPort { Index = ++index, Master = vif.Interface == "vif4.0" ? "br1" : "br0", MasterIndex = 100, IsBridge = true };
        }

        Assert.Equal(["vif1.0", "vif2.0"], Twins());
        // Of one guest.
        guests[0].Vifs = [guests[0].Vifs[0], guests[0].Vifs[1] with { Mac = Mac(1, 0) }];
        Assert.Equal(["vif1.0", "vif1.1", "vif2.0"], Twins());
        // Gone.
        guests[0].Vifs = [guests[0].Vifs[1]];
        ports.Remove("vif2.0");
        Assert.Empty(Twins());

        IEnumerable<string> Twins() =>
            guests.SelectMany(g => g.Vifs).Where(v => v.Label(ports) is { } label && Introducer.CountTwins(guests, ports)[label] > 1).Select(v => v.Interface);
    }

    [Fact]
    public void Nobody_meets_itself_or_who_is_gone()
    {
        GuestRecord a = Guest(1, "0/br0", "0/br0");
        Assert.Empty(Peers(a, a));
        Assert.Empty(Peers(a, null));
    }

    [Fact]
    public void A_call_is_told_to_the_one_who_is_called_alone()
    {
        GuestRecord a = Guest(1, "0/br0"), b = Guest(2, "0/br0"), c = Guest(3, "0/br0");
        b.Calls[new ChannelKey(0, 1, 0)] = 0xabc;
        Assert.Equal(0xabcUL, Assert.Single(Peers(a, b)).Value.Call);
        Assert.Equal(0UL, Assert.Single(Peers(b, a)).Value.Call);
        Assert.Equal(0UL, Assert.Single(Peers(c, b)).Value.Call);
    }

    [Fact]
    public void Vifs_of_a_willing_guest_take_part_if_they_are_on_a_segment()
    {
        GuestRecord guest = Guest(1, "0/br0", null, "3/br0");
        Assert.Equal([0, 2], Introducer.Vifs(guest).Keys.Order());
        Assert.Equal(Mac(1, 2), Introducer.Vifs(guest)[2]);
        // A quiesce withdraws its peers, not its vifs: the guest is to see the request.
        guest.Quiesce = new QuiesceRequest(1, 0, 0);
        Assert.Equal(2, Introducer.Vifs(guest).Count);
        guest.Offer = null;
        Assert.Empty(Introducer.Vifs(guest));
    }

    [Fact]
    public void A_guest_that_is_busy_waits_until_its_budget_allows()
    {
        TimeSpan now = TimeSpan.FromHours(1);
        WorkBudget budget = new(now);
        Assert.True(budget.Due(now).IsDue(now));
        budget.Charge((int)(WorkBudget.Capacity + WorkBudget.RequestsPerSecond) - 1);
        Assert.Equal(TimeSpan.FromSeconds(1), budget.Due(now).In(now));
        now += TimeSpan.FromSeconds(1);
        Assert.True(budget.Due(now).IsDue(now));
        // It never saves more than its capacity.
        now += TimeSpan.FromDays(1);
        Assert.Equal(Deadline.Now, budget.Due(now));
        budget.Charge((int)WorkBudget.Capacity);
        Assert.False(budget.Due(now).IsDue(now));
        Assert.False(budget.IsOverdrawn);
        for (int i = 0; i <= 4 * WorkBudget.Capacity; i++)
        {
            budget.ChargeEvent();
        }

        Assert.True(budget.IsOverdrawn);
    }

    [Fact]
    public void A_busy_guest_causes_no_more_than_200_requests_a_second()
    {
        TimeSpan now = TimeSpan.FromHours(1);
        WorkBudget budget = new(now);
        int requests = 0;
        for (int i = 0; i < 4000; i++, now += TimeSpan.FromMilliseconds(1))
        {
            if (budget.Due(now).IsDue(now))
            {
                budget.Charge(2);
                requests += 2;
            }
        }

        Assert.InRange(requests, 700, 4 * 200 + 2);
    }

    [Fact]
    public void What_a_guest_changes_is_remembered_if_it_means_anything()
    {
        GuestRecord guest = Guest(7, "0/br0");
        string area = StorePaths.Area(7);
        guest.Remember($"{area}/offer", _ => false);
        guest.Remember($"{area}/offer", _ => false);
        guest.Remember($"{area}/0-1-0", key => key == new ChannelKey(0, 1, 0));
        guest.Remember($"{area}/0-2-0", _ => false);
        foreach (string node in (string[])["x", "quiesced", "offer/below", "0-1-0/below", "00-1-0", "0-1", new('y', 40)])
        {
            guest.Remember($"{area}/{node}", _ => true);
        }

        Assert.Equal(["0-1-0", "offer"], guest.Unread.Order());
        guest.Remember(area, _ => false);
        Assert.Contains("", guest.Unread);

        // What Dom0 has introduced is all that it has a use for.
        guest.Unread.Clear();
        guest.PublishedPeers[3] = [(new ChannelKey(0, 3, 1), default)];
        guest.RememberAll();
        Assert.Equal(["", "0-3-1"], guest.Unread.Order());
    }

    [Fact]
    public void Without_an_offer_nothing_of_a_guest_is_news_but_an_offer()
    {
        GuestRecord guest = Guest(7, "0/br0");
        guest.Offer = null;
        guest.Unread.Add("0-1-0");
        Assert.False(guest.HasNews);
        guest.Unread.Add(StorePaths.OfferName);
        Assert.True(guest.HasNews);
    }

    /// <summary>Whoever is introduced to nobody has a reason, and nobody else has one.</summary>
    [Fact]
    public void Who_is_apart_is_told_why()
    {
        GuestRecord a = Guest(1, "0/br0"), b = Guest(2, "0/br0"), c = Guest(3, "0/br0");
        Assert.Null(Introducer.WhyApart(a));
        b.Offer = Offer.Parse(Offer.Off);
        Assert.Null(b.Offer);
        Assert.Contains("no daemon", Introducer.WhyApart(b), StringComparison.Ordinal);
        b.IsOff = true;
        Assert.Contains("switched off", Introducer.WhyApart(b), StringComparison.Ordinal);
        c.Quiesce = new QuiesceRequest(1, 7, 8);
        Assert.Contains("process 7", Introducer.WhyApart(c), StringComparison.Ordinal);
        c.Quiesce = new QuiesceRequest(1, 0, 0);
        Assert.Contains("xenloop resume", Introducer.WhyApart(c), StringComparison.Ordinal);
        c.Quiesce = null;
        c.Identity = new("", c.Identity.Uuid);
        Assert.Contains("name", Introducer.WhyApart(c), StringComparison.Ordinal);
    }

    [Fact]
    public void Each_pair_that_the_policy_alone_keeps_apart_is_told_once()
    {
        GuestRecord a = Guest(1, "0/br0"), b = Guest(2, "0/br0"), c = Guest(3, "0/br0");
        Policy policy = new() { AllowedByDefault = false };
        Assert.Equal([2, 3], Assert.Single(Introducer.Denied(policy, a, [a, b, c])).Value);
        Assert.Equal([3], Assert.Single(Introducer.Denied(policy, b, [a, b, c])).Value);
        Assert.Empty(Introducer.Denied(policy, c, [a, b, c]));
        Assert.Empty(Introducer.Denied(new Policy(), a, [a, b, c]));
        b.Offer = null;
        Assert.Equal([3], Assert.Single(Introducer.Denied(policy, a, [a, b, c])).Value);
    }

    [Theory]
    [InlineData(0, 0UL, true)]
    [InlineData(-1, 0UL, false)]
    [InlineData(-1, 5UL, false)]
    public void A_holder_holds_as_long_as_it_is_the_process_that_it_was(int process, ulong start, bool holds)
    {
        Assert.Equal(holds, Suspends.Holds(new QuiesceRequest(1, process, start)));
        ulong own = ProcessStat.Read("self")!.Value.StartTime;
        Assert.True(Suspends.Holds(new QuiesceRequest(1, Environment.ProcessId, own)));
        Assert.False(Suspends.Holds(new QuiesceRequest(1, Environment.ProcessId, own + 1)));
    }

    private static (ChannelKey Key, Introduction Value)[] Peers(GuestRecord guest, GuestRecord? peer) => Introducer.Peers(new Policy(), guest, peer);

    private static MacAddress Mac(ushort domid, int vif) => MacAddress.Read([0, 0x16, 0x3e, (byte)domid, 0, (byte)vif]);

    /// <summary>A willing guest with a vif on each of these segments.</summary>
    private static GuestRecord Guest(ushort domid, params string?[] segments) => new(domid, TimeSpan.Zero)
    {
        Identity = new GuestIdentity($"guest-{domid}", $"6f2c1c4e-0000-4000-8000-{domid:d12}"),
        Offer = _offer,
        Vifs = [.. segments.Select((_, i) => new VifRecord(i, Mac(domid, i), 0, $"vif{domid}.{i}", null))],
        Standings = [.. segments.Select(s => new VifStanding(s))],
    };
}
