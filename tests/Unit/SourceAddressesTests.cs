using System.Buffers.Binary;
using System.Net;
using XenLoop.DataPath;
using XenLoop.Interop.Linux;
using XenLoop.Protocol;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The addresses that a peer may use: as they are told, and as frames are held against them.</summary>
public sealed class SourceAddressesTests
{
    private static readonly MacAddress _a = MacAddress.Parse("00:16:3e:00:00:01"), _b = MacAddress.Parse("00:16:3e:00:00:02");

    [Theory]
    [InlineData("10.0.0.5", "10.0.0.5", true)]
    [InlineData("10.0.0.5", "10.0.0.6", false)]
    [InlineData("10.0.0.5", "0.0.0.0", false)]
    [InlineData("10.0.1.0/24", "10.0.1.200", true)]
    [InlineData("10.0.1.0/24", "10.0.2.1", false)]
    [InlineData("0.0.0.0/0", "1.2.3.4", true)]
    [InlineData("fd00::5", "10.0.0.5", false)]
    [InlineData("fd00::5", "fd00::5", true)]
    [InlineData("fd00::5", "fd00::6", false)]
    [InlineData("fd00::/64", "fd00::ffff", true)]
    [InlineData("fd00::/64", "fd01::1", false)]
    [InlineData("::/0", "fe80::1", true)]
    [InlineData("10.0.0.5", "fd00::5", false)]
    [InlineData("10.0.0.5", "::ffff:10.0.0.5", false)]
    public void Packets(string list, string source, bool permitted)
    {
        IPAddress address = IPAddress.Parse(source);
        byte[] packet = address.AddressFamily == System.Net.Sockets.AddressFamily.InterNetwork ? IPv4(address) : IPv6(address, 17, new byte[8]);
        Assert.Equal(permitted, Of(list).Permit(packet));
    }

    [Theory]
    [InlineData("10.0.0.5", "10.0.0.5", true)]
    [InlineData("10.0.0.5", "10.0.0.6", false)]
    [InlineData("10.0.0.5", "0.0.0.0", true)]
    [InlineData("fd00::5", "10.0.0.5", false)]
    public void Arp(string list, string sender, bool permitted)
    {
        byte[] arp = new byte[28];
        IPAddress.Parse(sender).GetAddressBytes().CopyTo(arp, 14);
        Assert.Equal(permitted, Of(list).Permit(Frame.Ethernet(_b, _a, 0x0806, arp)));
    }

    [Theory]
    [InlineData("fd00::5", 136, true)]
    [InlineData("fd00::6", 136, false)]
    [InlineData("fd00::6", 135, true)]
    public void A_neighbours_advertisement_is_of_an_address_of_its_own(string target, byte type, bool permitted)
    {
        byte[] message = new byte[24];
        message[0] = type;
        IPAddress.Parse(target).GetAddressBytes().CopyTo(message, 8);
        Assert.Equal(permitted, Of("fd00::5").Permit(IPv6(IPAddress.Parse("fd00::5"), 58, message)));
        // Behind options, too.
        byte[] options = [58, 0, 1, 4, 0, 0, 0, 0, .. message];
        Assert.Equal(permitted, Of("fd00::5").Permit(IPv6(IPAddress.Parse("fd00::5"), 60, options)));
        Assert.Equal(permitted, Of("fd00::5").Permit(IPv6(IPAddress.Parse("fd00::5"), 0, options)));
        // Deeper than is looked: nobody can tell.
        byte[] deep = [58, 20, .. new byte[(21 * 8) - 2], .. message];
        Assert.False(Of("fd00::5").Permit(IPv6(IPAddress.Parse("fd00::5"), 60, deep).AsSpan(0, SourceAddresses.HeaderBytes)));
        // Cut short.
        Assert.Equal(type != 136, Of("fd00::5").Permit(IPv6(IPAddress.Parse("fd00::5"), 58, message.AsSpan(0, 20).ToArray())));
    }

    [Fact]
    public void Other_protocols_pass_if_they_may()
    {
        byte[] frame = Frame.Ethernet(_b, _a, 0x88b5, new byte[46]);
        Assert.False(Of("10.0.0.5").Permit(frame));
        Assert.True(Of("10.0.0.5,other").Permit(frame));
    }

