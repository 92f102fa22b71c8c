using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Reflection;
using System.Runtime.Loader;

namespace XenLoop.Tests.Fuzz;

/// <summary>
/// Coverage-guided fuzzing of all that the daemon reads of others' bytes; <c>tests/fuzz</c> starts it, in the repository's folder. Each
/// target has a process of its own, of which this one sees how it ends: what is read outside of memory ends it.
/// </summary>
internal static class Program
{
    private const string Child = "child";

    private static int Main(string[] args)
    {
        if (args is [Child, ..])
        {
            Coverage.Prepare();
            // From here on of the instrumented daemon.
            return (int)new InstrumentedContext().LoadFromAssemblyName(Assembly.GetExecutingAssembly().GetName())
                .GetType(typeof(Fuzzer).FullName!)!.GetMethod(nameof(Fuzzer.Run))!.CreateDelegate<Func<string[], int>>()(args[1..]);
        }

        Options? options = Options.Parse(args);
        if (options is null)
        {
            Console.Error.WriteLine($"""
                usage: tests/fuzz [--inputs N] [--seed N] [--save] [TARGET]...
                       tests/fuzz --replay FILE TARGET
                Targets: {string.Join(", ", Target.All.Keys)}; without one, all. Each gets N inputs (10,000,000) that come of those in tests/Fuzz/corpus by
                chance, as the seed (1) has it; --save puts what reached more code there. What breaks a target is in artifacts/fuzz, and the status is 1.
                """);
            return 2;
        }

        Directory.CreateDirectory(Findings.Folder);
        int found = 0;
        foreach (string target in options.Targets)
        {
            found += Supervise([.. args.Except(options.Targets), target], target) ? 0 : 1;
        }

        return Math.Min(found, 1);
    }

    /// <returns>True when it found nothing.</returns>
    private static bool Supervise(string[] args, string target)
    {
        ProcessStartInfo start = new(Environment.ProcessPath!, [Child, .. args]) { RedirectStandardError = true };
        File.Delete(InputMemory.PathOf(target));
        using Process child = Process.Start(start)!;
        // The daemon logs what it does; of a crash the runtime says there where it was.
        ConcurrentQueue<string> said = new();
        child.ErrorDataReceived += (_, line) =>
        {
            said.Enqueue(line.Data ?? "");
            _ = said.Count > 30 && said.TryDequeue(out string? _);
        };
        child.BeginErrorReadLine();
        child.WaitForExit();
        if (child.ExitCode is not (0 or 1))
        {
            Findings.Report(target, InputMemory.LastOf(target), $"the process ended with status {child.ExitCode}:\n{string.Join('\n', said)}");
        }

        return child.ExitCode == 0;
    }

    /// <summary>
    /// Loads the daemon's own assemblies as SharpFuzz instruments them: each branch counts in <see cref="SharpFuzz.Common.Trace"/>. Not the library that
    /// reads TOML: most of the corpus would be ways to break that, and little would get as far as the daemon.
    /// </summary>
    private sealed class InstrumentedContext : AssemblyLoadContext
    {
        protected override Assembly? Load(AssemblyName name)
        {
            bool instrumented = name.Name is "XenLoop.Daemon" or "XenLoop.Interop";
            if (!instrumented && name.Name != Assembly.GetExecutingAssembly().GetName().Name)
            {
                return null;
            }

            string path = Path.Combine(AppContext.BaseDirectory, $"{name.Name}.dll");
            if (!instrumented)
            {
                return LoadFromAssemblyPath(path);
            }

            DirectoryInfo folder = Directory.CreateTempSubdirectory("xenloop-fuzz");
            try
            {
                string copy = Path.Combine(folder.FullName, $"{name.Name}.dll");
                File.Copy(path, copy);
                SharpFuzz.Fuzzer.Instrument(copy, _ => true, SharpFuzz.Options.Value);
                return LoadFromStream(new MemoryStream(File.ReadAllBytes(copy)));
            }
            finally
            {
                folder.Delete(recursive: true);
            }
        }
    }
}

/// <summary>What is asked of a run.</summary>
internal sealed record Options(long Inputs, int Seed, bool Save, string? Replay, string[] Targets)
{
    /// <summary>Null for what cannot be understood.</summary>
    public static Options? Parse(string[] args)
    {
        Options options = new(10_000_000, 1, false, null, []);
        for (int i = 0; i < args.Length; i++)
        {
            string? value = args.ElementAtOrDefault(i + 1);
            switch (args[i])
            {
                case "--inputs" when long.TryParse(value, CultureInfo.InvariantCulture, out long inputs):
                    options = options with { Inputs = inputs };
                    i++;
                    break;
                case "--seed" when int.TryParse(value, CultureInfo.InvariantCulture, out int seed):
                    options = options with { Seed = seed };
                    i++;
                    break;
                case "--replay" when value is not null:
                    options = options with { Replay = value };
                    i++;
                    break;
                case "--save":
                    options = options with { Save = true };
                    break;
                case string target when Target.All.ContainsKey(target):
                    options = options with { Targets = [.. options.Targets, target] };
                    break;
                default:
                    return null;
            }
        }

        return options.Replay is not null && options.Targets.Length != 1 ? null
            : options.Targets.Length == 0 ? options with { Targets = [.. Target.All.Keys] }
            : options;
    }
}
