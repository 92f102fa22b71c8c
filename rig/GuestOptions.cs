namespace XenLoop.Rig;

/// <summary>How Xen runs a guest.</summary>
public enum GuestKind
{
    /// <summary>With hardware virtualization (emulated here), without emulated devices.</summary>
    Pvh,

    /// <summary>Paravirtualized.</summary>
    Pv,
}

/// <summary>A network interface of a guest, <c>eth0</c> being the first.</summary>
/// <param name="Bridge">The bridge in Dom0, whose name ends with a digit; made if it does not exist. Each has its own network:
/// 10.77 and fd77 on xenbr0, 10.78 and fd78 on xenbr1 and so on.</param>
/// <param name="Mac">The MAC address; chosen if null.</param>
public sealed record GuestVif(string Bridge = "xenbr0", string? Mac = null)
{
    private int Network => 77 + (Bridge[^1] - '0');

    internal string Ipv4(int guest) => $"10.{Network}.0.{10 + guest}";

    internal string Ipv6(int guest) => $"fd{Network}::{10 + guest}";
}

/// <summary>How to create a <see cref="XenGuest"/>.</summary>
public sealed record GuestOptions
{
    /// <summary>Its name, unique on the host: letters, digits and dashes.</summary>
    public required string Name { get; init; }

    /// <summary>How Xen runs it.</summary>
    public GuestKind Kind { get; init; } = GuestKind.Pvh;

    /// <summary>Its virtual processors.</summary>
    public int Vcpus { get; init; } = 1;

    /// <summary>Its memory. With half of it TCP has smaller buffers and is slower.</summary>
    public int MemoryMiB { get; init; } = 512;

    /// <summary>Its network interfaces. A further one, <c>control</c>, on a bridge of its own, is the rig's.</summary>
    public IReadOnlyList<GuestVif> Vifs { get; init; } = [new GuestVif()];

    /// <summary>Whether its first process is systemd, and dpkg can install packages. All that writes to a log writes to the console.</summary>
    public bool Systemd { get; init; }

    /// <summary>More arguments for its kernel.</summary>
    public string KernelArguments { get; init; } = "";

    /// <summary>More lines for its xl configuration.</summary>
    public string XlLines { get; init; } = "";

    /// <summary>How long it may take to boot.</summary>
    public TimeSpan BootTimeout { get; init; } = TimeSpan.FromMinutes(5);
}
