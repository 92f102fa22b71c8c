using XenLoop.Interop.Xen;
using XenLoop.Loop;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Time and watches of the control thread.</summary>
public sealed class LoopTests
{
    private static readonly TimeSpan _now = TimeSpan.FromDays(3);

    [Fact]
    public void A_deadline_is_due_from_its_moment_on()
    {
        Deadline deadline = Deadline.At(_now);
        Assert.False(deadline.IsDue(_now - TimeSpan.FromTicks(1)));
        Assert.True(deadline.IsDue(_now));
        Assert.Equal(TimeSpan.Zero, deadline.In(_now + TimeSpan.FromSeconds(1)));
        Assert.Equal(TimeSpan.FromSeconds(2), deadline.Plus(TimeSpan.FromSeconds(1)).In(_now - TimeSpan.FromSeconds(1)));
    }

    [Fact]
    public void Never_is_one_value_and_the_default_is_due()
    {
        Assert.False(Deadline.Never.IsDue(TimeSpan.MaxValue - TimeSpan.FromTicks(1)));
        Assert.Equal(Deadline.Never, Deadline.Never.Plus(TimeSpan.FromHours(1)));
        Assert.Equal(Deadline.Never, Deadline.Never.Or(Deadline.Never));
        Assert.True(default(Deadline).IsDue(TimeSpan.Zero));
        Assert.Equal(Deadline.Now, default);
    }

    [Fact]
    public void The_earlier_of_two_counts()
    {
        Deadline sooner = Deadline.At(_now), later = Deadline.At(_now + TimeSpan.FromSeconds(1));
        Assert.Equal(sooner, sooner.Or(later));
        Assert.Equal(sooner, later.Or(sooner));
        Assert.Equal(sooner, Deadline.Never.Or(sooner));
        Assert.Equal(Deadline.Now, sooner.Or(Deadline.Now));
    }

    [Theory]
    [InlineData(-5, 0)]
    [InlineData(0, 0)]
    [InlineData(0.001, 1)]
    [InlineData(1, 1)]
    [InlineData(1.2, 2)]
    [InlineData(1e13, int.MaxValue)]
    public void Epoll_waits_whole_milliseconds_and_not_too_short(double milliseconds, int timeout) =>
        Assert.Equal(timeout, Deadline.At(_now + TimeSpan.FromMilliseconds(milliseconds)).Timeout(_now));

    [Fact]
    public void Epoll_waits_for_ever_for_what_is_never_due() => Assert.Equal(-1, Deadline.Never.Timeout(_now));

    [Fact]
    public void The_clock_is_the_one_given()
    {
        TestClock clock = new() { Now = TimeSpan.FromSeconds(1234) };
        Assert.Equal(TimeSpan.FromSeconds(1234), Clock.Now(clock));
    }

    [Fact]
    public void A_watch_calls_its_handler_with_what_changed()
    {
        FakeWatches store = new();
        WatchSet watches = new(store);
        List<string> heard = [];
        watches.Add("a", p => heard.Add($"a: {p}"));
        watches.Add("b/c", p => heard.Add($"b/c: {p}"));
        store.Fire("b/c/d", "b/c");
        store.Fire("a", "a");
        Assert.Empty(heard);
        watches.Drain();
        // As XenStore has it, each fires once when it is set.
        Assert.Equal(["a: a", "b/c: b/c", "b/c: b/c/d", "a: a"], heard);
        watches.Drain();
        Assert.Equal(4, heard.Count);
    }

    [Fact]
    public void A_watch_that_is_removed_calls_nobody_though_it_has_fired()
    {
        FakeWatches store = new();
        WatchSet watches = new(store);
        List<string> heard = [];
        watches.Add("a", p => watches.Remove("b"));
        watches.Add("b", heard.Add);
        watches.Drain();
        Assert.Empty(heard);
        Assert.Equal(["a"], store.Watched);
        watches.Remove("b");
        watches.Add("b", heard.Add);
        watches.Drain();
        Assert.Equal(["b"], heard);
    }

    [Fact]
    public void A_handler_may_add_watches()
    {
        FakeWatches store = new();
        WatchSet watches = new(store);
        List<string> heard = [];
        watches.Add("a", _ => watches.Add("b", heard.Add));
        watches.Drain();
        Assert.Equal(["b"], heard);
    }

    [Fact]
    public void A_watch_that_XenStore_refuses_is_not_there()
    {
        FakeWatches store = new() { Refuses = true };
        WatchSet watches = new(store);
        Assert.Throws<InvalidOperationException>(() => watches.Add("a", _ => { }));
        store.Refuses = false;
        watches.Add("a", _ => { });
        Assert.Equal(["a"], store.Watched);
    }

    /// <summary>Watches without XenStore; an event that is queued stays so, whatever becomes of its watch.</summary>
    private sealed class FakeWatches : IWatchSource
    {
        private readonly Queue<(string Path, string Token)> _fired = [];

        public List<string> Watched { get; } = [];

        public bool Refuses { get; set; }

        public void Fire(string path, string token) => _fired.Enqueue((path, token));

        public void Watch(string path, string token)
        {
            if (Refuses)
            {
                throw new InvalidOperationException();
            }

            Watched.Add(path);
            Fire(path, token);
        }

        public void Unwatch(string path, string token) => Assert.True(Watched.Remove(path));

        public bool TryTakeWatch(out string path, out string token)
        {
            bool some = _fired.TryDequeue(out (string Path, string Token) fired);
            (path, token) = some ? fired : ("", "");
            return some;
        }
    }
}

/// <summary>A clock that stands still until it is set.</summary>
internal sealed class TestClock : TimeProvider
{
    public TimeSpan Now { get; set; }

    public override long TimestampFrequency => TimeSpan.TicksPerSecond;

    public override long GetTimestamp() => Now.Ticks;
}
