using Tmds.Linux;

namespace XenLoop.Tests.Fuzz;

/// <summary>
/// Where an input lies while a target has it: behind its last byte is a page that nobody may touch. It is a file's memory, so that whoever
/// survives the process knows the input that ended it.
/// </summary>
internal sealed unsafe class InputMemory
{
    private const int Page = 4096;

    private readonly byte* _memory;

    /// <param name="target">Names the file.</param>
    public InputMemory(string target)
    {
        using FileStream file = new(PathOf(target), FileMode.Create, FileAccess.ReadWrite);
        file.SetLength(2 * Page);
        byte* memory = (byte*)LibC.mmap(null, 3 * Page, LibC.PROT_NONE, LibC.MAP_PRIVATE | LibC.MAP_ANONYMOUS, -1, 0);
        _memory = (byte*)LibC.mmap(
            memory, 2 * Page, LibC.PROT_READ | LibC.PROT_WRITE, LibC.MAP_SHARED | LibC.MAP_FIXED, (int)file.SafeFileHandle.DangerousGetHandle(), 0);
        Target.Require(_memory == memory, "no memory for inputs");
    }

    /// <summary>The input as it was placed last.</summary>
    public ReadOnlySpan<byte> Last => new(_memory + (2 * Page) - *(int*)_memory, *(int*)_memory);

    /// <param name="input">At most a page.</param>
    public ReadOnlySpan<byte> Place(ReadOnlySpan<byte> input)
    {
        *(int*)_memory = input.Length;
        input.CopyTo(new Span<byte>(_memory + (2 * Page) - input.Length, input.Length));
        return Last;
    }

    /// <summary>The last input of a process that has ended; empty when it had none.</summary>
    public static byte[] LastOf(string target)
    {
        if (!File.Exists(PathOf(target)))
        {
            return [];
        }

        byte[] file = File.ReadAllBytes(PathOf(target));
        return file[^BitConverter.ToInt32(file)..];
    }

    public static string PathOf(string target) => Path.Combine(Findings.Folder, $"{target}.last");
}
