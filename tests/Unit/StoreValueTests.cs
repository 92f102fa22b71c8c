using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>
/// Values of XenStore, honest ones changed at random: whatever is read as something is said again in other words as the same, and what is not
/// is refused quietly, for another domain wrote it.
/// </summary>
public sealed class StoreValueTests
{
    private const int Inputs = 200_000;
    private const int LongestValue = 2015; // XenStore's own limit

    private static readonly string[] _honest =
    [
        "1 0", "1 1", "off", "calling 0123456789abcdef", "listening 0123456789abcdef 1 1 8 17", "connected 0123456789abcdef 1 1",
        "connected 0123456789abcdef", "closing ffffffffffffffff", "closed 0000000000000001 idle", "declined 0123456789abcdef obstructed: a qdisc",
        "00:16:3e:00:00:01 1 1", "00:16:3e:00:00:01 1 1 0123456789abcdef", "00:16:3e:00:00:01 1 1 0000000000000000 from=10.0.0.5,10.0.1.0/24,fd00::/64,other",
        "0000002a 1234 5678901", "0-5-0", "5-0", "10.0.0.0/8,::ffff:1.2.3.4,other", "0.0.0.0/0,::/0",
    ];

    private static readonly string[] _pieces =
    [
        " ", "-", ",", "/", ":", "::", "%", "%eth0", "from=", "other", "0", "00", "-1", "+1", "0x1", "65535", "65536", "4294967295", "4294967296",
        "18446744073709551616", "ffffffffffffffff", "\0", "\n", "\u00e9", "\u0660", "\ud800", "/129", "/33", "closed", "listening", "off",
    ];

    [Fact]
    public void Whatever_is_read_is_said_again_as_the_same()
    {
        Random random = new(11);
        int read = 0;
        for (int i = 0; i < Inputs; i++)
        {
            string value = Change(_honest[random.Next(_honest.Length)], random);
            read += SaysTheSame(value, Offer.Parse) + SaysTheSame(value, ChannelMessage.Parse) + SaysTheSame(value, Introduction.Parse);
            if (QuiesceRequest.Parse(value) is { } request)
            {
                Assert.Equal(request, QuiesceRequest.Parse(request.ToString()));
                read++;
            }

            if (ChannelKey.ParseNode(value) is { } key)
            {
                Assert.Equal(key, ChannelKey.ParseNode(key.NodeName));
                read++;
            }

            if (AddressList.Parse(value) is { } networks)
            {
                Assert.True(networks.Count <= AddressList.Most + 1, value);
                Assert.All(networks, n => Assert.InRange(n.Bits, 0, 8 * n.Address.GetAddressBytes().Length));
            }

            if (AddressList.Canonical(value) is { } canonical)
            {
                Assert.Equal(canonical, AddressList.Canonical(canonical));
            }

            if (ChannelMessage.Parse(value) is { } message)
            {
                Assert.True(message.Reason.Length <= ChannelMessage.LongestReason && message.Reason.All(c => c is >= ' ' and <= '~'), value);
            }
        }

        Assert.True(read > Inputs / 20, $"{read} of {Inputs} values are anything at all: the changes are too wild");
    }

    private static int SaysTheSame<T>(string value, Func<string?, T?> parse)
        where T : struct
    {
        if (parse(value) is not { } first)
        {
            return 0;
        }

        // By its words: the features of version 0, which nobody speaks, are not among them.
        Assert.Equal(first.ToString(), parse(first.ToString())?.ToString());
        return 1;
    }

    private static string Change(string value, Random random)
    {
        for (int changes = random.Next(4); changes > 0; changes--)
        {
            int at = random.Next(value.Length + 1);
            int end = random.Next(at, value.Length + 1);
            value = random.Next(6) switch
            {
                0 => value[..at] + value[end..],
                1 => value.Insert(at, _pieces[random.Next(_pieces.Length)]),
                2 => value[..at] + _pieces[random.Next(_pieces.Length)] + value[end..],
                3 => value[..at] + (char)random.Next(0x80) + value[Math.Min(at + 1, value.Length)..],
                4 => value + value[at..end],
                _ => value[..at] + _honest[random.Next(_honest.Length)],
            };
        }

        return value.Length > LongestValue ? value[..LongestValue] : value;
    }
}
