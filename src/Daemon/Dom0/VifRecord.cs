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
internal readonly record struct VifRecord(int Vif, MacAddress Mac, ushort Backend, string Interface, string? Bridge)
{
    /// <summary>
    /// What tells one L2 segment from another; null while the vif is on none. Of a backend in Dom0 the kernel knows the truth,
    /// also when an administrator has moved the vif by hand; of Open vSwitch and of driver domains, XenStore has to.
    /// </summary>
    /// <param name="masters">Dom0's, by interface.</param>
    public string? Segment(Dictionary<string, LinkMaster> masters)
    {
        if (Backend != 0)
        {
            return Bridge is null ? null : $"{Backend}/{Bridge}";
        }

        return !masters.TryGetValue(Interface, out LinkMaster master) ? null
            : master.IsBridge ? (master.Pvid <= 1 ? $"0/{master.Name}" : $"0/{master.Name}.{master.Pvid}")
            : Bridge is null ? null : $"0/{Bridge}";
    }

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

            string? bridge = xenStore.Read($"{area}/bridge") ?? xenStore.Read(StorePaths.XapiBridge(uuid, vif));
            if (bridge is { Length: > 0 } && xenStore.Read($"{area}/vlan") is { Length: > 0 } vlan)
            {
                bridge = $"{bridge}.{vlan}";
            }

            string? given = xenStore.Read($"{area}/vifname");
            vifs[vif] = new VifRecord(vif, mac, backend, given is { Length: > 0 } ? given : $"vif{domid}.{vif}", bridge is { Length: > 0 } ? bridge : null);
        }
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
