using System.Diagnostics;
using System.Security.Cryptography;

namespace XenLoop.Rig;

/// <summary>The files that the rig boots, made by <c>rig/image/build</c>.</summary>
internal sealed class RigImage
{
    private static readonly SemaphoreSlim _buildOnce = new(1);

    private readonly string _folder;

    private RigImage(string release)
    {
        RunQemu = Path.Combine(RepositoryRoot, "rig", "run-qemu");
        _folder = Path.Combine(Rig, release);
    }

    /// <summary>The top folder of the repository that this program was built in.</summary>
    public static string RepositoryRoot { get; } = FindRepository();

    private static string Rig => Path.Combine(RepositoryRoot, "artifacts", "rig");

    /// <summary>The script that keeps QEMU.</summary>
    public string RunQemu { get; }

    /// <summary>QEMU's plugin that counts instructions; only the QEMU that the rig has built has it.</summary>
    public static string ProfilePlugin => Path.Combine(Rig, "qemu", "profile.so");

    /// <summary>Where states of hosts that have booted it are kept. They go with it.</summary>
    public string Snapshots => Path.Combine(_folder, "booted");

    /// <summary>What changes when the image or the QEMU that boots it does.</summary>
    public string Identity => $"{File.ReadAllText(Path.Combine(_folder, "stamp"))} {Convert.ToHexStringLower(SHA256.HashData(File.ReadAllBytes(Path.Combine(Rig, "qemu", "bin", "qemu-system-x86_64"))))}";

    public string Hypervisor => Path.Combine(_folder, "xen");

    public string Kernel => Path.Combine(_folder, "vmlinux");

    public string Dom0Files => Path.Combine(_folder, "dom0.cpio");

    /// <summary>Finds the images of a release, and makes them first when they are missing or out of date.</summary>
    public static async Task<RigImage> GetAsync(DebianRelease debian)
    {
        string release = debian.ToString().ToLowerInvariant();
        await _buildOnce.WaitAsync();
        try
        {
            await RunScriptAsync(Path.Combine("rig", "image", "build"), release);
        }
        finally
        {
            _buildOnce.Release();
        }

        return new RigImage(release);
    }

    /// <summary>Runs a script of the repository that builds something.</summary>
    /// <returns>What it wrote to standard output.</returns>
    internal static async Task<string> RunScriptAsync(string path, params string[] arguments)
    {
        string script = Path.Combine(RepositoryRoot, path);
        using Process build = Process.Start(new ProcessStartInfo(script, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })
            ?? throw new InvalidOperationException($"{script} did not start.");
        string[] said = await Task.WhenAll(build.StandardOutput.ReadToEndAsync(), build.StandardError.ReadToEndAsync());
        await build.WaitForExitAsync();
        if (build.ExitCode != 0)
        {
            throw new InvalidOperationException($"{script} failed with exit code {build.ExitCode}. What it needs is said at its top.\n{said[1]}");
        }

        Console.Error.Write(said[1]);
        return said[0].Trim();
    }

    private static string FindRepository()
    {
        for (string? folder = AppContext.BaseDirectory; folder is not null; folder = Path.GetDirectoryName(folder))
        {
            if (File.Exists(Path.Combine(folder, "rig", "run-qemu")))
            {
                return folder;
            }
        }

        throw new DirectoryNotFoundException(
            $"No folder above {AppContext.BaseDirectory} has rig/run-qemu: the rig runs from within its repository.");
    }
}
