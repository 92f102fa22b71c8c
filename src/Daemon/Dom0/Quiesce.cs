using System.Globalization;

namespace XenLoop.Dom0;

/// <summary>
/// A guest that is to hold nothing which a suspend would break: it is introduced to nobody until the holder, the process
/// that suspends it, has ended; or, without a holder, until somebody says so. Dom0's daemon finds it again after a restart,
/// for it stands in XenStore as it is written here.
/// </summary>
/// <param name="Id">Tells one request from the next.</param>
/// <param name="Holder">Process in Dom0; 0 for none.</param>
/// <param name="HolderStart">When it started, in ticks since boot: another process may get its number.</param>
internal sealed record Quiesce(uint Id, int Holder, ulong HolderStart)
{
    public static Quiesce Begin(int holder) => new((uint)Random.Shared.Next(1, int.MaxValue), holder, StartOf(holder));

    /// <summary>False when its holder has ended: nobody suspends the guest any more.</summary>
    public bool Holds => Holder == 0 || (HolderStart != 0 && StartOf(Holder) == HolderStart);

    public override string ToString() => string.Create(CultureInfo.InvariantCulture, $"{Id:x8} {Holder} {HolderStart}");

    /// <summary>Null for anything malformed or absent.</summary>
    public static Quiesce? Parse(string? value) =>
        value?.Split(' ') is [string id, string holder, string start]
        && uint.TryParse(id, NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture, out uint number)
        && int.TryParse(holder, NumberStyles.None, CultureInfo.InvariantCulture, out int process)
        && ulong.TryParse(start, NumberStyles.None, CultureInfo.InvariantCulture, out ulong ticks)
            ? new Quiesce(number, process, ticks)
            : null;

    private static ulong StartOf(int process)
    {
        try
        {
            // proc(5): the name in parentheses may hold anything; the state is the first field after it, starttime the twentieth.
            string stat = File.ReadAllText($"/proc/{process}/stat");
            string[] fields = stat[(stat.LastIndexOf(')') + 2)..].Split(' ');
            // A zombie has ended, though its parent has not asked yet.
            return fields[0] == "Z" ? 0 : ulong.Parse(fields[19], CultureInfo.InvariantCulture);
        }
        catch (IOException)
        {
            return 0; // none has this number
        }
    }
}
