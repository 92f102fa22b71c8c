using System.Globalization;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;

namespace XenLoop.Dom0;

/// <summary>
/// A vif as the toolstack and its backend describe it. None of this the guest can write: XenStore's backend area belongs
/// to the domain that runs netback, and the toolstack's own areas to Dom0.
/// </summary>
/// <param name="Vif">Its number in the guest.</param>
/// <param name="Mac">As the toolstack gave it.</param>
/// <param name="Backend">The domain that runs netback.</param>
/// <param name="Interface">The backend's interface.</param>
/// <param name="Bridge">As configured, with whatever the toolstack writes of VLANs; null when there is none (routed, NAT).</param>
internal sealed record VifRecord(int Vif, MacAddress Mac, ushort Backend, string Interface, string? Bridge)
{
    /// <summary>Netback lets through so many bytes in so many microseconds; null for as many as there are.</summary>
    public string? Rate { get; init; }

    /// <summary>The addresses that the toolstack lets the vif use, see <see cref="AddressList"/>; null for all.</summary>
    public string? Sources { get; init; }

    /// <summary>What the toolstack has forbidden the vif that no introduction can carry, in words; null for nothing.</summary>
    public string? Forbidden { get; init; }

    /// <summary>
    /// What tells one L2 segment from another; null while the vif is on none. Of a backend in Dom0 the kernel knows the truth,
    /// also when an administrator has moved the vif by hand; of Open vSwitch and of driver domains, XenStore has to.
    /// </summary>
    /// <param name="ports">Dom0's, by interface.</param>
    public string? Segment(Dictionary<string, SwitchPort> ports)
    {
        if (Backend != 0)
        {
            return Bridge is null ? null : $"{Backend}/{Bridge}";
        }

        return !ports.TryGetValue(Interface, out SwitchPort? port) ? null
            : port.IsBridge ? (port.Pvid <= 1 ? $"0/{port.Master}" : $"0/{port.Master}.{port.Pvid}")
            : Bridge is null ? null : $"0/{Bridge}";
    }

    /// <summary>Segment and MAC address; null while it is on no segment.</summary>
    /// <param name="ports">Dom0's, by interface.</param>
    public string? Label(Dictionary<string, SwitchPort> ports) => Segment(ports) is { } segment ? $"{segment} {Mac}" : null;

    /// <summary>The vifs of a guest, wherever their backends are.</summary>
    /// <param name="xenStore">Dom0's.</param>
    /// <param name="domid">The guest.</param>
    /// <param name="uuid">The guest's, by which XAPI files what it knows.</param>
    /// <param name="backends">Gets the backend domains besides Dom0.</param>
    public static VifRecord[] ReadAll(XenStore xenStore, ushort domid, string uuid, ICollection<ushort> backends)
    {
        SortedDictionary<int, VifRecord> vifs = [];
        // libxl's private area names the backend of each vif; XAPI has all of them in Dom0.
        foreach (string name in xenStore.List(StorePaths.LibxlVifs(domid)))
        {
            if (ChannelKey.ParseVif(name) is { } vif
                && ParseBackend(xenStore.Read($"{StorePaths.LibxlVifs(domid)}/{name}/backend"), domid, vif) is { } backend)
            {
                if (backend != 0)
                {
                    backends.Add(backend);
                }

                Add(vif, backend);
            }
        }

        foreach (string name in xenStore.List(StorePaths.BackendVifs(0, domid)))
        {
            if (ChannelKey.ParseVif(name) is { } vif && !vifs.ContainsKey(vif))
            {
                Add(vif, 0);
            }
        }

        return [.. vifs.Values];

        void Add(int vif, ushort backend)
        {
            string area = $"{StorePaths.BackendVifs(backend, domid)}/{vif}";
            if (!MacAddress.TryParse(xenStore.Read($"{area}/mac") ?? "", out MacAddress mac))
            {
                return;
            }

            string? bridge = xenStore.Read($"{area}/bridge") ?? Xapi("bridge");
            if (bridge is { Length: > 0 } && xenStore.Read($"{area}/vlan") is { Length: > 0 } vlan)
            {
                bridge = $"{bridge}.{vlan}";
            }

            string? given = xenStore.Read($"{area}/vifname");
            (string? sources, string? forbidden) = ReadSources(xenStore, area, Xapi);
            vifs[vif] = new VifRecord(vif, mac, backend, given is { Length: > 0 } ? given : $"vif{domid}.{vif}", bridge is { Length: > 0 } ? bridge : null)
            {
                Rate = xenStore.Read($"{area}/rate") is { Length: > 0 } rate ? rate : null,
                Sources = sources,
                Forbidden = forbidden,
            };

            // A domain that comes or goes may have no UUID, and then has no area there.
            string? Xapi(string node) => uuid.Length > 0 ? xenStore.Read($"{StorePaths.XapiVif(uuid, vif)}/{node}") : null;
        }
    }

