namespace XenLoop.Tests.Fuzz;

/// <summary>Takes any bytes. An exception that comes out of it is a finding.</summary>
internal delegate void TargetBody(ReadOnlySpan<byte> input);

/// <summary>Something of the daemon's that reads bytes of others.</summary>
/// <param name="Make">Makes it.</param>
/// <param name="Longest">No input has more bytes.</param>
/// <param name="Tokens">What it knows, as characters of Latin-1: mutations put them in.</param>
internal sealed record Target(Func<TargetBody> Make, int Longest, string[] Tokens)
{
    public static IReadOnlyDictionary<string, Target> All { get; } = new Dictionary<string, Target>
    {
        ["ring"] = new(() => new RingTarget().Run, 512, RingTarget.Tokens),
        ["store"] = new(() => new StoreTarget().Run, 256, StoreTarget.Tokens),
        ["control"] = new(() => new ControlTarget().Run, 256, ControlTarget.Tokens),
        ["policy"] = new(() => PolicyTarget.Run, 192, PolicyTarget.Tokens),
        ["netlink"] = new(() => NetlinkTarget.Run, 1536, NetlinkTarget.Tokens),
    };

    /// <summary>What must hold of whatever the daemon made of an input.</summary>
    public static void Require(bool condition, string otherwise)
    {
        if (!condition)
        {
            throw new InvalidOperationException(otherwise);
        }
    }
}
