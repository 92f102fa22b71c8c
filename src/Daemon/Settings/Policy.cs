namespace XenLoop.Settings;

/// <summary>By what the policy knows a guest: both are the toolstack's words.</summary>
internal readonly record struct GuestIdentity(string Name, string Uuid);

/// <summary>
/// Which guests may be introduced to each other. Rules are pairs of groups and hold in both directions; one denial outweighs
/// all allowances, one allowance the default, so their order means nothing. For one thread at a time.
/// </summary>
internal sealed class Policy
{
    /// <summary>In a rule: the group of all guests.</summary>
    public const string Everyone = "*";

    // Guests come and go for as long as a policy is in force; far more than a host has at a time.
    private const int MaxStandings = 4096;

    // All by the group's number; number 0 is everyone. The partners of a group: the groups that rules pair it with.
    private readonly Glob[][] _members;
    private readonly List<int>[] _allowedPartners;
    private readonly List<int>[] _deniedPartners;
    private readonly Dictionary<string, int> _numbers;
    private readonly (string One, string Other)[] _denials;
    private readonly Dictionary<GuestIdentity, Standing> _standings = [];
    private readonly IReadOnlyDictionary<string, Glob[]> _groups;
    private readonly List<Glob> _unrestricted = [];

    /// <summary>No rules: the default decides everything.</summary>
    public Policy()
        : this(new Dictionary<string, Glob[]>(), [], [])
    {
    }

    /// <param name="groups">Who is in each group, by its name.</param>
    /// <param name="allow">Pairs of groups, of <paramref name="groups"/> or <see cref="Everyone"/>.</param>
    /// <param name="deny">The same.</param>
    /// <exception cref="KeyNotFoundException">A rule names a group that there is not.</exception>
    public Policy(IReadOnlyDictionary<string, Glob[]> groups, IEnumerable<(string One, string Other)> allow, IEnumerable<(string One, string Other)> deny)
    {
        _groups = groups;
        _numbers = new() { [Everyone] = 0 };
        _members = [[new Glob("*")], .. groups.Values];
        foreach (string name in groups.Keys)
        {
            _numbers.Add(name, _numbers.Count);
        }

        _denials = [.. deny];
        _allowedPartners = Partners(allow, _numbers);
        _deniedPartners = Partners(_denials, _numbers);
    }

    /// <summary>The answer for guests that no rule speaks of.</summary>
    public bool AllowedByDefault { get; init; } = true;

    /// <summary>Groups of guests that are introduced as if nothing in Dom0 restricted them.</summary>
    public IReadOnlyList<string> UnrestrictedGroups
    {
        init
        {
            foreach (string group in value)
            {
                _unrestricted.AddRange(group == Everyone ? [new Glob("*")] : _groups[group]);
            }
        }
    }

    /// <summary>The same of the vifs on these bridges, and of those with such an interface in Dom0.</summary>
    public IReadOnlyList<Glob> UnrestrictedPlaces { get; init; } = [];

    /// <summary>Whether a vif is introduced as if nothing in Dom0 restricted it.</summary>
    /// <param name="guest">Whose it is.</param>
    /// <param name="interfaceName">Its interface in its backend's domain.</param>
    /// <param name="segment">Domain and bridge, as <c>0/xenbr0</c>.</param>
    public bool IgnoresRestrictions(GuestIdentity guest, string interfaceName, string segment)
    {
        if (_unrestricted.Exists(g => g.Matches(guest)))
        {
            return true;
        }

        string bridge = segment[(segment.IndexOf('/') + 1)..];
        foreach (Glob place in UnrestrictedPlaces)
        {
            if (place.MatchesName(bridge) || place.MatchesName(segment) || place.MatchesName(interfaceName))
            {
                return true;
            }
        }

        return false;
    }

    /// <summary>The same answer for both orders.</summary>
    public bool MayMeet(GuestIdentity one, GuestIdentity other)
    {
        Standing mine = StandingOf(one);
        ulong[] peers = StandingOf(other).Groups;
        return !Intersect(mine.Denied, peers) && (AllowedByDefault || Intersect(mine.Allowed, peers));
    }

    /// <summary>What keeps two guests apart, in the words of the file; null when they may meet. Slower than <see cref="MayMeet"/>.</summary>
    public string? WhyNot(GuestIdentity one, GuestIdentity other)
    {
        if (MayMeet(one, other))
        {
            return null;
        }

        ulong[] mine = StandingOf(one).Groups, others = StandingOf(other).Groups;
        foreach ((string first, string second) in _denials)
        {
            int a = _numbers[first], b = _numbers[second];
            if ((Has(mine, a) && Has(others, b)) || (Has(mine, b) && Has(others, a)))
            {
                return $"deny [\"{first}\", \"{second}\"]";
            }
        }

        return "default = \"deny\"";
    }

    private static bool Has(ulong[] set, int group) => (set[group / 64] & (1UL << (group % 64))) != 0;

    private static List<int>[] Partners(IEnumerable<(string One, string Other)> rules, Dictionary<string, int> numbers)
    {
        List<int>[] partners = [.. numbers.Select(_ => new List<int>())];
        foreach ((string one, string other) in rules)
        {
            partners[numbers[one]].Add(numbers[other]);
            partners[numbers[other]].Add(numbers[one]);
        }

        return partners;
    }

    private static bool Intersect(ulong[] one, ulong[] other)
    {
        for (int i = 0; i < one.Length; i++)
        {
            if ((one[i] & other[i]) != 0)
            {
                return true;
            }
        }

        return false;
    }

    private Standing StandingOf(GuestIdentity guest)
    {
        if (_standings.TryGetValue(guest, out Standing? standing))
        {
            return standing;
        }

        if (_standings.Count >= MaxStandings)
        {
            _standings.Clear();
        }

        standing = new Standing(_members.Length);
        for (int group = 0; group < _members.Length; group++)
        {
            if (_members[group].Any(g => g.Matches(guest)))
            {
                Standing.Add(standing.Groups, group);
                _allowedPartners[group].ForEach(p => Standing.Add(standing.Allowed, p));
                _deniedPartners[group].ForEach(p => Standing.Add(standing.Denied, p));
            }
        }

        _standings.Add(guest, standing);
        return standing;
    }

    /// <summary>What the rules come to for one guest: sets of groups, one bit each. So a pair of guests costs a few words,
    /// however many the rules are: Dom0 asks for all pairs at once.</summary>
    private sealed class Standing(int groups)
    {
        /// <summary>Those it is in.</summary>
        public ulong[] Groups { get; } = new ulong[(groups + 63) / 64];

        /// <summary>Those whose members it is allowed to meet.</summary>
        public ulong[] Allowed { get; } = new ulong[(groups + 63) / 64];

        /// <summary>Those whose members it is denied.</summary>
        public ulong[] Denied { get; } = new ulong[(groups + 63) / 64];

        public static void Add(ulong[] set, int group) => set[group / 64] |= 1UL << (group % 64);
    }
}
