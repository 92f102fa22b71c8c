using System.Runtime.InteropServices;
using System.Text;
using Tmds.Linux;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>What an interface does for the network layer when it transmits.</summary>
[Flags]
internal enum LinkFeatures
{
    None = 0,

    /// <summary>Fills in checksums.</summary>
    Checksum = 1,

    /// <summary>Cuts TCP super-packets over IPv4.</summary>
    Tso4 = 2,

    /// <summary>Cuts TCP super-packets over IPv6.</summary>
    Tso6 = 4,

    /// <summary>Cuts TCP super-packets with the CWR flag.</summary>
    TsoEcn = 8,

    /// <summary>Cuts UDP super-packets.</summary>
    Uso = 16,
}

/// <summary>ioctl(SIOCETHTOOL), as ethtool(8) uses it.</summary>
internal static unsafe class Ethtool
{
    private const int SIOCETHTOOL = 0x8946;
    private const uint ETHTOOL_GSTRINGS = 0x1b;
    private const uint ETHTOOL_GSSET_INFO = 0x37;
    private const uint ETHTOOL_GFEATURES = 0x3a;
    private const uint ETH_SS_FEATURES = 4;
    private const int ETH_GSTRING_LEN = 32;
    // 64 of them in Linux 6.18.
    private const int MostFeatures = 256;

    // The kernel numbers them as it likes, for as long as it runs.
    private static LinkFeatures[]? _meanings;

    /// <summary>What the interface could do, and does not because somebody has switched it off. What it cannot do counts as nobody's will.</summary>
    /// <param name="socket">Any socket of the interface's namespace.</param>
    /// <param name="name">Of the interface.</param>
    /// <exception cref="NativeException">There is no such interface.</exception>
    public static LinkFeatures FeaturesSwitchedOff(int socket, string name)
    {
        _meanings ??= ReadMeanings(socket, name);
        int blocks = (_meanings.Length + 31) / 32;
        features_block* block = stackalloc features_block[(MostFeatures / 32) + 1];
        // struct ethtool_gfeatures: cmd and size, then the blocks.
        uint* request = (uint*)block;
        request[0] = ETHTOOL_GFEATURES;
        request[1] = (uint)blocks;
        Call(socket, name, request, "ETHTOOL_GFEATURES");
        features_block* features = (features_block*)(request + 2);
        LinkFeatures off = LinkFeatures.None;
        for (int i = 0; i < _meanings.Length; i++)
        {
            uint missing = features[i / 32].available & ~features[i / 32].active;
            if ((missing & (1u << (i % 32))) != 0)
            {
                off |= _meanings[i];
            }
        }
        return off;
    }

    private static LinkFeatures[] ReadMeanings(int socket, string name)
    {
        // struct ethtool_sset_info: cmd, reserved, sset_mask (8 bytes), then one number for each set that was asked for.
        uint* info = stackalloc uint[5] { ETHTOOL_GSSET_INFO, 0, 1u << (int)ETH_SS_FEATURES, 0, 0 };
        Call(socket, name, info, "ETHTOOL_GSSET_INFO");
        int count = Math.Min((int)info[4], MostFeatures);
        // struct ethtool_gstrings: cmd, string_set, len, then the strings.
        uint[] strings = new uint[3 + (count * ETH_GSTRING_LEN / sizeof(uint))];
        (strings[0], strings[1], strings[2]) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, (uint)count);
        fixed (uint* pointer = strings)
        {
            Call(socket, name, pointer, "ETHTOOL_GSTRINGS");
        }

        LinkFeatures[] meanings = new LinkFeatures[count];
        ReadOnlySpan<byte> text = MemoryMarshal.AsBytes(strings.AsSpan(3));
        for (int i = 0; i < count; i++)
        {
            meanings[i] = Meaning(text.Slice(i * ETH_GSTRING_LEN, ETH_GSTRING_LEN).TrimEnd((byte)0));
        }
        return meanings;
    }

    private static LinkFeatures Meaning(ReadOnlySpan<byte> name) =>
        name.SequenceEqual("tx-checksum-ipv4"u8) || name.SequenceEqual("tx-checksum-ip-generic"u8) || name.SequenceEqual("tx-checksum-ipv6"u8)
            ? LinkFeatures.Checksum
        : name.SequenceEqual("tx-tcp-segmentation"u8) ? LinkFeatures.Tso4
        : name.SequenceEqual("tx-tcp6-segmentation"u8) ? LinkFeatures.Tso6
        : name.SequenceEqual("tx-tcp-ecn-segmentation"u8) ? LinkFeatures.TsoEcn
        : name.SequenceEqual("tx-udp-segmentation"u8) ? LinkFeatures.Uso
        : LinkFeatures.None;

    private static void Call(int socket, string name, void* data, string command)
    {
        ifreq_data request = new() { ifr_data = data };
        if (!Encoding.ASCII.TryGetBytes(name, new Span<byte>(request.ifr_name, TapDevice.IFNAMSIZ - 1), out _))
        {
            throw new NativeException($"ioctl({command})", name, ENODEV);
        }
        if (LibC.ioctl(socket, SIOCETHTOOL, &request) < 0)
        {
            throw new NativeException($"ioctl({command})", name, LibC.errno);
        }
    }

    /// <summary>struct ethtool_get_features_block of linux/ethtool.h.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct features_block
    {
        public uint available;
        public uint requested;
        public uint active;
        public uint never_changed;
    }

    /// <summary>struct ifreq of linux/if.h with ifr_data.</summary>
    [StructLayout(LayoutKind.Sequential)]
    internal struct ifreq_data
    {
        public fixed byte ifr_name[TapDevice.IFNAMSIZ];
        public void* ifr_data;
        private readonly ulong _rest;
    }
}
