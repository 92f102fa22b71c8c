using System.Globalization;
using System.Net;
using System.Net.Sockets;

namespace XenLoop.Protocol;

/// <summary>
/// The source addresses that a vif may use: networks of IPv4 and IPv6, and whether it may send what is neither (docs/protocol.md). What is
/// not in it may not come from there.
/// </summary>
internal static class AddressList
{
    /// <summary>In the list: protocols other than IPv4, ARP and IPv6.</summary>
    public const string Other = "other";

    /// <summary>In the list: any address of IPv4.</summary>
    public const string AnyIPv4 = "0.0.0.0/0";

    /// <summary>In the list: any address of IPv6.</summary>
    public const string AnyIPv6 = "::/0";

    /// <summary>So many there can be, for an introduction to stay within what XenStore takes.</summary>
    public const int Most = 32;

    private const int IPv4Bits = 32, IPv6Bits = 128;

    /// <summary>One network in the words that an introduction has for it; null for anything else.</summary>
    /// <param name="text">An address, or one with the length of a prefix.</param>
    public static string? Canonical(string text) =>
        ParseNetwork(text) is { } network
            ? string.Create(CultureInfo.InvariantCulture, $"{network.Address}{(network.Bits == MaxBits(network.Address) ? "" : $"/{network.Bits}")}")
            : null;

    /// <summary>The entries of a list, <see cref="Other"/> left out; null for anything malformed.</summary>
    public static List<AddressNetwork>? Parse(string list)
    {
        string[] entries = list.Split(',');
        if (entries.Length > Most + 1)
        {
            return null;
        }

        List<AddressNetwork> networks = [];
        foreach (string entry in entries)
        {
            if (ParseNetwork(entry) is { } network)
            {
                networks.Add(network);
            }
            else if (entry != Other)
            {
                return null;
            }
        }

        return networks;
    }

    private static int MaxBits(IPAddress address) => address.AddressFamily == AddressFamily.InterNetwork ? IPv4Bits : IPv6Bits;

    private static AddressNetwork? ParseNetwork(string text)
    {
        string[] parts = text.Split('/');
        // The library also takes numbers, octal parts and scopes.
        if (parts.Length > 2 || !IPAddress.TryParse(parts[0], out IPAddress? address) || parts[0].Contains('%', StringComparison.Ordinal)
            || (address.AddressFamily == AddressFamily.InterNetwork && address.ToString() != parts[0]))
        {
            return null;
        }

        int bits = MaxBits(address);
        return parts.Length == 1 ? new AddressNetwork(address, bits)
            : int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out int given) && given <= bits ? new AddressNetwork(address, given)
            : null;
    }
}

/// <summary>A network of IPv4 or IPv6.</summary>
/// <param name="Address">One in it.</param>
/// <param name="Bits">Of the prefix.</param>
internal sealed record AddressNetwork(IPAddress Address, int Bits);
