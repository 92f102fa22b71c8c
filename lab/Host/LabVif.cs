using System.Globalization;
using System.Net;
using System.Net.NetworkInformation;

namespace XenLoop.Lab;

/// <summary>What a vif is to be, as in a line <c>vif = [...]</c> of xl's configuration.</summary>
/// <param name="Bridge">A bridge in the backend's domain, made if it is new.</param>
/// <param name="Mac">As <c>00:16:3e:xx:xx:xx</c>; else a new one.</param>
/// <param name="Vlan">The VLAN of the bridge's port, if the kernel's bridges know VLANs (<see cref="LabHost.HasVlans"/>); else the bridge's own.</param>
/// <param name="BackendDomain">The driver domain; else Dom0.</param>
internal sealed record LabVifOptions(
    string Bridge = LabHost.DefaultBridge, string? Mac = null, int? Vlan = null, LabDomain? BackendDomain = null);

/// <summary>A vif that is plugged in. Never changes: what changes a vif puts another in its place.</summary>
internal sealed record LabVif
{
    /// <summary>So many subnets there are: one for each index.</summary>
    public const int IndexMax = 21;

    private const int Subnet = 78;

    public required LabGuest Guest { get; init; }

    public required int Index { get; init; }

    public required PhysicalAddress Mac { get; init; }

    /// <summary>The bridge it is on. XenStore names the one it was plugged into.</summary>
    public required string Bridge { get; init; }

    /// <summary>The VLAN of its port; null is the bridge's own, 1.</summary>
    public required int? Vlan { get; init; }

    /// <summary>Dom0 or a driver domain.</summary>
    public required LabDomain BackendDomain { get; init; }

    /// <summary>The MAC as XenStore writes it: <c>00:16:3e:78:00:01</c>.</summary>
    public string MacText => string.Join(':', Mac.GetAddressBytes().Select(b => b.ToString("x2", CultureInfo.InvariantCulture)));

    /// <summary>Vifs of the same index are in one subnet.</summary>
    public IPAddress IPv4 => IPv4Of(Index, Host);

    public IPAddress IPv6 => IPv6Of(Index, Host);

    /// <summary>The link-local address, made from the MAC.</summary>
    public IPAddress LinkLocal
    {
        get
        {
            byte[] m = Mac.GetAddressBytes();
            return new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, (byte)(m[0] ^ 2), m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
        }
    }

    /// <summary>The interface in the guest.</summary>
    public string Interface => $"eth{Index}";

    /// <summary>The interface in the backend's domain.</summary>
    public string BackendInterface => $"vif{Guest.Domid}.{Index}";

    /// <summary>The frontend's area in XenStore, which the guest writes.</summary>
    public string Frontend => $"{Guest.Home}/device/vif/{Index}";

    /// <summary>The backend's area in XenStore, which the guest reads and does not write.</summary>
    public string Backend => $"/local/domain/{BackendDomain.Domid}/backend/vif/{Guest.Domid}/{Index}";

    /// <summary>libxl's own copy, in an area that neither the guest nor a driver domain reads or writes.</summary>
    public string Libxl => $"{Guest.Libxl}/device/vif/{Index}";

    private int Host => Guest.IPv4.GetAddressBytes()[3];

    public static IPAddress IPv4Of(int vif, int host) => new([10, (byte)(Subnet + vif), 0, (byte)host]);

    public static IPAddress IPv6Of(int vif, int host) => IPAddress.Parse($"fd{Subnet + vif}::{host:x}");
}
