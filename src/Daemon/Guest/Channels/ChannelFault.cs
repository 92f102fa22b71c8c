using XenLoop.DataPath;
using XenLoop.Interop;
using XenLoop.Ring;

namespace XenLoop.Guest.Channels;

/// <summary>Whose fault it is.</summary>
internal enum FaultOf
{
    /// <summary>The peer wrote what no honest peer writes.</summary>
    Peer,

    /// <summary>The peer's daemon died, which is nobody's fault.</summary>
    DeadPeer,

    /// <summary>This side's: its kernel or its hypervisor refused a call, or somebody has changed its TAP.</summary>
    Self,

    /// <summary>Neither's: the two speak different versions.</summary>
    Version,
}

/// <summary>What ended a channel, or kept it from coming up.</summary>
/// <param name="Of">Whose fault.</param>
/// <param name="Message">For the log and the status.</param>
internal sealed record ChannelFault(FaultOf Of, string Message)
{
    /// <summary>Of what a channel's calls throw; null for anything else, which is a bug of this program.</summary>
    public static ChannelFault? From(Exception? exception) => exception switch
    {
        PeerViolationException => new(FaultOf.Peer, exception.Message),
        PeerGoneException => new(FaultOf.DeadPeer, exception.Message),
        NativeException or DeliveryException => new(FaultOf.Self, exception.Message),
        _ => null,
    };
}
