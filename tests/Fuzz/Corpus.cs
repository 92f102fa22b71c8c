using System.Globalization;
using System.Text;

namespace XenLoop.Tests.Fuzz;

/// <summary>The inputs of a target that are kept in the repository: a text file, an input a line, bytes that are no printable ASCII as <c>\x0a</c>.</summary>
internal static class Corpus
{
    public static byte[][] Load(string target) => File.Exists(PathOf(target)) ? [.. File.ReadLines(PathOf(target)).Select(Parse)] : [];

    public static void Save(string target, IEnumerable<byte[]> inputs) => File.WriteAllLines(PathOf(target), inputs.Select(Format));

    private static string PathOf(string target) => $"tests/Fuzz/corpus/{target}.txt";

    private static byte[] Parse(string line)
    {
        List<byte> bytes = [];
        for (int i = 0; i < line.Length; i++)
        {
            bool escaped = line[i] == '\\';
            bytes.Add(escaped ? byte.Parse(line.AsSpan(i + 2, 2), NumberStyles.AllowHexSpecifier, CultureInfo.InvariantCulture) : (byte)line[i]);
            i += escaped ? 3 : 0;
        }

        return [.. bytes];
    }

    private static string Format(byte[] input)
    {
        StringBuilder line = new();
        foreach (byte b in input)
        {
            _ = b is >= (byte)' ' and <= (byte)'~' and not (byte)'\\' ? line.Append((char)b) : line.Append(CultureInfo.InvariantCulture, $"\\x{b:x2}");
        }

        return line.ToString();
    }
}
