using System.Runtime.InteropServices;

namespace XenLoop.Lab;

/// <summary>
/// What a lab daemon and the lab's broker say to each other, over one SOCK_SEQPACKET socket per domain: a request, then
/// its reply, in the machine's byte order. References and runs follow their header in the same message or, where each
/// carries a descriptor, in messages of their own.
/// </summary>
internal static class LabProtocol
{
    /// <summary>Environment variable that names the broker's socket; LabHost gives it to every program of a domain.</summary>
    public const string SocketVariable = "XENLOOP_LAB";

    public const int PageSize = 4096;

    /// <summary>References in one message.</summary>
    public const int PagesMax = 8192;

    /// <summary>Bytes of the longest message.</summary>
    public const int MessageMax = 32 + (PagesMax * sizeof(uint));

    /// <summary>In <see cref="LabRequest.NoticeOffset"/>: no death notice.</summary>
    public const uint NoNotice = uint.MaxValue;
}

internal enum LabOperation : uint
{
    /// <summary>Answers with this domain's domid.</summary>
    Hello = 1,

    /// <summary>Grants <c>Argument</c> new pages to <c>Peer</c>. Answers with the share's number, then the references; a memfd comes along.</summary>
    Share = 2,

    /// <summary>Ends the share numbered <c>Argument</c>.</summary>
    EndShare = 3,

    /// <summary>Maps what <c>Peer</c> granted: <c>Count</c> references follow. Answers with the mapping's number, then <c>Count</c>
    /// messages, each a <see cref="LabRun"/> and a memfd.</summary>
    Map = 4,

    /// <summary>Ends the mapping numbered <c>Argument</c>.</summary>
    Unmap = 5,

    /// <summary>Answers with a port that <c>Peer</c> may bind; the eventfd to wait on and the one to signal come along.</summary>
    AllocateUnbound = 6,

    /// <summary>Binds port <c>Argument</c> of <c>Peer</c>. Answers as <see cref="AllocateUnbound"/>.</summary>
    BindInterdomain = 7,

    /// <summary>Closes port <c>Argument</c>.</summary>
    Close = 8,

    /// <summary>Gives the share numbered <c>Argument</c> another death notice, or none.</summary>
    SetNotice = 9,

    /// <summary>Answers with 1 if there is a domain <c>Peer</c>, else 0.</summary>
    IsDomainAlive = 10,
}

/// <summary>A request; <see cref="Count"/> references (32 bits each) follow.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct LabRequest
{
    public LabOperation Operation;
    public uint Peer;
    public uint Argument;

    /// <summary>Byte of the first page to clear when the connection ends, or <see cref="LabProtocol.NoNotice"/>.</summary>
    public uint NoticeOffset;

    /// <summary>Port to signal then.</summary>
    public uint NoticePort;

    public uint Count;
}

/// <summary>A reply; <see cref="Count"/> references follow, or as many messages of one <see cref="LabRun"/> each.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct LabReply
{
    /// <summary>0, or errno as real Xen has it.</summary>
    public int Errno;

    /// <summary>Domid, share, mapping or port.</summary>
    public uint Value;

    public uint Count;
}

/// <summary>Pages that follow one another in one memfd.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct LabRun
{
    public uint FirstPage;
    public uint Pages;
}
