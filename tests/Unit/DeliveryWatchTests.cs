using XenLoop.DataPath;
using Xunit;

namespace XenLoop.Tests.Unit;

public sealed class DeliveryWatchTests
{
    [Fact]
    public void Several_that_are_missing_for_a_tenth_of_a_second_are_lost()
    {
        DeliveryWatch watch = new(100, 40);
        Assert.True(watch.IsEven(110, 50));
        Assert.False(watch.HasLost(113, 50, 1000));
        Assert.True(watch.IsMissing);
        Assert.False(watch.HasLost(120, 57, 1050));
        Assert.False(watch.HasLost(120, 57, 1100));
        Assert.True(watch.HasLost(120, 57, 1101));
    }

    [Fact]
    public void Nothing_gets_lost_while_the_whole_guest_stands_still()
    {
        DeliveryWatch watch = new(0, 0);
        Assert.False(watch.HasLost(5, 0, 1000));
        Assert.False(watch.HasLost(5, 0, 61_000));
        Assert.False(watch.HasLost(5, 5, 61_010));
        Assert.False(watch.IsMissing);
    }

    [Fact]
    public void One_that_is_missing_has_a_second()
    {
        DeliveryWatch watch = new(0, 0);
        Assert.False(watch.HasLost(1, 0, 1000));
        for (long now = 1000; now <= 2000; now += 50)
        {
            Assert.False(watch.HasLost(2, 1, now));
        }

        Assert.True(watch.HasLost(2, 1, 2001));
    }

    [Fact]
    public void What_was_on_its_way_and_has_come_is_not_lost()
    {
        DeliveryWatch watch = new(0, 0);
        Assert.False(watch.HasLost(5, 0, 1000));
        Assert.False(watch.HasLost(5, 5, 1200));
        Assert.False(watch.IsMissing);
        Assert.False(watch.HasLost(10, 5, 1300));
    }

    [Fact]
    public void Where_something_is_always_on_its_way_nothing_is_lost()
    {
        DeliveryWatch watch = new(0, 0);
        ulong taken = 0;
        for (int i = 0; i < 10_000; i++)
        {
            // A backlog of 10 to 19, that never gets empty.
            ulong given = taken + 10 + (ulong)(i % 10);
            Assert.False(watch.HasLost(given, taken, (1000 + i)));
            taken = given - 10;
        }
    }

    [Fact]
    public void What_is_cut_to_pieces_hides_no_loss_that_comes_later()
    {
        DeliveryWatch watch = new(0, 0);
        Assert.False(watch.HasLost(10, 440, 1000));
        Assert.False(watch.HasLost(20, 450, 1001));
        Assert.False(watch.HasLost(23, 450, 1002));
        Assert.False(watch.HasLost(23, 450, 1052));
        Assert.True(watch.HasLost(23, 450, 1103));
    }

    [Fact]
    public void Counters_may_pass_their_greatest_value()
    {
        DeliveryWatch watch = new(ulong.MaxValue - 2, 7);
        Assert.True(watch.IsEven(5, 15));
        Assert.False(watch.IsEven(8, 15));
    }
}
