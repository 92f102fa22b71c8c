namespace XenLoop.Settings;

/// <summary>By what the policy knows a guest: both are the toolstack's words.</summary>
internal readonly record struct GuestIdentity(string Name, string Uuid);

/// <summary>Which guests may be introduced to each other.</summary>
internal sealed record Policy
{
    /// <summary>The answer for guests that no rule speaks of.</summary>
    public bool AllowedByDefault { get; init; } = true;

    /// <summary>The same answer for both orders.</summary>
    public bool MayMeet(GuestIdentity one, GuestIdentity other) => AllowedByDefault || one == other;
}
