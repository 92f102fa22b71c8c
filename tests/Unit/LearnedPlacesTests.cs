using XenLoop.Dom0;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Addresses that move on a bridge: believed at once, forgiven later, and never more than a few looks a second.</summary>
public sealed class LearnedPlacesTests
{
    private const int Home = 7, Other = 8;

    private static readonly MacAddress _mac = MacAddress.Parse("00:16:3e:00:00:05");
    private static readonly FdbKey _key = new(3, 0, _mac);

    private readonly Dictionary<FdbKey, FdbEntry> _table = [];
    private readonly LearnedPlaces _places;
    private HashSet<FdbKey> _heard = [];
    private int _finds;
    private TimeSpan _now = TimeSpan.FromHours(1);

    public LearnedPlacesTests() => _places = new LearnedPlaces(
        key =>
        {
            _finds++;
            return _table.GetValueOrDefault(key);
        },
        heard => _heard = [.. heard]);

    [Theory]
    [InlineData(0, false, true, false)]
    [InlineData(0, false, false, true)]
    [InlineData(Home, false, true, false)]
    [InlineData(Home, false, false, false)]
    [InlineData(Home, true, true, true)]
    [InlineData(Other, false, true, true)]
    [InlineData(Other, true, true, true)]
    public void Where_an_address_is_when_it_is_first_looked_for(int port, bool local, bool floods, bool elsewhere)
    {
        if (port != 0)
        {
            _table[_key] = new FdbEntry(port, local);
        }

        _places.Follow([new VifPlace(_key, Home, floods)]);
        Assert.Equal(elsewhere, _places.IsElsewhere(_key));
        Assert.True(_places.Due.IsNever);
        Assert.Equal([_key], _heard);
    }

    [Fact]
    public void It_leaves_at_once_and_is_back_when_it_has_stayed()
    {
        Follow();
        Assert.True(Move(Other));
        Assert.True(_places.IsElsewhere(_key));
        // Nobody listens now, and it can move as it likes.
        Assert.Empty(_heard);
        Assert.False(Wait(1.0));
        Assert.Equal([_key], _heard);
        Assert.True(_places.IsElsewhere(_key));
        // It stays there, and nothing is to be done for that.
        Assert.True(_places.Due.IsNever);

        Assert.False(Move(Home));
        Assert.True(_places.IsElsewhere(_key));
        Assert.False(Wait(0.9));
        Assert.True(_places.IsElsewhere(_key));
        Assert.True(Wait(0.1));
        Assert.False(_places.IsElsewhere(_key));
        Assert.True(_places.Due.IsNever);
    }

    [Fact]
    public void An_entry_that_goes_sends_it_home()
    {
        Follow();
        Move(Other);
        Wait(1);
        Move(null);
        Wait(1);
        Assert.False(_places.IsElsewhere(_key));
    }

    [Fact]
    public void Who_is_back_while_nobody_listened_is_found()
    {
        Follow();
        Move(Other);
        _table[_key] = new FdbEntry(Home, false);
        Assert.False(Wait(1));
        Assert.True(Wait(1));
        Assert.False(_places.IsElsewhere(_key));
    }

    [Fact]
    public void A_flood_of_moves_costs_a_few_looks_a_second_and_nobody_is_introduced_meanwhile()
    {
        Follow();
        Move(Other);
        int told = 0, before = _finds;
        for (int millisecond = 0; millisecond < 10_000; millisecond++)
        {
            _now += TimeSpan.FromMilliseconds(1);
            FdbEntry entry = _table[_key] = new FdbEntry(millisecond % 2 == 0 ? Home : Other, false);
            if (_heard.Contains(_key))
            {
                told++;
                Assert.False(_places.Changed(_key, entry, _now));
            }

            Assert.False(_places.Turn(_now));
            Assert.True(_places.IsElsewhere(_key));
        }

        Assert.InRange(told, 5, 30);
        Assert.InRange(_finds - before, 5, 30);
    }

    [Fact]
    public void Lost_changes_are_found_by_a_look_at_all()
    {
        Follow();
        _table[_key] = new FdbEntry(Other, false);
        Assert.True(_places.LookAtAll(_now));
        Assert.True(_places.IsElsewhere(_key));
    }

    [Fact]
    public void Others_and_those_not_followed_any_more_do_not_count()
    {
        Follow();
        Assert.False(_places.Changed(new FdbKey(3, 5, _mac), new FdbEntry(Other, false), _now));
        Assert.False(_places.Changed(new FdbKey(4, 0, _mac), new FdbEntry(Other, false), _now));
        Assert.False(_places.IsElsewhere(_key));
        Move(Other);
        _places.Follow([]);
        Assert.False(_places.IsElsewhere(_key));
        Assert.True(_places.Due.IsNever);
        Assert.Empty(_heard);
    }

    [Fact]
    public void A_vif_that_has_another_port_is_looked_for_there()
    {
        Follow();
        Move(Other);
        _places.Follow([new VifPlace(_key, Other, true)]);
        Assert.False(_places.IsElsewhere(_key));
    }

    private void Follow() => _places.Follow([new VifPlace(_key, Home, true)]);

    private bool Move(int? port)
    {
        FdbEntry? entry = port is { } to ? new FdbEntry(to, false) : null;
        _table.Remove(_key);
        if (entry is { } there)
        {
            _table[_key] = there;
        }

        bool changed = _places.Changed(_key, entry, _now);
        Assert.False(_places.Turn(_now));
        return changed;
    }

    private bool Wait(double seconds)
    {
        _now += TimeSpan.FromSeconds(seconds);
        return _places.Due.IsDue(_now) && _places.Turn(_now);
    }
}
