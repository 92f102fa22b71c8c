using System.Text;
using XenLoop.DataPath;
using XenLoop.Dom0;
using XenLoop.Guest;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;
using static XenLoop.Tests.Fuzz.Target;

namespace XenLoop.Tests.Fuzz;

/// <summary>
/// A value or a node's name in XenStore, which another domain wrote: it is refused quietly, or read as what it says, which is the same when it is said again
/// in our words. And a whole tree of introductions, a line for each node: <c>xenloop/0=00:16:3e:00:00:01</c>.
/// </summary>
internal sealed class StoreTarget
{
    public static string[] Tokens { get; } =
    [
        " ", "-", ",", "/", ":", "::", "%", "%eth0", "from=", "to=", "other", "0", "00", "-1", "+1", "0x1", "65535", "65536", "4294967295", "4294967296",
        "18446744073709551616", "ffffffffffffffff", "0123456789abcdef", "00:16:3e:00:00:01", "1 1", "\0", "\n", "\u00c3\u00a9", "\u00d9\u00a0", "\u00ed\u00a0\u0080",
        "/129", "/33", "10.0.0.0/8", "fd00::/64", "::ffff:1.2.3.4", "off", "calling", "listening", "connected", "closing", "closed", "declined", "quiesce",
        "=", "xenloop", "xenloop/0=", "xenloop/0/5-0=",
    ];

    private readonly TreeReader _tree = new();
    private readonly GuestRecord _guest = new(5, TimeSpan.Zero);

    public void Run(ReadOnlySpan<byte> input)
    {
        string value = Encoding.UTF8.GetString(input); // as XenStore.Read has it
        SaysTheSame(Offer.Parse(value), Offer.Parse);
        SaysTheSame(ChannelMessage.Parse(value), ChannelMessage.Parse);
        SaysTheSame(Introduction.Parse(value), Introduction.Parse);
        Require(QuiesceRequest.Parse(value) is not { } request || request == QuiesceRequest.Parse(request.ToString()), "another request");
        Require(ChannelKey.ParseNode(value) is not { } key || key == ChannelKey.ParseNode(key.NodeName), "another channel");
        Require(AddressList.Canonical(value) is not { } canonical || canonical == AddressList.Canonical(canonical), "another network");
        Require(
            ChannelMessage.Parse(value) is not { } message || (message.Reason.Length <= ChannelMessage.LongestReason && message.Reason.All(c => c is >= ' ' and <= '~')),
            "a reason that goes into a log as it is");
        if (AddressList.Parse(value) is { } networks)
        {
            Require(networks.Count <= AddressList.Most + 1 && networks.TrueForAll(n => n.Bits >= 0 && n.Bits <= 8 * n.Address.GetAddressBytes().Length), "a network of too many bits");
            _ = new SourceAddresses([.. networks.Select(n => n.Address)], [.. networks.Select(n => n.Bits)], other: false).Permit(input);
        }

        // Those that Dom0 makes introductions of are the toolstack's.
        Require(VifRecord.Ip(value).Sources is not { } ip || AddressList.Parse(ip) is not null, "ip= that no guest understands");
        Require(VifRecord.Locked("locked", value, value).Sources is not { } locked || AddressList.Parse(locked) is not null, "locked addresses that no guest understands");
        _guest.Unread.Clear();
        _guest.Remember($"{StorePaths.Area(5)}/{value}", _ => true);
        Require(_guest.Unread.All(n => n is "" or StorePaths.OfferName || ChannelKey.ParseNode(n)?.NodeName == n), "a node that is none of a channel");
        if (value.Contains('=', StringComparison.Ordinal))
        {
            ReadTree(value);
        }
    }

    private void ReadTree(string value)
    {
        _tree.Set(value);
        Introductions introductions = new(_tree);
        introductions.Note(StorePaths.OwnIntroductions);
        _ = introductions.Read((_, _, _) => { });
        Dictionary<ChannelKey, Introduction> all = new(introductions.Peers);
        // Each by itself comes to the same.
        foreach (string path in _tree.Paths)
        {
            introductions.Note(path);
            _ = introductions.Read((_, _, _) => { });
        }

        Require(all.Count == introductions.Peers.Count && all.All(p => introductions.Peers.TryGetValue(p.Key, out Introduction peer) && peer == p.Value), "other peers when read one by one");
        Require(all.Keys.All(k => introductions.Vifs.ContainsKey(k.Vif)), "a peer of a vif that does not take part");
    }

    private static void SaysTheSame<T>(T? first, Func<string?, T?> parse)
        where T : struct
    {
        // By its words: the features of version 0, which nobody speaks, are not among them.
        Require(first is null || first.ToString() == parse(first.ToString())?.ToString(), "not the same when said again");
    }

    /// <summary>A XenStore of an input's lines.</summary>
    private sealed class TreeReader : IStoreReader
    {
        private readonly Dictionary<string, string> _nodes = [];

        public IEnumerable<string> Paths => _nodes.Keys;

        public void Set(string text)
        {
            _nodes.Clear();
            foreach (string line in text.Split('\n'))
            {
                string[] parts = line.Split('=', 2);
                // As xenstored takes paths.
                if (parts.Length == 2 && parts[0].All(c => char.IsAsciiLetterOrDigit(c) || "-/_@".Contains(c, StringComparison.Ordinal)) && !parts[0].Contains("//", StringComparison.Ordinal) && !parts[0].EndsWith('/'))
                {
                    _nodes[parts[0]] = parts[1];
                }
            }
        }

        public string? Read(string path) => _nodes.GetValueOrDefault(path);

        public string[] List(string path) =>
            [.. _nodes.Keys.Where(p => p.StartsWith($"{path}/", StringComparison.Ordinal)).Select(p => p[(path.Length + 1)..].Split('/')[0]).Distinct()];
    }
}
