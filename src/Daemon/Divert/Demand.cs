using System.Runtime.InteropServices;

namespace XenLoop.Divert;

/// <summary>The program's report: a neighbour that is not connected got its rate of packets. At most one a second for each.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct Demand
{
    public const int Size = 16;

    /// <summary>The destination, as <see cref="Interop.Linux.MacAddress.Bits"/>.</summary>
    public ulong Address { get; init; }

    /// <summary>The number given to <see cref="VifDivert.Attach"/>.</summary>
    public int Vif { get; init; }

    /// <summary>Packets in the last second of traffic before this one; 0 at the first report.</summary>
    public uint PacketsBefore { get; init; }
}
