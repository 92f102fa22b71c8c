using System.Globalization;

namespace XenLoop.Bench;

/// <summary>Names of functions by address.</summary>
internal sealed class SymbolTable
{
    private readonly ulong[] _addresses;
    private readonly string[] _names;

    private SymbolTable((ulong Address, string Name)[] symbols)
    {
        _addresses = [.. symbols.Select(symbol => symbol.Address)];
        _names = [.. symbols.Select(symbol => symbol.Name)];
    }

    public ulong First => _addresses[0];

    public ulong Last => _addresses[^1];

    /// <param name="text">Lines of address, kind and name, as /proc/kallsyms, Xen's symbols and nm have them. Kinds other than t and w are no functions.</param>
    /// <param name="offset">Added to each address.</param>
    public static SymbolTable Parse(string text, ulong offset = 0)
    {
        (ulong, string)[] symbols =
        [
            .. from line in text.Split('\n')
               let fields = line.Split([' ', '\t'], 3, StringSplitOptions.RemoveEmptyEntries)
               where fields.Length == 3 && fields[1] is "t" or "T" or "w" or "W"
               let address = ulong.Parse(fields[0], NumberStyles.HexNumber, CultureInfo.InvariantCulture)
               where address > 0
               orderby address
               select (address + offset, fields[2].Replace('\t', ' ')),
        ];
        return symbols.Length > 0 ? new SymbolTable(symbols) : throw new FormatException("A table of symbols has no function.");
    }

    /// <summary>The function that an address lies in.</summary>
    public string Find(ulong address)
    {
        int index = Array.BinarySearch(_addresses, address);
        index = index >= 0 ? index : ~index - 1;
        return index >= 0 ? _names[index] : $"{address:x}";
    }
}
