using System.Globalization;
using System.Text;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>Tables for people, lines for programs.</summary>
internal static class Report
{
    /// <summary>How far apart runs may be before the table says so.</summary>
    public const double Steady = 0.03;

    private const string CsvHead = "date,release,host,guests,measurement,unit,way,median,least,most,work_unit,dom0_ns,client_ns,server_ns";

    public static string Figure(double figure) => figure switch
    {
        double.NaN => "failed",
        >= 100 => figure.ToString("0", CultureInfo.InvariantCulture),
        >= 10 => figure.ToString("0.0", CultureInfo.InvariantCulture),
        _ => figure.ToString("0.00", CultureInfo.InvariantCulture),
    };

    /// <summary>Markdown: figures with their ratio to the first way's, then processor time by domain.</summary>
    public static string Markdown(Table table)
    {
        StringBuilder text = new();
        string ways = string.Concat(table.Ways.Select(way => $" {way.Name} |"));
        string rule = string.Concat(table.Ways.Select(_ => "---|"));
        text.AppendLine(CultureInfo.InvariantCulture, $"\n### {DateTime.UtcNow:yyyy-MM-dd}: {table.Kind.ToString().ToUpperInvariant()} guests on Debian {table.Host.DebianVersion}; {table.Host.Description}\n");
        text.AppendLine(CultureInfo.InvariantCulture, $"| |{ways}\n|---|{rule}");
        foreach ((Measurement measurement, Cell[] cells) in table.Rows)
        {
            text.AppendLine(CultureInfo.InvariantCulture, $"| {measurement.Name}, {measurement.Unit} |{string.Concat(cells.Select(cell => $" {WithRatio(measurement, cell, cells[0])} |"))}");
        }

        text.AppendLine(CultureInfo.InvariantCulture, $"\nProcessor time of Dom0, client and server in microseconds\n\n| for each |{ways}\n|---|{rule}");
        foreach ((Measurement measurement, Cell[] cells) in table.Rows.Where(row => row.Cells.Any(cell => cell.Times is not null)))
        {
            text.AppendLine(CultureInfo.InvariantCulture, $"| {measurement.WorkUnit}: {measurement.Name} |{string.Concat(cells.Select(cell => $" {Times(cell)} |"))}");
        }

        return text.ToString();
    }

    /// <summary>Adds the table to NAME.md and the figures to NAME.csv, and draws the charts anew.</summary>
    public static async Task SaveAsync(string name, Table table)
    {
        await File.AppendAllTextAsync($"{name}.md", Markdown(table));
        if (!File.Exists($"{name}.csv"))
        {
            await File.WriteAllTextAsync($"{name}.csv", CsvHead + "\n");
        }

        await File.AppendAllLinesAsync($"{name}.csv", Csv(table, DateTime.UtcNow));
        await DrawAsync(name);
    }

    /// <summary>Draws the charts NAME-*.svg of what NAME.csv has last of each host with PVH guests.</summary>
    public static async Task DrawAsync(string name)
    {
        string[][] lines = [.. (await File.ReadAllLinesAsync($"{name}.csv")).Skip(1).Select(line => line.Split(',')).Where(line => line[3] == nameof(GuestKind.Pvh))];
        Way[] ways = [.. Way.All.Where(way => lines.Any(line => line[6] == way.Name))];
        Table[] tables = [.. BenchHost.All.Select(host => new Table(host, GuestKind.Pvh, [.. Rows(host)], ways)).Where(table => table.Rows.Count > 0)];
        await ChartAsync("round-trips", "Microseconds: round trip of ping; one way of sockperf, median", measurement => measurement.Key switch
        {
            "ping" => "ping",
            "tcp_rr" => "sockperf TCP",
            "udp_rr" => "sockperf UDP",
            _ => null,
        });
        await ChartAsync("tcp", "TCP, Gb/s, by bytes of each write", measurement => measurement.Key.Split('_') is ["tcp", string size, string streams] && size != "rr"
            ? $"{size} x {streams}"
            : null);
        await ChartAsync("requests", "Requests per second", measurement => measurement.Unit == "requests/s" ? measurement.Name : null);

        IEnumerable<(Measurement, Cell[])> Rows(BenchHost host) =>
            from measurement in Measurements.All
            let measured = lines.Where(line => line[2] == host.Key && line[4] == measurement.Key).ToArray()
            where measured.Length > 0
            select (measurement, ways.Select(way => new Cell([.. measured.Where(line => line[6] == way.Name && line[7].Length > 0).TakeLast(1).Select(line => double.Parse(line[7], CultureInfo.InvariantCulture))], null)).ToArray());

        async Task ChartAsync(string chart, string title, Func<Measurement, string?> label)
        {
            Table[] drawn = [.. tables.Where(table => table.Rows.Any(row => label(row.Measurement) is not null))];
            if (drawn.Length > 0)
            {
                await File.WriteAllTextAsync($"{name}-{chart}.svg", BarChart.Svg(title, drawn, label));
            }
        }
    }

    private static IEnumerable<string> Csv(Table table, DateTime date) =>
        from row in table.Rows
        from cell in row.Cells.Zip(table.Ways, (cell, way) => (Cell: cell, Way: way))
        select string.Create(CultureInfo.InvariantCulture,
            $"{date:yyyy-MM-dd},{table.Host.DebianVersion},{table.Host.Key},{table.Kind},{row.Measurement.Key},{row.Measurement.Unit},{cell.Way.Name},{Bare(cell.Cell.Median)},{Bare(cell.Cell.Figures.FirstOrDefault(double.NaN))},{Bare(cell.Cell.Figures.LastOrDefault(double.NaN))},{row.Measurement.WorkUnit},{Bare(cell.Cell.Times?.Dom0)},{Bare(cell.Cell.Times?.Client)},{Bare(cell.Cell.Times?.Server)}");

    private static string WithRatio(Measurement measurement, Cell cell, Cell first)
    {
        string text = Figure(cell.Median);
        if (!ReferenceEquals(cell, first) && first.Median > 0 && cell.Median > 0)
        {
            // How many times better, whichever direction that is.
            double ratio = measurement.IsTime ? first.Median / cell.Median : cell.Median / first.Median;
            text += string.Create(CultureInfo.InvariantCulture, $" ({ratio:0.00}x)");
        }

        return cell.Spread <= Steady ? text : $"{text} [{Figure(cell.Figures[0])} to {Figure(cell.Figures[^1])}]";
    }

    private static string Times(Cell cell) => cell.Times is { } times
        ? $"{Figure(times.Dom0 / 1000)} + {Figure(times.Client / 1000)} + {Figure(times.Server / 1000)}"
        : "-";

    private static string Bare(double? number) => number is { } known && double.IsFinite(known) ? known.ToString("0.####", CultureInfo.InvariantCulture) : "";
}
