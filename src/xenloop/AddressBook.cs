using System.Net;
using XenLoop.Interop;
using XenLoop.Interop.Linux;

namespace XenLoop.Command;

/// <summary>What this machine knows of who is behind a MAC address: IP addresses of the kernel's neighbour table, names of /etc/hosts. Nobody is asked.</summary>
/// <param name="neighbours">See <see cref="Neighbours.List"/>.</param>
/// <param name="hosts">The text of /etc/hosts.</param>
internal sealed class AddressBook(IReadOnlyDictionary<MacAddress, List<IPAddress>> neighbours, string hosts)
{
    private const string HostsFile = "/etc/hosts";

    private readonly Dictionary<IPAddress, string> _names = ReadNames(hosts);

    public static AddressBook Read()
    {
        Dictionary<MacAddress, List<IPAddress>> neighbours = [];
        try
        {
            neighbours = Neighbours.List();
        }
        catch (NativeException)
        {
            // Nothing is known then, and everything else can still be told.
        }

        return new(neighbours, Machine.ReadOrEmpty(HostsFile));
    }

    /// <summary>The best of its addresses; null where none is known.</summary>
    public IPAddress? Address(string? mac) => All(mac).FirstOrDefault();

    /// <summary>The name of one of its addresses; empty where none is known.</summary>
    public string Name(string? mac)
    {
        foreach (IPAddress address in All(mac))
        {
            if (_names.TryGetValue(address, out string? name))
            {
                return name;
            }
        }

        return "";
    }

    private List<IPAddress> All(string? mac) =>
        MacAddress.TryParse(mac ?? "", out MacAddress key) && neighbours.TryGetValue(key, out List<IPAddress>? addresses) ? addresses : [];

    private static Dictionary<IPAddress, string> ReadNames(string hosts)
    {
        Dictionary<IPAddress, string> names = [];
        foreach (string line in hosts.Split('\n'))
        {
            string[] words = line.Split('#')[0].Split((char[]?)null, StringSplitOptions.RemoveEmptyEntries);
            if (words.Length > 1 && IPAddress.TryParse(words[0], out IPAddress? address))
            {
                names.TryAdd(address, words[1]);
            }
        }

        return names;
    }
}
