using System.Runtime.InteropServices;

namespace XenLoop.Ring;

/// <summary>
/// The control page of a channel: the first page the listener grants. Every field has one writer.
/// <code>
///   0x000  magic, version, ring bytes, session      listener, before it says "listening"
///   0x080  listener's liveness byte                 cleared by the kernel when its daemon dies
///   0x100  connector's liveness byte                likewise
///   0x180  ring 0, listener to connector: producer line, then (0x200) consumer line
///   0x280  ring 1, connector to listener: producer line, then (0x300) consumer line
///   0x800  grant references of the ring pages, ring 0 first
/// </code>
/// Lines are 128 bytes apart: x86 fetches cache lines in pairs, and the two sides would otherwise share one.
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = Size)]
internal unsafe struct ControlPage
{
    public const int Size = 4096;
    public const uint MagicValue = 0x31504c58; // "XLP1" in memory
    public const uint CurrentVersion = 1;
    public const int MaxRingPages = 512;
    public const int ListenerAliveOffset = 0x080;
    public const int ConnectorAliveOffset = 0x100;
    public const int PageSize = 4096;

    /// <summary>The smallest power of two that takes a record of the greatest size.</summary>
    public const uint MinRingBytes = 128 * 1024;
    public const uint MaxRingBytes = MaxRingPages / 2 * PageSize;

    [FieldOffset(0x000)] public uint Magic;
    [FieldOffset(0x004)] public uint Version;
    /// <summary>Bytes of each of the two rings: a power of two.</summary>
    [FieldOffset(0x008)] public uint RingBytes;
    [FieldOffset(0x010)] public ulong Session;

    [FieldOffset(ListenerAliveOffset)] public byte ListenerAlive;
    [FieldOffset(ConnectorAliveOffset)] public byte ConnectorAlive;

    [FieldOffset(0x180)] public RingLine Producer0;
    [FieldOffset(0x200)] public RingLine Consumer0;
    [FieldOffset(0x280)] public RingLine Producer1;
    [FieldOffset(0x300)] public RingLine Consumer1;

    [FieldOffset(0x800)] public fixed uint RingReferences[MaxRingPages];

    /// <summary>True for a size that both sides accept: a power of two within the limits.</summary>
    public static bool IsValidRingSize(uint bytes) =>
        bytes is >= MinRingBytes and <= MaxRingBytes && uint.IsPow2(bytes);
}

/// <summary>What one side of one ring publishes. Only that side writes it.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct RingLine
{
    /// <summary>The side's index: bytes written (producer) or taken (consumer) since the start, modulo 2^32.</summary>
    public uint Index;

    /// <summary>Event index: "send me an event when your index passes this".</summary>
    public uint WakeAt;

    /// <summary>
    /// Producer: <see cref="Index"/> when it gave up on the consumer and went by netfront, with <see cref="StaleFlag"/> set: records up
    /// to there are older than what has gone by netfront since, and the consumer throws them away. Without the flag, as in the
    /// zeroed page of an older daemon, it says nothing.
    /// </summary>
    public uint Stale;

    /// <summary>Indices are multiples of 8, which leaves the bit free.</summary>
    public const uint StaleFlag = 1;
}
