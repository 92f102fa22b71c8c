using System.Globalization;
using XenLoop.Interop.Xen;

namespace XenLoop.Lab;

/// <summary>
/// What libxl writes into XenStore and removes (libxl_create.c, libxl_device.c, libxl_nic.c of Xen 4.17), as far as
/// programs of guests and Dom0 look at it. What must be seen at once, as libxl's transactions are, is
/// <see cref="XenStoreServer.Atomically"/>.
/// </summary>
internal static class LabNodes
{
    /// <summary>"pv", "pvh" or "hvm".</summary>
    public static string TypeNode(LabGuest guest) => $"{guest.Libxl}/type";

    public static void Write(XenStoreServer store, LabGuest guest)
    {
        (ushort, XenStoreAccess)[] readOnly = [(0, XenStoreAccess.None), (guest.Domid, XenStoreAccess.Read)];
        (ushort, XenStoreAccess)[] own = [(guest.Domid, XenStoreAccess.None)];

        store.Write(guest.Home, "", readOnly);
        store.Write($"{guest.Home}/vm", $"/vm/{guest.Uuid}");
        store.Write($"{guest.Home}/name", guest.Name);
        store.Write($"{guest.Home}/domid", Text(guest.Domid));
        store.Write($"{guest.Home}/control", "", readOnly);
        foreach (string area in new[] { "control/shutdown", "device/suspend/event-channel", "data", "drivers", "feature", "attr", "error" })
        {
            store.Write($"{guest.Home}/{area}", "", own);
        }

        store.Write($"/vm/{guest.Uuid}", "", readOnly);
        store.Write($"/vm/{guest.Uuid}/uuid", guest.Uuid.ToString());
        store.Write($"/vm/{guest.Uuid}/name", guest.Name);
        store.Write(guest.Libxl, "", (0, XenStoreAccess.None));
        store.Write(TypeNode(guest), "pvh");
    }

    /// <summary>A new vif, not connected yet.</summary>
    public static void Write(XenStoreServer store, LabVif vif)
    {
        ushort guest = vif.Guest.Domid, backend = vif.BackendDomain.Domid;
        (ushort, XenStoreAccess)[] guests = [(guest, XenStoreAccess.None), (backend, XenStoreAccess.Read)];
        (ushort, XenStoreAccess)[] backends = [(backend, XenStoreAccess.None), (guest, XenStoreAccess.Read)];
        string index = Text(vif.Index);
        List<(string, string)> nodes =
        [
            ("frontend-id", Text(guest)), ("online", "1"), ("state", "1"), ("script", "/etc/xen/scripts/vif-bridge"), ("mac", vif.MacText),
        ];
        if (vif.Vlan is { } vlan)
        {
            // From libxl 4.20 on.
            nodes.Add(("vlan", Text(vlan)));
        }

        nodes.AddRange([("bridge", vif.Bridge), ("handle", index), ("type", "vif"), ("hotplug-status", "")]);

        store.Write($"{vif.Libxl}/frontend", vif.Frontend);
        store.Write($"{vif.Libxl}/backend", vif.Backend);

        store.Write(vif.Frontend, "", guests);
        WriteAll(store, vif.Frontend,
            [("backend", vif.Backend), ("backend-id", Text(backend)), ("state", "1"), ("handle", index), ("mac", vif.MacText), ("trusted", "1")]);
        store.Write($"{vif.Frontend}/mtu", "1500", backends);

        store.Write(vif.Backend, "", backends);
        store.Write($"{vif.Backend}/frontend", vif.Frontend);
        WriteAll(store, vif.Backend, nodes);

        // The copy of all of it is written once: its state stays 1.
        WriteAll(store, vif.Libxl, nodes);
    }

    /// <summary>The backend has made its interface and waits for the frontend.</summary>
    public static void Offer(XenStoreServer store, LabVif vif) => store.Write($"{vif.Backend}/state", "2");

    /// <summary>The hotplug script has put the interface on its bridge, and both ends are connected.</summary>
    public static void Connect(XenStoreServer store, LabVif vif)
    {
        store.Write($"{vif.Backend}/hotplug-status", "connected");
        store.Write($"{vif.Frontend}/state", "4");
        store.Write($"{vif.Backend}/state", "4");
    }

    /// <summary>The backend is to close.</summary>
    public static void Close(XenStoreServer store, LabVif vif)
    {
        store.Write($"{vif.Backend}/online", "0");
        store.Write($"{vif.Backend}/state", "5");
    }

    /// <summary>Both ends have closed.</summary>
    public static void Closed(XenStoreServer store, LabVif vif)
    {
        store.Write($"{vif.Frontend}/state", "6");
        store.Write($"{vif.Backend}/state", "6");
    }

    public static void Remove(XenStoreServer store, LabVif vif)
    {
        store.CleanUp(vif.Frontend);
        store.CleanUp(vif.Libxl);
        store.CleanUp(vif.Backend);
    }

    public static void Remove(XenStoreServer store, LabGuest guest)
    {
        foreach (LabVif vif in guest.Vifs)
        {
            Remove(store, vif);
        }

        store.Remove(guest.Libxl);
        store.Remove($"/vm/{guest.Uuid}");
        store.Remove(guest.Home);
    }

    private static void WriteAll(XenStoreServer store, string area, IEnumerable<(string Node, string Value)> nodes)
    {
        foreach ((string node, string value) in nodes)
        {
            store.Write($"{area}/{node}", value);
        }
    }

    private static string Text(int number) => number.ToString(CultureInfo.InvariantCulture);
}
