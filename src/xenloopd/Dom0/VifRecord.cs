using System.Globalization;
using XenLoop.Guest;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;

namespace XenLoop.Dom0;

/// <summary>
/// A vif as its backend describes it. The backend's area belongs to the domain that runs netback: what stands there
/// is the toolstack's word, not the guest's.
/// </summary>
internal readonly record struct VifRecord(int Vif, MacAddress Mac, string Segment)
{
    /// <summary>The vifs of a guest whose backend is Dom0; those with no bridge (routed, NAT) are left out.</summary>
    public static VifRecord[] ReadAll(XenStore xenStore, ushort domid)
    {
        List<VifRecord> vifs = [];
        string backend = $"/local/domain/0/backend/vif/{domid}";
        foreach (string name in xenStore.List(backend))
        {
            if (int.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out int vif)
                && MacAddress.TryParse(xenStore.Read($"{backend}/{name}/mac") ?? "", out MacAddress mac)
                && xenStore.Read($"{backend}/{name}/bridge") is { Length: > 0 } bridge)
            {
                vifs.Add(new VifRecord(vif, mac, $"0/{bridge}"));
            }
        }

        return [.. vifs];
    }
}

/// <summary>A guest as Dom0 knows it.</summary>
internal sealed class GuestRecord(ushort domid)
{
    public ushort Domid { get; } = domid;

    /// <summary>Null while the guest has no daemon, or one that says nothing sensible.</summary>
    public Offer? Offer { get; set; }

    public VifRecord[] Vifs { get; set; } = [];

    /// <summary>What stands in the guest's introductions: path below its home, and value.</summary>
    public Dictionary<string, string> Published { get; } = [];
}
