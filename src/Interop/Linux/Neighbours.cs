using System.Net;
using System.Runtime.InteropServices;

namespace XenLoop.Interop.Linux;

/// <summary>struct ndmsg of linux/neighbour.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct NeighbourHeader
{
    public byte Family;
    private readonly byte _pad1;
    private readonly ushort _pad2;
    public int InterfaceIndex;
    public ushort State;
    public byte Flags;
    public byte Type;
}

/// <summary>The kernel's table of who has which IP address: ARP and neighbour discovery.</summary>
internal static class Neighbours
{
    private const ushort RTM_NEWNEIGH = 28;
    private const ushort RTM_GETNEIGH = 30;
    private const ushort NDA_DST = 1;
    private const ushort NDA_LLADDR = 2;
    private const ushort NUD_INCOMPLETE = 0x01;
    private const ushort NUD_FAILED = 0x20;
    private const ushort NUD_NOARP = 0x40;

    /// <summary>The addresses of each neighbour, on all interfaces of this network namespace; those of IPv4 first, link-local ones last.</summary>
    /// <exception cref="NativeException">The kernel does not tell.</exception>
    public static Dictionary<MacAddress, List<IPAddress>> List()
    {
        Dictionary<MacAddress, List<IPAddress>> neighbours = [];
        using NetlinkSocket socket = new();
        NetlinkMessage message = socket.Begin(RTM_GETNEIGH, NetlinkFlags.NLM_F_DUMP);
        message.Append(default(NeighbourHeader));
        socket.Request(message, "RTM_GETNEIGH", "all neighbours", (type, payload) =>
        {
            if (type == RTM_NEWNEIGH && Read(payload) is var (mac, address))
            {
                if (!neighbours.TryGetValue(mac, out List<IPAddress>? addresses))
                {
                    neighbours[mac] = addresses = [];
                }

                addresses.Add(address);
            }
        });
        foreach (List<IPAddress> addresses in neighbours.Values)
        {
            addresses.Sort((a, b) => Rank(a).CompareTo(Rank(b)));
        }

        return neighbours;
    }

    private static int Rank(IPAddress address) => address.IsIPv6LinkLocal ? 2 : address.GetAddressBytes().Length == 4 ? 0 : 1;

    internal static (MacAddress Mac, IPAddress Address)? Read(ReadOnlySpan<byte> payload)
    {
        IPAddress? address = null;
        MacAddress? mac = null;
        NetlinkAttributes attributes = NetlinkAttributes.Behind(payload, out NeighbourHeader header);
        while (attributes.MoveNext())
        {
            switch (attributes.Type)
            {
                case NDA_DST when attributes.Data.Length is 4 or 16:
                    address = new IPAddress(attributes.Data);
                    break;
                case NDA_LLADDR when attributes.Data.Length == MacAddress.Length:
                    mac = MacAddress.Read(attributes.Data);
                    break;
            }
        }

        if (address is { IsIPv6LinkLocal: true })
        {
            // Only with the interface it is an address that something can be sent to.
            address.ScopeId = (uint)header.InterfaceIndex;
        }

        return (header.State & (NUD_INCOMPLETE | NUD_FAILED | NUD_NOARP)) == 0 && address is not null && mac is { } known ? (known, address) : null;
    }
}
