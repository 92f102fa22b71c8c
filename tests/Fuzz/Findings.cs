using System.Security.Cryptography;

namespace XenLoop.Tests.Fuzz;

/// <summary>Inputs that broke a target.</summary>
internal static class Findings
{
    public const string Folder = "artifacts/fuzz";

    public static void Report(string target, ReadOnlySpan<byte> input, string what)
    {
        string file = Path.Combine(Folder, $"{target}-{Convert.ToHexStringLower(SHA256.HashData(input))[..16]}");
        File.WriteAllBytes(file, input);
        Console.WriteLine($"{target}: FOUND by {input.Length} bytes: {what}\n{target}: in {file}; again: tests/fuzz --replay {file} {target}");
    }
}
