using XenLoop.Interop.Linux;
using XenLoop.Loop;

namespace XenLoop.Dom0;

/// <summary>Where a vif is to be found on its bridge.</summary>
/// <param name="Key">What the bridge's table has for it.</param>
/// <param name="Port">The index of its interface.</param>
/// <param name="Floods">The port gets frames for addresses that the bridge has not learned.</param>
internal sealed record VifPlace(FdbKey Key, int Port, bool Floods);

/// <summary>
/// Whether bridges forward frames for the MAC addresses of vifs to those vifs: an address moves when another takes it over, and
/// then an introduction would lead to where it was. Believes at once that an address has left, and that it is back only when it has stayed for
/// a while, in which it does not even listen to one that moves to and fro: each address costs at most a few looks a second.
/// Does nothing but decide.
/// </summary>
/// <param name="find">What the bridge has of an address.</param>
/// <param name="listen">Has <see cref="Changed"/> called for these from now on, and for no others.</param>
internal sealed class LearnedPlaces(Func<FdbKey, FdbEntry?> find, Action<IReadOnlyCollection<FdbKey>> listen)
{
    /// <summary>How long an address must have been back.</summary>
    public static readonly TimeSpan Settling = TimeSpan.FromSeconds(1);

    private readonly Dictionary<FdbKey, Address> _addresses = [];
    private bool _heardChanged;

    private enum State
    {
        /// <summary>At its vif, as far as the bridge knows.</summary>
        Home,

        /// <summary>Somewhere else, since a moment: not listened to.</summary>
        Left,

        /// <summary>Somewhere else.</summary>
        Away,

        /// <summary>At its vif, since a moment.</summary>
        Returning,
    }

    /// <summary>When <see cref="Turn"/> is due.</summary>
    public Deadline Due
    {
        get
        {
            Deadline due = Deadline.Never;
            foreach (Address address in _addresses.Values)
            {
                due = due.Or(address.Due);
            }

            return due;
        }
    }

    /// <summary>The bridge forwards frames for it to another port, or to nobody. False for what is not followed.</summary>
    public bool IsElsewhere(FdbKey key) => _addresses.TryGetValue(key, out Address? address) && address.State != State.Home;

    /// <summary>Follows these from now on, and no others. Who is new is where the bridge says now.</summary>
    public void Follow(IReadOnlyCollection<VifPlace> wanted)
    {
        Dictionary<FdbKey, Address> before = new(_addresses);
        _addresses.Clear();
        List<Address> unknown = [];
        foreach (VifPlace place in wanted)
        {
            if (!before.Remove(place.Key, out Address? address) || address.Place != place)
            {
                address = new Address { Place = place };
                unknown.Add(address);
            }

            _addresses[place.Key] = address;
        }

        _heardChanged |= unknown.Count + before.Count > 0;
        Listen();
        foreach (Address address in unknown)
        {
            address.State = IsElsewhere(address, find(address.Place.Key)) ? State.Away : State.Home;
        }
    }

    /// <summary>The bridge's table has changed.</summary>
    /// <returns>True when it is elsewhere and was not.</returns>
    public bool Changed(FdbKey key, FdbEntry? entry, TimeSpan now) =>
        _addresses.TryGetValue(key, out Address? address) && address.State != State.Left && Look(address, IsElsewhere(address, entry), now);

    /// <summary>Changes have been lost: looks at all.</summary>
    /// <returns>As <see cref="Changed"/>.</returns>
    public bool LookAtAll(TimeSpan now)
    {
        bool changed = false;
        foreach (Address address in _addresses.Values)
        {
            changed |= address.State != State.Left && Look(address, IsElsewhere(address, find(address.Place.Key)), now);
        }

        Listen();
        return changed;
    }

    /// <summary>Looks again at those that have settled, wherever. To be called after what <see cref="Changed"/> was told, and when it is <see cref="Due"/>.</summary>
    /// <returns>True when somebody is back.</returns>
    public bool Turn(TimeSpan now)
    {
        List<Address> due = [];
        foreach (Address address in _addresses.Values)
        {
            if (address.Due.IsDue(now))
            {
                address.Due = Deadline.Never;
                _heardChanged |= address.State == State.Left;
                address.State = address.State == State.Left ? State.Away : address.State;
                due.Add(address);
            }
        }

        // Before the look: what changes after it is heard.
        Listen();
        bool back = false;
        foreach (Address address in due)
        {
            bool elsewhere = IsElsewhere(address, find(address.Place.Key));
            if (address.State == State.Returning && !elsewhere)
            {
                address.State = State.Home;
                back = true;
            }
            else if (address.State == State.Returning || !elsewhere)
            {
                _ = Look(address, elsewhere, now);
            }
        }

        Listen();
        return back;
    }

    private static bool IsElsewhere(Address address, FdbEntry? entry) =>
        entry is { } found ? found.IsLocal || found.Port != address.Place.Port : !address.Place.Floods;

    /// <returns>True when it is elsewhere and was not.</returns>
    private bool Look(Address address, bool isElsewhere, TimeSpan now)
    {
        State before = address.State;
        if (!isElsewhere)
        {
            if (before == State.Away)
            {
                (address.State, address.Due) = (State.Returning, Deadline.At(now + Settling));
            }

            return false;
        }

        // Of one that moves on and on there is nothing more to know for a while.
        (address.State, address.Due) = (State.Left, Deadline.At(now + Settling));
        _heardChanged = true;
        return before == State.Home;
    }

    private void Listen()
    {
        if (_heardChanged)
        {
            _heardChanged = false;
            listen([.. _addresses.Keys.Where(k => _addresses[k].State != State.Left)]);
        }
    }

    private sealed class Address
    {
        public required VifPlace Place { get; init; }

        public State State { get; set; }

        public Deadline Due { get; set; } = Deadline.Never;
    }
}
