using System.Diagnostics;
using System.Globalization;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>
/// Where the instructions of a round trip and of 64 KiB go, over the whole host: the hypervisor, the kernels of Dom0 and guests (one and
/// the same, so their functions are added up), the daemons, the other programs.
/// </summary>
internal sealed class Profile
{
    private const ulong XenBegin = 0xffff82d000000000;
    private const ulong XenEnd = 0xffff830000000000;
    private const ulong KernelBegin = 0xffffffff80000000;

    /// <summary>Where Linux loads a position-independent program without randomisation.</summary>
    private const ulong ProgramBegin = 0x555555554000;

    private const ulong LibrariesBegin = 0x7f0000000000;

    private readonly SymbolTable _xen;
    private readonly SymbolTable _kernel;
    private readonly SymbolTable _daemon;

    private Profile(SymbolTable xen, SymbolTable kernel, SymbolTable daemon) => (_xen, _kernel, _daemon) = (xen, kernel, daemon);

    /// <param name="host">The host to measure on.</param>
    /// <param name="way">By netfront, or with daemons.</param>
    /// <param name="set">What to profile.</param>
    /// <param name="top">How many functions to print for each.</param>
    public static async Task RunAsync(BenchHost host, Way way, Measurement[] set, int top)
    {
        await using Pair pair = await Pair.StartAsync(
            GuestKind.Pvh, host.GuestVcpus, host.Options with { Profile = true, Dom0KernelArguments = Unrandomised }, Unrandomised);
        if (way.DaemonArguments is { } arguments)
        {
            await pair.StartDaemonsAsync(arguments);
        }

        Profile profile = new(
            SymbolTable.Parse((await pair.Host.RunAsync("cat /proc/xen/xensyms")).Check().Output),
            SymbolTable.Parse((await pair.Client.RunAsync("sysctl -q -w kernel.kptr_restrict=0; cat /proc/kallsyms")).Check().Output),
            await DaemonSymbolsAsync());
        foreach (Measurement measurement in set)
        {
            await pair.Host.ProfileAsync();
            (Outcome outcome, _) = await pair.MeasureAsync(measurement);
            profile.Print(await pair.Host.ProfileAsync(), $"{measurement.Name}: {Report.Figure(outcome.Figure)} {measurement.Unit}", measurement.WorkUnit, outcome.Work, top);
        }
    }

    private const string Unrandomised = "nokaslr norandmaps";

    private void Print(IReadOnlyList<ProfiledBlock> blocks, string what, string unit, double units, int top)
    {
        Dictionary<(string Room, string Function), long> functions = [];
        foreach (ProfiledBlock block in blocks)
        {
            (string, string) place = Place(block.Address);
            functions[place] = functions.GetValueOrDefault(place) + block.Instructions;
        }

        double total = functions.Values.Sum();
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"\n{what}\n{total / units,10:0} instructions for each {unit}, those of starting and ending the measurement among them"));
        foreach (IGrouping<string, KeyValuePair<(string Room, string Function), long>> room in functions.GroupBy(f => f.Key.Room).OrderByDescending(r => r.Sum(f => f.Value)))
        {
            Line(room.Key, "", room.Sum(f => f.Value));
        }

        Console.WriteLine();
        foreach (((string room, string function), long executed) in functions.OrderByDescending(f => f.Value).Take(top))
        {
            Line(room, function, executed);
        }

        void Line(string room, string function, long executed) =>
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{executed / units,10:0} {100 * executed / total,5:0.0} %  {room,-14} {function}"));
    }

    private (string Room, string Function) Place(ulong address) => address switch
    {
        >= XenBegin and < XenEnd => ("hypervisor", _xen.Find(address)),
        >= KernelBegin => ("kernel", _kernel.Find(address)),
        _ when address >= _daemon.First && address <= _daemon.Last => ("daemon", _daemon.Find(address)),
        >= LibrariesBegin and < 0x800000000000 => ("libraries", ""),
        >= ProgramBegin and < LibrariesBegin => ("programs", ""),
        _ => ("other", ""),
    };

    /// <summary>Of the published daemon's symbols, kept beside it; its own code begins far behind that of the small programs here, which lie at the same place.</summary>
    private static async Task<SymbolTable> DaemonSymbolsAsync()
    {
        string symbols = System.IO.Path.Combine(XenLoopDaemon.PublishFolder, "xenloopd", "xenloopd.dbg");
        using Process nm = Process.Start(new ProcessStartInfo("nm", ["-C", "--defined-only", symbols]) { RedirectStandardOutput = true })!;
        string output = await nm.StandardOutput.ReadToEndAsync();
        await nm.WaitForExitAsync();
        return nm.ExitCode == 0
            ? SymbolTable.Parse(output, ProgramBegin)
            : throw new InvalidOperationException($"nm cannot read {symbols}: publish the programs first (packaging/publish).");
    }
}
