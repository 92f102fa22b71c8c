using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>The figures of one measurement on one host by one way.</summary>
/// <param name="Figures">Of each run that brought one, in ascending order.</param>
/// <param name="Times">Processor time for each unit of work, of the median run; null when that says nothing.</param>
internal sealed record Cell(double[] Figures, DomainTimes? Times)
{
    /// <summary>The median; not a number when no run brought a figure.</summary>
    public double Median => Figures.Length == 0 ? double.NaN : (Figures[(Figures.Length - 1) / 2] + Figures[Figures.Length / 2]) / 2;

    /// <summary>How far apart the runs are, relative to the median.</summary>
    public double Spread => Figures.Length == 0 ? 0 : (Figures[^1] - Figures[0]) / Median;
}

/// <summary>Everything measured on one host: a row for each measurement, a cell for each way.</summary>
internal sealed record Table(BenchHost Host, GuestKind Kind, IReadOnlyList<(Measurement Measurement, Cell[] Cells)> Rows, Way[] Ways);

/// <summary>One side-by-side run: the same two guests by netfront first, then with daemons in each of their modes.</summary>
internal static class Compare
{
    /// <summary>Two runs that are no farther apart need no third.</summary>
    private const double Agreement = Report.Steady;

    public static async Task<Table> RunAsync(BenchHost host, GuestKind kind, Measurement[] set, Way[] ways)
    {
        await using Pair pair = await Pair.StartAsync(kind, host.GuestVcpus, host.Options);
        if (set.Any(measurement => measurement.UsesDatagrams))
        {
            await pair.InstallDatagramsAsync();
        }

        Cell[][] cells = [.. set.Select(_ => new Cell[ways.Length])];
        for (int way = 0; way < ways.Length; way++)
        {
            if (ways[way].DaemonArguments is { } arguments)
            {
                await pair.StartDaemonsAsync(arguments);
            }

            DomainTimes overhead = await pair.OverheadAsync();
            for (int row = 0; row < set.Length; row++)
            {
                cells[row][way] = await MeasureAsync(pair, set[row], overhead);
                Console.WriteLine($"{host.Key} {kind} {ways[way].Name} {set[row].Key}: {string.Join(' ', cells[row][way].Figures.Select(Report.Figure))} {set[row].Unit}");
            }

            if (ways[way].DaemonArguments is not null)
            {
                await pair.StopDaemonsAsync();
            }
        }

        return new Table(host, kind, [.. set.Zip(cells)], ways);
    }

    /// <summary>
    /// The median of three runs. When the first two agree it is known without a third: it lies between them, whatever the third brings.
    /// </summary>
    private static async Task<Cell> MeasureAsync(Pair pair, Measurement measurement, DomainTimes overhead)
    {
        List<(Outcome Outcome, DomainTimes Times)> runs = [];
        for (int i = 0; i < measurement.Runs && !(runs.Count == 2 && Math.Abs((runs[0].Outcome.Figure / runs[1].Outcome.Figure) - 1) < Agreement); i++)
        {
            try
            {
                runs.Add(await pair.MeasureAsync(measurement));
            }
            catch (Exception e) when (e is CommandFailedException or FormatException)
            {
                // A program that gave up is a result, too: one figure less, and a table that says so.
                Console.WriteLine($"{measurement.Key} failed: {e.Message}");
            }
        }

        runs.Sort((one, other) => one.Outcome.Figure.CompareTo(other.Outcome.Figure));
        DomainTimes? times = runs.Count > 0 && runs[runs.Count / 2] is { Outcome.Work: > 0 } median
            ? (median.Times - overhead) / median.Outcome.Work
            : null;
        return new Cell([.. runs.Select(run => run.Outcome.Figure)], times);
    }
}
