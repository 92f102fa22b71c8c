using System.Globalization;
using System.Text.RegularExpressions;
using XenLoop.Lab;

namespace XenLoop.Tests.Lab;

/// <summary>One of a daemon's requests, counted from 1: before it is carried out, or when it has been, before it is answered.</summary>
internal readonly record struct Moment(int Number, bool Done)
{
    /// <summary>Both of each of so many requests.</summary>
    public static IEnumerable<Moment> All(int requests) =>
        Enumerable.Range(1, requests).SelectMany(n => new[] { new Moment(n, false), new Moment(n, true) });

    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{(Done ? "after" : "before")} {Number}");
}

/// <summary>
/// Looks at what daemons ask of the lab's XenStore and broker: all that others can see of a daemon is in these requests.
/// Counts them from a given moment, and strikes at one of them.
/// </summary>
internal sealed partial class Requests
{
    // How often a daemon polls depends on the time; after the second of equal requests nothing is new.
    private const int MostRepeats = 2;

    private readonly Lock _lock = new();
    private readonly Dictionary<ushort, Watched> _watched = [];

    public Requests(LabHost host) => host.Store.Observer = host.Broker.Observer = Observe;

    /// <summary>Counts from now on.</summary>
    public void Record(LabDomain domain) => Strike(domain, default, () => true);

    /// <summary>Counts from now on, and strikes once.</summary>
    /// <param name="domain">Whose requests.</param>
    /// <param name="moment">When to strike.</param>
    /// <param name="strike">Runs inside the server that got the request; says whether who asked lives on.</param>
    public void Strike(LabDomain domain, Moment moment, Func<bool> strike)
    {
        lock (_lock)
        {
            _watched[domain.Domid] = new(moment, strike);
        }
    }

    /// <summary>Kills a daemon at one of its requests from now on.</summary>
    public void Kill(LabDomain domain, LabProcess daemon, Moment moment) => Strike(domain, moment, () =>
    {
        daemon.Signal(Tmds.Linux.LibC.SIGKILL);
        return false;
    });

    /// <summary>The request at which was struck; null if it was not.</summary>
    public string? Struck(LabDomain domain)
    {
        lock (_lock)
        {
            return _watched.GetValueOrDefault(domain.Domid)?.Struck;
        }
    }

    /// <summary>Counts no more, and does not strike.</summary>
    /// <returns>The requests, as they were counted.</returns>
    public string[] Stop(LabDomain domain)
    {
        lock (_lock)
        {
            return _watched.Remove(domain.Domid, out Watched? watched) ? [.. watched.Requests] : [];
        }
    }

    private bool Observe(ushort domid, string request, bool done)
    {
        Watched? watched;
        lock (_lock)
        {
            if (!_watched.TryGetValue(domid, out watched))
            {
                return true;
            }

            if (!done)
            {
                request = Session().Replace(request.Replace($"/local/domain/{domid}/", "", StringComparison.Ordinal), "*");
                watched.Repeats = watched.Last == request ? watched.Repeats + 1 : 0;
                watched.Last = request;
                if (watched.Repeats < MostRepeats)
                {
                    watched.Requests.Add(request);
                }
            }

            if (watched.Struck is not null || watched.Repeats >= MostRepeats || new Moment(watched.Requests.Count, done) != watched.Moment)
            {
                return watched.Lives;
            }

            watched.Struck = watched.Last;
        }

        // Without this lock: it may take that of the other server, where somebody may wait for this one.
        return watched.Lives = watched.Strike();
    }

    [GeneratedRegex("[0-9a-f]{16}")]
    private static partial Regex Session();

    private sealed class Watched(Moment moment, Func<bool> strike)
    {
        public Moment Moment { get; } = moment;

        public Func<bool> Strike { get; } = strike;

        public List<string> Requests { get; } = [];

        public string? Last { get; set; }

        public int Repeats { get; set; }

        public string? Struck { get; set; }

        public bool Lives { get; set; } = true;
    }
}
