using System.CommandLine;
using System.Globalization;
using System.Text;
using XenLoop.Bench;
using XenLoop.Rig;

Option<string> kinds = new("--kind") { Description = "pvh, pv or both.", DefaultValueFactory = _ => "both" };
Option<string?> save = new("--save") { Description = "Append the table, as Markdown, to this file. With --migration: write this file with .csv and .svg after its name." };
Option<string> daemon = new("--daemon") { Description = "Arguments for the guests' daemons.", DefaultValueFactory = _ => "" };
Option<string> only = new("--only") { Description = "Only the measurements whose name contains this.", DefaultValueFactory = _ => "" };
Option<bool> demo = new("--demo") { Description = "Tell the story instead: netfront, then shared memory, then a daemon killed." };
Option<bool> migration = new("--migration") { Description = "Draw instead how many transactions pass while a guest migrates between two hosts." };
RootCommand root = new("""
    Measures netfront against XenLoop on real Xen: the same guests, the same programs, one run. The host is emulated
    with one processor on which one instruction takes one nanosecond, so figures are exact and repeatable.
    """) { kinds, save, daemon, only, demo, migration };
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

    GuestKind[] chosen = parsed.GetValue(kinds)! switch { "pvh" => [GuestKind.Pvh], "pv" => [GuestKind.Pv], _ => [GuestKind.Pvh, GuestKind.Pv] };
    Measurement[] set = [.. Measurements.All.Where(m => m.Name.Contains(parsed.GetValue(only)!, StringComparison.OrdinalIgnoreCase))];
    StringBuilder table = new();
    foreach (GuestKind kind in chosen)
    {
        await Compare.RunAsync(kind, set, parsed.GetValue(daemon)!, table);
    }

    if (parsed.GetValue(save) is { } file)
    {
        await File.AppendAllTextAsync(file, string.Create(CultureInfo.InvariantCulture, $"\n## {DateTime.UtcNow:yyyy-MM-dd}\n{table}"), cancel);
    }

    return 0;
});
return await root.Parse(args).InvokeAsync();
