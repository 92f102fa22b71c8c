using System.Globalization;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>What this process can do with itself as a whole: leave a copy behind, begin anew, and hold less memory.</summary>
internal static unsafe partial class OwnProcess
{
    private const int PR_SET_NAME = 15;
    private const int LastSignal = 64;
    private const nint SIG_IGN = 1;

    // More than this program ever has; to close one that is not open costs 100 ns.
    private const int MostDescriptors = 65536;

    private static (nint Start, nint End)? _code;

    // int execv(const char *path, char *const argv[]);
    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int execv(string path, byte** argv);

    // int setenv(const char *name, const char *value, int overwrite);
    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int setenv(string name, string value, int overwrite);

    /// <summary>Sets a variable of the environment that the process begins anew with. The runtime has a copy, which stays as it is.</summary>
    public static void SetEnvironmentVariable(string name, string value)
    {
        if (setenv(name, value, overwrite: 1) != 0)
        {
            throw new NativeException("setenv", name, LibC.errno);
        }
    }

    /// <summary>
    /// Leaves a copy of this process behind, with all its mappings, that does nothing until it is killed. It ignores every other
    /// signal, and is left alone when systemd shuts the system down.
    /// </summary>
    /// <param name="name">Its name in /proc/PID/comm, up to 15 bytes of ASCII.</param>
    /// <param name="descriptors">Of this process, which the copy keeps; all others it closes.</param>
    /// <returns>Its process id.</returns>
    /// <exception cref="NativeException">The kernel is out of memory or processes.</exception>
    // Compiled whole and once, also where there is a just-in-time compiler: in the copy it could not run.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    public static int LeaveCopy(string name, ReadOnlySpan<int> descriptors)
    {
        // The copy has one thread, and a runtime that waits for others: so it only does what needs neither. Whatever allocates, or
        // looks a function up, comes before; and none of these calls lets the collector in.
        var fork = (delegate* unmanaged[SuppressGCTransition]<int>)Function("fork");
        var close = (delegate* unmanaged[SuppressGCTransition]<int, int>)Function("close");
        var setsid = (delegate* unmanaged[SuppressGCTransition]<int>)Function("setsid");
        var prctl = (delegate* unmanaged[SuppressGCTransition]<int, byte*, int>)Function("prctl");
        var signal = (delegate* unmanaged[SuppressGCTransition]<int, nint, nint>)Function("signal");
        var pause = (delegate* unmanaged[SuppressGCTransition]<int>)Function("pause");
        byte[] bytes = [.. name.Select(c => (byte)c), 0];
        byte* commandLine = (byte*)ProcessStat.Read("self")!.Value.ArgumentsStart;
        fixed (byte* first = bytes)
        {
            int pid = fork();
            if (pid != 0)
            {
                return pid > 0 ? pid : throw new NativeException("fork", name, LibC.errno);
            }

            // The runtime's handlers write to a pipe that is closed here, and abort: even SIGCONT, which systemd sends at every turn.
            for (int number = 1; number <= LastSignal; number++)
            {
                _ = signal(number, SIG_IGN);
            }

            // Not those that were open a moment ago: another thread may have opened one since.
            for (int descriptor = 0; descriptor < MostDescriptors; descriptor++)
            {
                bool kept = false;
                foreach (int one in descriptors)
                {
                    kept |= one == descriptor;
                }

                if (!kept)
                {
                    _ = close(descriptor);
                }
            }

            _ = setsid();
            _ = prctl(PR_SET_NAME, first);
            // A process of root's whose command line begins so is spared by systemd-shutdown.
            *commandLine = (byte)'@';
            while (true)
            {
                _ = pause();
            }
        }
    }

    private static nint Function(string name) => NativeLibrary.GetExport(NativeLibrary.GetMainProgramHandle(), name);

    /// <summary>The descriptors that this process has open on files of these names.</summary>
    public static int[] Descriptors(params string[] files) =>
    [
        .. from entry in Directory.EnumerateFileSystemEntries("/proc/self/fd")
           where files.Contains(new FileInfo(entry).LinkTarget)
           select int.Parse(Path.GetFileName(entry), CultureInfo.InvariantCulture),
    ];

    /// <summary>Unmaps the program's code, of which each page comes back from the kernel's cache when it runs next: what only the start needed, or
    /// a rare piece of work, is not held for ever. The code of libraries stays.</summary>
    public static void ReleaseCode()
    {
        _code ??= FindCode();
        // Private, and never written to: nothing is lost. Where it does not work, the pages stay.
        _ = LibC.madvise((void*)_code.Value.Start, (size_t)(ulong)(_code.Value.End - _code.Value.Start), LibC.MADV_DONTNEED);
    }

    private static (nint Start, nint End) FindCode()
    {
        foreach (string line in File.ReadLines("/proc/self/maps"))
        {
            // start-end permissions offset device inode path
            string[] fields = line.Split(' ', 2);
            if (fields[1].StartsWith("r-xp", StringComparison.Ordinal) && fields[1].EndsWith($" {Environment.ProcessPath}", StringComparison.Ordinal))
            {
                nint[] range = [.. fields[0].Split('-').Select(a => nint.Parse(a, NumberStyles.HexNumber, CultureInfo.InvariantCulture))];
                return (range[0], range[1]);
            }
        }

        return default;
    }

    /// <summary>
    /// Begins anew: same process id, arguments, environment and standard streams, and nothing else of this process is left: every
    /// other descriptor and all memory are gone. The program may be a newer one, if it was replaced. Does not return.
    /// </summary>
    /// <exception cref="NativeException">The program's file is gone, or the kernel is out of memory.</exception>
    public static void Replace()
    {
        const string Self = "/proc/self/exe";
        string[] arguments = Environment.GetCommandLineArgs();
        byte** argv = (byte**)NativeMemory.AllocZeroed((nuint)arguments.Length + 1, (nuint)sizeof(byte*));
        for (int i = 0; i < arguments.Length; i++)
        {
            argv[i] = (byte*)Marshal.StringToCoTaskMemUTF8(arguments[i]);
        }

        // By its path at first: the process is to keep its name.
        _ = execv(Environment.ProcessPath ?? Self, argv);
        _ = execv(Self, argv);
        int error = LibC.errno;
        for (int i = 0; i < arguments.Length; i++)
        {
            Marshal.FreeCoTaskMem((IntPtr)argv[i]);
        }

        NativeMemory.Free(argv);
        throw new NativeException("execv", Self, error);
    }
}
