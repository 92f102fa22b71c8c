using System.CommandLine;
using XenLoop.Bench;
using XenLoop.Rig;

Option<string[]> hosts = new("--host")
{
    Description = $"Hosts: {string.Join("; ", BenchHost.All.Select(host => $"{host.Key} ({host.Description})"))}.",
    AllowMultipleArgumentsPerToken = true,
    DefaultValueFactory = _ => [.. BenchHost.All.Select(host => host.Key)],
};
Option<GuestKind> kind = new("--kind") { Description = "How Xen runs the guests; PV on the host with one processor only.", DefaultValueFactory = _ => GuestKind.Pvh };
Option<DebianRelease> release = new("--release") { Description = "What Dom0 and guests run.", DefaultValueFactory = _ => DebianRelease.Trixie };
Option<string[]> waysBy = new("--way")
{
    Description = $"Columns: {string.Join(", ", Way.All.Select(way => way.Name))}.",
    AllowMultipleArgumentsPerToken = true,
    DefaultValueFactory = _ => [.. Way.All.Select(way => way.Name)],
};
Option<string[]> only = new("--only")
{
    Description = $"Rows: {string.Join(", ", Measurements.All.Select(m => m.Key))}; all whose name begins with one of these.",
    AllowMultipleArgumentsPerToken = true,
    DefaultValueFactory = _ => [""],
};
Option<string?> save = new("--save") { Description = "Add the tables to this file with .md after its name and the figures to the one with .csv, and draw the charts beside them. With --migration: write .csv and .svg." };
Option<string?> draw = new("--draw") { Description = "Draw instead the charts of such a file anew." };
Option<bool> profile = new("--profile") { Description = "Print instead where the instructions of a ping and of 64 KiB go, by function; on the first host, by the one way given, or else in the default mode." };
Option<string?> gate = new("--gate") { Description = "Compare instead the instructions of a ping and of 64 KiB, on the host with one processor, with those that this file has; fails when they are over 5 % more." };
Option<bool> record = new("--record") { Description = "With --gate: write the file." };
Option<bool> demo = new("--demo") { Description = "Tell the story instead: netfront, then shared memory, then a daemon killed." };
Option<bool> migration = new("--migration") { Description = "Draw instead how many transactions pass while a guest migrates between two hosts." };
RootCommand root = new("""
    Measures netfront against XenLoop on real Xen: the same guests, the same programs, one run. The host is emulated;
    each of its processors executes an instruction a nanosecond, so figures are exact and repeatable.
    """) { hosts, kind, release, waysBy, only, save, draw, profile, gate, record, demo, migration };
root.SetAction(async (parsed, cancel) =>
{
    if (parsed.GetValue(demo))
    {
        return await Demonstration.RunAsync();
    }

    if (parsed.GetValue(migration))
    {
        return await Migration.RunAsync(parsed.GetValue(save));
    }

    if (parsed.GetValue(draw) is { } drawn)
    {
        await Report.DrawAsync(drawn);
        return 0;
    }

    BenchHost[] chosen =
    [
        .. parsed.GetValue(hosts)!.Select(key => (BenchHost.All.FirstOrDefault(host => host.Key == key) ?? throw new ArgumentException($"There is no host {key}."))
            with { Release = parsed.GetValue(release) }),
    ];
    if (parsed.GetValue(kind) == GuestKind.Pv && chosen.Any(host => host.Processors > 1))
    {
        throw new ArgumentException("PV guests run on the host with one processor only (rig/README.md): give --host 1.");
    }

    if (parsed.GetValue(gate) is { } file)
    {
        return await Gate.RunAsync(file, parsed.GetValue(record));
    }

    Measurement[] set = [.. Measurements.All.Where(m => parsed.GetValue(only)!.Any(name => m.Key.StartsWith(name, StringComparison.Ordinal)))];
    Way[] ways = [.. Way.All.Where(way => parsed.GetValue(waysBy)!.Contains(way.Name))];
    if (parsed.GetValue(profile))
    {
        await Profile.RunAsync(chosen[0], ways.Length == 1 ? ways[0] : Way.Default, Measurements.Profiled, 45);
        return 0;
    }

    // An emulated host keeps one of our processors busy. Those with many of their own first: they take longest.
    Table[] tables = new Table[chosen.Length];
    ParallelOptions atOnce = new() { MaxDegreeOfParallelism = Environment.ProcessorCount, CancellationToken = cancel };
    string? name = parsed.GetValue(save);
    using SemaphoreSlim saving = new(1);
    await Parallel.ForEachAsync(Enumerable.Range(0, chosen.Length).OrderByDescending(i => chosen[i].Processors), atOnce, async (i, _) =>
    {
        tables[i] = await Compare.RunAsync(chosen[i], parsed.GetValue(kind), set, ways);
        if (name is not null)
        {
            // At once: a host takes long, and another may fail.
            await saving.WaitAsync(CancellationToken.None);
            try
            {
                await Report.SaveAsync(name, tables[i]);
            }
            finally
            {
                saving.Release();
            }
        }
    });
    foreach (Table table in tables)
    {
        Console.WriteLine(Report.Markdown(table));
    }

    return 0;
});
return await root.Parse(args).InvokeAsync();
