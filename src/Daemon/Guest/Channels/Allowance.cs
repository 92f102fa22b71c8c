namespace XenLoop.Guest.Channels;

/// <summary>How much of something each peer may still have: so much at once, and as much again in a given time.</summary>
internal sealed class Allowance(double most, TimeSpan refill)
{
    // Domids go up to 32751: what is forgotten is only that somebody has had too much, long ago.
    private const int MostPeers = 1024;

    private readonly Dictionary<ushort, Purse> _peers = [];

    /// <summary>Takes it, if there is so much left.</summary>
    /// <param name="peer">Whose.</param>
    /// <param name="amount">How much.</param>
    /// <param name="now">See <see cref="Loop.Deadline"/>.</param>
    /// <param name="left">What is left then.</param>
    public bool Take(ushort peer, double amount, TimeSpan now, out double left)
    {
        if (!_peers.TryGetValue(peer, out Purse? purse))
        {
            if (_peers.Count >= MostPeers)
            {
                _peers.Clear();
            }

            _peers.Add(peer, purse = new Purse { Left = most, At = now });
        }

        left = Math.Min(most, purse.Left + ((now - purse.At) / refill * most));
        bool enough = left >= amount;
        left = enough ? left - amount : left;
        (purse.Left, purse.At) = (left, now);
        return enough;
    }

    private sealed class Purse
    {
        public double Left;
        public TimeSpan At;
    }
}
