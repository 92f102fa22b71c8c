using System.Buffers.Binary;
using XenLoop.DataPath;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Which frames somebody may wait for.</summary>
public sealed class FramesTests
{
    private const int Ip = Frames.HeaderBytes;

    [Theory]
    [InlineData(false, 20, 20, 0)]
    [InlineData(false, 20, 32, 0)]
    [InlineData(false, 60, 60, 0)]
    [InlineData(false, 20, 32, 1)]
    [InlineData(false, 24, 60, 14)]
    [InlineData(false, 20, 20, 8000)]
    [InlineData(true, 40, 20, 0)]
    [InlineData(true, 40, 60, 0)]
    [InlineData(true, 40, 32, 1)]
    [InlineData(true, 40, 32, 1400)]
    public void Of_TCP_those_with_data(bool ipv6, int ip, int tcp, int data)
    {
        byte[] frame = Tcp(ipv6, ip, tcp, data);
        Assert.Equal(data > 0, CarriesData(frame, frame.Length));
        // Short ones may be padded.
        byte[] padded = [.. frame, .. new byte[Math.Max(0, Ip + 46 - frame.Length)]];
        Assert.Equal(data > 0, CarriesData(padded, padded.Length));
    }

    [Fact]
    public void All_that_is_no_TCP()
    {
        byte[] udp = Tcp(ipv6: false, 20, 20, 0);
        udp[Ip + 9] = 17;
        Assert.True(CarriesData(udp, udp.Length));
        byte[] arp = Tcp(ipv6: false, 20, 20, 0);
        arp[Frames.EtherTypeOffset + 1] = 6;
        Assert.True(CarriesData(arp, arp.Length));
        Assert.True(CarriesData(new byte[Ip + 1], Ip + 1));
    }

    [Fact]
    public void Whatever_is_in_it_nothing_else_is_read()
    {
        Random random = new(1);
        for (int i = 0; i < 100_000; i++)
        {
            byte[] frame = Tcp(i % 2 == 0, i % 2 == 0 ? 40 : 20, 20, 0);
            byte[] cut = frame[..random.Next(Ip, frame.Length + 1)];
            random.NextBytes(cut.AsSpan(Ip, Math.Min(1, cut.Length - Ip)));
            _ = CarriesData(cut, cut.Length);
        }
    }

    private static bool CarriesData(ReadOnlySpan<byte> frame, int length) => Frames.CarriesData(frame[..Math.Min(length, Frames.MostWithoutData)], (uint)length);

    private static byte[] Tcp(bool ipv6, int ip, int tcp, int data)
    {
        byte[] frame = new byte[Ip + ip + tcp + data];
        BinaryPrimitives.WriteUInt16BigEndian(frame.AsSpan(Frames.EtherTypeOffset), (ushort)(ipv6 ? 0x86dd : 0x0800));
        frame[Ip] = (byte)(ipv6 ? 0x60 : 0x40 | (ip / 4));
        BinaryPrimitives.WriteUInt16BigEndian(frame.AsSpan(Ip + (ipv6 ? 4 : 2)), (ushort)(ipv6 ? tcp + data : ip + tcp + data));
        frame[Ip + (ipv6 ? 6 : 9)] = 6;
        frame[Ip + ip + 12] = (byte)(tcp / 4 << 4);
        return frame;
    }
}
