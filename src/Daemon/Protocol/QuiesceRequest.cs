using System.Globalization;

namespace XenLoop.Protocol;

/// <summary>
/// Dom0's word that a guest is to hold nothing which a suspend would break, until the holder, the process in Dom0 that suspends
/// it, has ended; or, without a holder, until somebody says so. The guest answers with the same words.
/// </summary>
/// <param name="Id">Tells one request from the next.</param>
/// <param name="Holder">Process in Dom0; 0 for none.</param>
/// <param name="HolderStart">When it started, in ticks since boot: another process may get its number.</param>
internal sealed record QuiesceRequest(uint Id, int Holder, ulong HolderStart)
{
    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Id:x8} {Holder} {HolderStart}");

    /// <summary>Null for anything malformed or absent.</summary>
    public static QuiesceRequest? Parse(string? value) =>
        value?.Split(' ') is [string id, string holder, string start]
        && uint.TryParse(id, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out uint number)
        && int.TryParse(holder, NumberStyles.None, CultureInfo.InvariantCulture, out int process)
        && ulong.TryParse(start, NumberStyles.None, CultureInfo.InvariantCulture, out ulong ticks)
            ? new QuiesceRequest(number, process, ticks)
            : null;
}
