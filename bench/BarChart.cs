using System.Globalization;
using System.Text;

namespace XenLoop.Bench;

/// <summary>Draws the same measurements on several hosts as bars side by side, in SVG: a panel for each host, a group for each measurement.</summary>
internal static class BarChart
{
    private const int Width = 960;
    private const int PanelHeight = 230;
    private const int Left = 60;
    private const int Right = 16;
    private const int Top = 64;
    private const int PanelTop = 30;
    private const int PanelBottom = 34;

    private static readonly string[] _colours = ["#9aa0a6", "#0b5cad", "#5fa8d3", "#e07a1f"];

    /// <param name="title">What all panels show, with its unit.</param>
    /// <param name="tables">A panel each; all with the same ways.</param>
    /// <param name="label">The name of a measurement's group; null leaves the measurement out.</param>
    public static string Svg(string title, IReadOnlyList<Table> tables, Func<Measurement, string?> label)
    {
        int height = Top + (tables.Count * PanelHeight);
        StringBuilder svg = new();
        // A background of its own, for pages that are dark.
        Add($"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {Width} {height}" font-family="sans-serif" font-size="12" fill="#222">""");
        Add($"""<title>{title}</title>""");
        Add($"""<rect width="{Width}" height="{height}" fill="white"/>""");
        Add($"""<text x="{Left}" y="24" font-size="15">{title}</text>""");
        Way[] ways = tables[0].Ways;
        for (int i = 0; i < ways.Length; i++)
        {
            Add($"""<rect x="{Left + (i * 110)}" y="36" width="12" height="12" fill="{_colours[i]}"/><text x="{Left + 18 + (i * 110)}" y="46">{ways[i].Name}</text>""");
        }

        for (int i = 0; i < tables.Count; i++)
        {
            Panel(tables[i], Top + (i * PanelHeight));
        }

        Add($"</svg>");
        return svg.ToString();

        void Panel(Table table, int y)
        {
            (string Label, Cell[] Cells)[] groups = [.. table.Rows.Where(row => label(row.Measurement) is not null).Select(row => (label(row.Measurement)!, row.Cells))];
            double most = groups.SelectMany(group => group.Cells).Select(cell => cell.Median).Where(double.IsFinite).DefaultIfEmpty(1).Max();
            double grid = TimeChart.RoundUp(most / 4);
            double ceiling = grid * Math.Ceiling(1.08 * most / grid);
            double bottom = y + PanelHeight - PanelBottom;
            double Y(double value) => bottom - (value / ceiling * (PanelHeight - PanelTop - PanelBottom));
            Add($"""<text x="{Left}" y="{y + 18}" font-weight="bold">{table.Host.Description}</text>""");
            for (double value = 0; value <= ceiling; value += grid)
            {
                Add($"""<path d="M{Left} {Y(value):0.0}H{Width - Right}" stroke="#ddd"/><text x="{Left - 8}" y="{Y(value) + 4:0.0}" text-anchor="end">{value:0.##}</text>""");
            }

            double groupWidth = (double)(Width - Left - Right) / groups.Length;
            double bar = Math.Min(36, 0.8 * groupWidth / ways.Length);
            for (int g = 0; g < groups.Length; g++)
            {
                double middle = Left + ((g + 0.5) * groupWidth);
                Add($"""<text x="{middle:0.0}" y="{bottom + 18:0.0}" text-anchor="middle">{groups[g].Label}</text>""");
                for (int w = 0; w < ways.Length; w++)
                {
                    double value = groups[g].Cells[w].Median;
                    double x = middle + ((w - (ways.Length / 2.0)) * bar);
                    if (double.IsFinite(value))
                    {
                        Add($"""<rect x="{x:0.0}" y="{Y(value):0.0}" width="{bar - 2:0.0}" height="{bottom - Y(value):0.0}" fill="{_colours[w]}"/>""");
                        Add($"""<text x="{x + (bar / 2) - 1:0.0}" y="{Y(value) - 3:0.0}" text-anchor="middle" font-size="9">{Report.Figure(value)}</text>""");
                    }
                }
            }
        }

        void Add(FormattableString element) => svg.AppendLine(element.ToString(CultureInfo.InvariantCulture));
    }
}
