using XenLoop.Guest;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>What a guest makes of what Dom0 writes, and of what anybody could.</summary>
public sealed class IntroductionsTests : IStoreReader
{
    private const string Mac0 = "00:16:3e:00:00:01";
    private const string Mac1 = "00:16:3e:00:00:02";

    private readonly Dictionary<string, string> _nodes = [];
    private readonly List<string> _changes = [];
    private readonly List<string> _asked = [];
    private readonly Introductions _introductions;

    public IntroductionsTests() => _introductions = new Introductions(this);

    string? IStoreReader.Read(string path)
    {
        _asked.Add(path);
        return _nodes.GetValueOrDefault(path);
    }

    string[] IStoreReader.List(string path) =>
        [.. _nodes.Keys.Where(n => n.StartsWith($"{path}/", StringComparison.Ordinal)).Select(n => n[(path.Length + 1)..].Split('/')[0]).Distinct()];

    [Fact]
    public void Nothing_is_read_before_something_has_changed()
    {
        Assert.False(Read());
        Assert.Empty(_asked);
    }

    [Fact]
    public void All_is_read_at_first()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Meet(0, "6-1", $"{Mac0} 1 1 00000000000000ab");
        Assert.True(Read("xenloop"));
        Assert.Equal(Mac0, _introductions.Vifs[0].ToString());
        Assert.Equal(
            new Introduction(MacAddress.Parse(Mac0), new Offer(1, Features.Uso), 0xab), _introductions.Peers[new ChannelKey(0, 6, 1)]);
        Assert.Equal(["+5", "+6 calls"], _changes.Order());
        Assert.False(Read());
    }

    [Fact]
    public void One_peer_is_read_alone()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Meet(0, "6-0", $"{Mac1} 1 0");
        Read("xenloop");
        _asked.Clear();
        Meet(0, "5-0", $"{Mac1} 1 0 00000000000000ab");
        Read("xenloop/0/5-0");
        Assert.Equal(["xenloop/0/5-0"], _asked);
        Assert.Equal(["~5 calls"], _changes);
    }

    [Fact]
    public void Several_changes_of_one_node_are_read_once()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Read("xenloop");
        _asked.Clear();
        Read("xenloop/0/5-0", "xenloop/0/5-0", "xenloop/quiesce");
        Assert.Equal(["xenloop/0/5-0", "xenloop/quiesce"], _asked.Order());
        Assert.Empty(_changes);
    }

    [Fact]
    public void A_peer_of_a_vif_not_known_yet_has_all_read()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Read("xenloop/0/5-0");
        Assert.Equal(["+5"], _changes);
        Assert.Single(_introductions.Vifs);
    }

    [Fact]
    public void Who_goes_comes_before_who_comes()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Read("xenloop");
        _nodes.Remove("xenloop/0/5-0");
        // The same guest under another domid: with the same address.
        Meet(0, "9-0", $"{Mac1} 1 0");
        Read("xenloop/0");
        Assert.Equal(["-5", "+9"], _changes);
    }

    [Fact]
    public void All_go_with_their_vif()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Meet(1, "6-0", $"{Mac1} 1 0");
        Read("xenloop");
        _nodes.Clear();
        Read("xenloop");
        Assert.Equal(["-5", "-6"], _changes.Order());
        Assert.Empty(_introductions.Vifs);
    }

    [Theory]
    [InlineData("")]
    [InlineData("nonsense")]
    [InlineData($"{Mac1}")]
    [InlineData($"{Mac1} 1")]
    [InlineData($"{Mac1} one 0")]
    [InlineData($"{Mac1} 1 0 0 0")]
    [InlineData("01:00:5e:00:00:01 1 0")]
    [InlineData("00:16:3e:00:00 1 0")]
    public void What_is_malformed_introduces_nobody(string value)
    {
        Meet(0, "5-0", value);
        _nodes["xenloop/0/5"] = $"{Mac1} 1 0";
        _nodes["xenloop/0/x-0"] = $"{Mac1} 1 0";
        _nodes["xenloop/one"] = Mac0;
        _nodes["xenloop/2"] = "no address";
        _nodes["xenloop/2/5-0"] = $"{Mac1} 1 0";
        Assert.True(Read("xenloop"));
        Assert.Empty(_changes);
        Assert.Equal([0], _introductions.Vifs.Keys);
        Read("xenloop/0/5", "xenloop/0/x-0", "xenloop/0/5-0/more");
        Assert.Empty(_changes);
    }

    [Fact]
    public void What_becomes_malformed_withdraws()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Read("xenloop");
        Meet(0, "5-0", "");
        Read("xenloop/0/5-0");
        Assert.Equal(["-5"], _changes);
    }

    [Fact]
    public void A_request_to_quiesce_stands_until_it_is_removed()
    {
        _nodes["xenloop/quiesce"] = "0000abcd 17 99";
        Read("xenloop");
        Assert.Equal("0000abcd 17 99", _introductions.QuiesceRequest);
        _nodes["xenloop/quiesce"] = "0000abce 18 99";
        Read("xenloop/quiesce");
        Assert.Equal("0000abce 18 99", _introductions.QuiesceRequest);
        _nodes.Clear();
        Read("xenloop/quiesce");
        Assert.Null(_introductions.QuiesceRequest);
    }

    [Fact]
    public void When_the_daemon_ends_nobody_is_introduced()
    {
        Meet(0, "5-0", $"{Mac1} 1 0");
        Read("xenloop");
        _introductions.Note("xenloop");
        _introductions.Clear();
        Assert.False(Read());
        Assert.Empty(_introductions.Peers);
        Assert.Empty(_introductions.Vifs);
    }

    private void Meet(int vif, string peer, string value)
    {
        _nodes[$"xenloop/{vif}"] = Mac0;
        _nodes[$"xenloop/{vif}/{peer}"] = value;
    }

    private bool Read(params string[] noted)
    {
        Array.ForEach(noted, _introductions.Note);
        _changes.Clear();
        return _introductions.Read((key, before, after) =>
        {
            // Whoever is told finds it so.
            Assert.Equal(after is not null, _introductions.Peers.ContainsKey(key));
            _changes.Add($"{(before is null ? '+' : after is null ? '-' : '~')}{key.Peer}{(after is { Call: not 0 } ? " calls" : "")}");
        });
    }
}
