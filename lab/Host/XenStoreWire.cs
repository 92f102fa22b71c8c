using System.Runtime.InteropServices;

namespace XenLoop.Lab;

/// <summary><c>enum xsd_sockmsg_type</c> (xen/io/xs_wire.h).</summary>
internal enum XenStoreMessage : uint
{
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    ResetWatches = 21,
    DirectoryPart = 22,
}

/// <summary><c>struct xsd_sockmsg</c>: heads every request and reply.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct XenStoreHeader
{
    /// <summary><c>XENSTORE_PAYLOAD_MAX</c>.</summary>
    public const int PayloadMax = 4096;

    public XenStoreMessage Type;
    public uint RequestId;
    public uint TransactionId;

    /// <summary>Bytes that follow.</summary>
    public uint Length;
}

/// <summary>A request is refused; the wire carries the name of the errno.</summary>
internal sealed class XenStoreRefusal(string error) : Exception(error)
{
    public string Error { get; } = error;
}