    /// <summary>The length is the peer's word.</summary>
    [Fact]
    public void No_length_reaches_beyond_the_frame()
    {
        foreach (ushort type in new ushort[] { 0x0800, 0x0806, 0x86dd })
        {
            byte[] whole = Frame.Ethernet(_b, _a, type, new byte[100]);
            whole[14 + 6] = 17;
            SourceAddresses list = Of("0.0.0.0/0,::/0");
            for (int length = 0; length <= whole.Length; length++)
            {
                Assert.Equal(length >= 14 + (type == 0x0800 ? 20 : type == 0x0806 ? 28 : 40), list.Permit(whole.AsSpan(0, length)));
            }
        }

        Random random = new(Seed: 5);
        byte[] bytes = new byte[SourceAddresses.HeaderBytes];
        for (int i = 0; i < 100_000; i++)
        {
            random.NextBytes(bytes);
            (bytes[12], bytes[13]) = (0x86, 0xdd);
            bytes[20] = (byte)(random.Next(2) == 0 ? 0 : 60);
            _ = Of("::/0").Permit(bytes.AsSpan(0, random.Next(bytes.Length)));
        }
    }

    [Theory]
    [InlineData("00:16:3e:00:00:01 1 1", null, 0UL, 1500)]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc", null, 0xabcUL, 1500)]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc from=10.0.0.1,::/0,other", "10.0.0.1,::/0,other", 0xabcUL, 1500)]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000000 from=10.0.0.1", "10.0.0.1", 0UL, 1500)]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000000 to=9000", null, 0UL, 9000)]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc from=10.0.0.1 to=1400", "10.0.0.1", 0xabcUL, 1400)]
    public void An_introduction_says_what_it_was_told(string text, string? sources, ulong call, int mtu)
    {
        Introduction introduction = Introduction.Parse(text)!.Value;
        Assert.Equal((sources, call, mtu), (introduction.Sources, introduction.Call, introduction.Mtu));
        Assert.Equal(text, introduction.ToString());
    }

    [Theory]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc from=")]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc from=10.0.0.1,")]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc from=10.0.0.1/64")]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc from=10.0.0.1 more")]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc to=10.0.0.1")]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc to=-1")]
    [InlineData("00:16:3e:00:00:01 1 1 0000000000000abc to=1500 from=10.0.0.1")]
    [InlineData("00:16:3e:00:00:01 1 1 to=1400")]
    [InlineData("00:16:3e:00:00:01 1 1 from=10.0.0.1")]
    public void An_introduction_with_a_restriction_that_cannot_be_read_is_none(string text) => Assert.Null(Introduction.Parse(text));

    [Fact]
    public void A_list_has_an_end()
    {
        string full = string.Join(',', Enumerable.Range(0, AddressList.Most).Select(i => $"10.0.0.{i}"));
        Assert.NotNull(AddressList.Parse($"{full},other"));
        Assert.Null(AddressList.Parse($"{full},10.1.0.0,10.1.0.1"));
        // It fits into XenStore.
        string longest = string.Join(',', Enumerable.Repeat("1111:2222:3333:4444:5555:6666:7777:8888/127", AddressList.Most).Append("other"));
        Assert.InRange(new Introduction(_a, new Offer(1, Features.Uso), ulong.MaxValue, longest).ToString().Length, 1000, 2015);
    }

    private static SourceAddresses Of(string list) => new(
        [.. AddressList.Parse(list)!.Select(n => n.Address)], [.. AddressList.Parse(list)!.Select(n => n.Bits)], list.Split(',').Contains(AddressList.Other));

    private static byte[] IPv4(IPAddress source)
    {
        byte[] packet = new byte[28];
        packet[0] = 0x45;
        source.GetAddressBytes().CopyTo(packet, 12);
        return Frame.Ethernet(_b, _a, 0x0800, packet);
    }

    private static byte[] IPv6(IPAddress source, byte next, byte[] payload)
    {
        byte[] packet = new byte[40 + payload.Length];
        packet[0] = 0x60;
        BinaryPrimitives.WriteUInt16BigEndian(packet.AsSpan(4), (ushort)payload.Length);
        packet[6] = next;
        source.GetAddressBytes().CopyTo(packet, 8);
        payload.CopyTo(packet, 40);
        return Frame.Ethernet(_b, _a, 0x86dd, packet);
    }
}
