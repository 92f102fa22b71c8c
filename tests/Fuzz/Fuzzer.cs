using System.Diagnostics;
using System.Globalization;

namespace XenLoop.Tests.Fuzz;

/// <summary>Fuzzes one target: inputs that reach code which none has reached, or more often than any has, are what further ones are made of.</summary>
internal sealed class Fuzzer
{
    private static readonly TimeSpan _limit = TimeSpan.FromSeconds(10); // for an input; it takes microseconds, but the machine may be busy

    private readonly string _name;
    private readonly Target _target;
    private readonly TargetBody _body;
    private readonly InputMemory _memory;
    private readonly Coverage _coverage = new();
    private readonly List<byte[]> _corpus = [];
    private long _inputs;
    private long _runs;

    private Fuzzer(string name)
    {
        (_name, _target) = (name, Target.All[name]);
        _memory = new InputMemory(name);
        _body = _target.Make();
    }

    /// <summary>In the process that is a target's own, of instrumented assemblies.</summary>
    /// <returns>Its status: 1 when something was found.</returns>
    public static int Run(string[] args)
    {
        Options options = Options.Parse(args)!;
        return new Fuzzer(options.Targets[0]).Run(options);
    }

    private int Run(Options options)
    {
        new Thread(Watch) { IsBackground = true }.Start();
        if (options.Replay is not null)
        {
            bool taken = Try(File.ReadAllBytes(options.Replay));
            Console.WriteLine($"{_name}: {(taken ? "nothing found" : "found again")}");
            return taken ? 0 : 1;
        }

        long start = Stopwatch.GetTimestamp();
        byte[][] kept = Corpus.Load(_name);
        // By length, so that what the long ones reach besides is what they are for.
        if (!Array.TrueForAll([.. kept.OrderBy(i => i.Length)], Try))
        {
            return 1;
        }

        int replayed = _coverage.Edges;
        Random random = new(options.Seed);
        Mutator mutator = new(random, _target.Longest, _target.Tokens);
        while (_inputs < options.Inputs)
        {
            byte[] input = _corpus.Count == 0 ? [] : _corpus[random.Next(_corpus.Count)];
            byte[] other = _corpus.Count == 0 ? [] : _corpus[random.Next(_corpus.Count)];
            if (!Try(mutator.Mutate(input, other)))
            {
                return 1;
            }
        }

        double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds;
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{_name}: {_inputs} inputs in {seconds:f0} s, {_inputs / seconds:f0} a second; {_coverage.Edges} edges, {replayed} of them by the {kept.Length} inputs that are kept; {_corpus.Count} inputs in the corpus"));
        if (options.Save)
        {
            Save();
        }

        return 0;
    }

    /// <returns>False for a finding.</returns>
    private bool Try(byte[] input) => Try(input.AsSpan());

    private bool Try(ReadOnlySpan<byte> input)
    {
        _inputs++;
        if (!Hit(input))
        {
            return false;
        }

        // Twice: what happens but once in a process, as a static constructor, is no input's.
        if (_coverage.End() && Hit(input) && _coverage.End())
        {
            _ = _coverage.Add();
            _corpus.Add(input.ToArray());
        }

        return true;
    }

    private bool Hit(ReadOnlySpan<byte> input)
    {
        try
        {
            Volatile.Write(ref _runs, _runs + 1);
            Coverage.Begin();
            _body(_memory.Place(input));
            return true;
        }
        catch (Exception e)
        {
            Findings.Report(_name, input, $"after {_inputs} inputs: {e}");
            return false;
        }
    }

    /// <summary>Keeps the shortest inputs that reach all edges together, and of each what it takes.</summary>
    private void Save()
    {
        Coverage coverage = new();
        List<byte[]> least = [];
        foreach (byte[] input in _corpus.OrderBy(i => i.Length))
        {
            HashSet<ushort> edges = Unseen(input);
            if (edges.Count > 0)
            {
                byte[] trimmed = Trim(input, i => edges.IsSubsetOf(Unseen(i)));
                _ = Unseen(trimmed);
                _ = coverage.Add();
                least.Add(trimmed);
            }
        }

        Corpus.Save(_name, least);
        Console.WriteLine($"{_name}: kept {least.Count} inputs, {coverage.Edges} edges");

        HashSet<ushort> Unseen(byte[] input)
        {
            _ = Hit(input);
            _ = coverage.End();
            return coverage.Unseen();
        }
    }

    private static byte[] Trim(byte[] input, Func<byte[], bool> isAsGood)
    {
        for (int size = input.Length / 2; size > 0; size /= 2)
        {
            for (int at = 0; at + size <= input.Length;)
            {
                byte[] shorter = [.. input[..at], .. input[(at + size)..]];
                bool isGood = isAsGood(shorter);
                (input, at) = isGood ? (shorter, at) : (input, at + size);
            }
        }

        return input;
    }

    /// <summary>Ends the process when an input takes too long.</summary>
    private void Watch()
    {
        for (long last = -1; ; Thread.Sleep(_limit))
        {
            long now = Volatile.Read(ref _runs);
            if (now == last)
            {
                Findings.Report(_name, _memory.Last, $"after {_inputs} inputs: takes longer than {_limit.TotalSeconds} s");
                Environment.Exit(1);
            }

            last = now;
        }
    }
}