    /// <summary>What the toolstack says of a vif's addresses: <c>ip=</c> of xl's, of which its script makes filters of IPv4, or XAPI's locking mode.</summary>
    /// <param name="xenStore">Dom0's.</param>
    /// <param name="backend">The vif's area in its backend domain.</param>
    /// <param name="xapi">Reads a node of XAPI's own area of the vif.</param>
    private static (string? Sources, string? Forbidden) ReadSources(XenStore xenStore, string backend, Func<string, string?> xapi)
    {
        string? mode = xapi("locking-mode");
        return mode is "locked" or "disabled"
            ? Locked(mode, xapi("ipv4-allowed"), xapi("ipv6-allowed"))
            : Ip(xenStore.Read($"{backend}/ip"));
    }

    /// <summary>See <see cref="ReadSources"/>. A family of which nothing is said is not filtered.</summary>
    internal static (string? Sources, string? Forbidden) Ip(string? addresses)
    {
        string[] words = addresses?.Split([' ', ','], StringSplitOptions.RemoveEmptyEntries) ?? [];
        if (words.Length == 0)
        {
            return (null, null);
        }

        List<string> networks = [];
        bool ipv4 = false, ipv6 = false;
        foreach (string word in words)
        {
            if (AddressList.Canonical(word) is not { } network)
            {
                return (null, $"ip= with \"{word}\", which is no address");
            }

            networks.Add(network);
            ipv6 |= network.Contains(':', StringComparison.Ordinal);
            ipv4 |= !network.Contains(':', StringComparison.Ordinal);
        }

        if (!ipv4)
        {
            networks.Add(AddressList.AnyIPv4);
        }

        if (!ipv6)
        {
            networks.Add(AddressList.AnyIPv6);
        }

        return networks.Count > AddressList.Most
            ? (null, $"ip= with more than {AddressList.Most - 1} addresses")
            : (string.Join(',', [.. networks, AddressList.Other]), null);
    }

    /// <summary>See <see cref="ReadSources"/>. What is not allowed is forbidden.</summary>
    internal static (string? Sources, string? Forbidden) Locked(string mode, string? ipv4, string? ipv6)
    {
        string?[] networks = [.. $"{ipv4},{ipv6}".Split([',', ' '], StringSplitOptions.RemoveEmptyEntries).Select(AddressList.Canonical)];
        return mode == "disabled" || networks.Length == 0 ? (null, "the locking mode of the vif lets nothing through")
            : networks.Length > AddressList.Most || networks.Contains(null) ? (null, "the locking mode of the vif has addresses that cannot be carried over")
            : (string.Join(',', networks), null);
    }

    /// <summary>The domain in <c>/local/domain/B/backend/vif/D/V</c>.</summary>
    private static ushort? ParseBackend(string? path, ushort domid, int vif)
    {
        string[] names = path?.Split('/') ?? [];
        return names.Length > 3
            && ushort.TryParse(names[3], NumberStyles.None, CultureInfo.InvariantCulture, out ushort backend)
            && path == $"{StorePaths.BackendVifs(backend, domid)}/{vif}"
            ? backend
            : null;
    }
}
