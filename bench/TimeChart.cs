using System.Globalization;
using System.Text;

namespace XenLoop.Bench;

/// <summary>Draws a rate over time, with its phases, as an SVG picture.</summary>
internal static class TimeChart
{
    private const int Width = 960;
    private const int Height = 400;
    private const int Left = 70;
    private const int Right = 20;
    private const int Top = 56;
    private const int Bottom = 54;

    /// <param name="bins">When each bin begins, in seconds, and the rate in it; all of the same length.</param>
    /// <param name="phases">In order, the first from 0 on.</param>
    public static string Svg((double Time, double Rate)[] bins, IReadOnlyList<Phase> phases)
    {
        double step = bins[1].Time - bins[0].Time;
        double end = phases[^1].End;
        // With room for the marks above the line.
        double grid = RoundUp(bins.Max(bin => bin.Rate) / 6);
        double most = grid * Math.Ceiling(1.25 * bins.Max(bin => bin.Rate) / grid);
        double X(double time) => Left + (time / end * (Width - Left - Right));
        double Y(double rate) => Height - Bottom - (rate / most * (Height - Top - Bottom));
        StringBuilder svg = new();

        // A background of its own, for pages that are dark.
        Add($"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {Width} {Height}" font-family="sans-serif" font-size="12" fill="#222">""");
        Add($"""<title>Transactions per second while a guest migrates in and out</title>""");
        Add($"""<rect width="{Width}" height="{Height}" fill="white"/>""");
        foreach (Phase phase in phases)
        {
            if (phase.Name is null)
            {
                Add($"""<rect x="{X(phase.Begin):0.0}" y="{Top}" width="{X(phase.End) - X(phase.Begin):0.0}" height="{Height - Top - Bottom}" fill="#eee"/>""");
                continue;
            }

            double middle = (X(phase.Begin) + X(phase.End)) / 2;
            double mean = bins.Where(bin => bin.Time >= phase.Begin && bin.Time + step <= phase.End).Select(bin => bin.Rate).DefaultIfEmpty(0).Average();
            Add($"""<text x="{middle:0.0}" y="{Top - 26}" text-anchor="middle">{phase.Name}</text>""");
            Add($"""<text x="{middle:0.0}" y="{Top - 10}" text-anchor="middle" fill="#666">{mean:0}/s</text>""");
        }

        for (double rate = 0; rate <= most; rate += grid)
        {
            Add($"""<path d="M{Left} {Y(rate):0.0}H{Width - Right}" stroke="#ccc"/><text x="{Left - 8}" y="{Y(rate) + 4:0.0}" text-anchor="end">{rate:0}</text>""");
        }

        double tick = RoundUp(end / 12);
        for (double time = 0; time <= end; time += tick)
        {
            Add($"""<path d="M{X(time):0.0} {Height - Bottom}v5" stroke="#222"/><text x="{X(time):0.0}" y="{Height - Bottom + 18}" text-anchor="middle">{time:0}</text>""");
        }

        string line = string.Concat(bins.Select(bin => string.Create(CultureInfo.InvariantCulture, $"{X(bin.Time):0.0},{Y(bin.Rate):0.0} {X(bin.Time + step):0.0},{Y(bin.Rate):0.0} ")));
        Add($"""<polyline points="{line.TrimEnd()}" fill="none" stroke="#0b5cad" stroke-width="1.5"/>""");

        foreach (Phase phase in phases.Skip(1))
        {
            Add($"""<path d="M{X(phase.Begin):0.0} {Top}V{Height - Bottom}" stroke="#888" stroke-dasharray="4 3"/>""");
            Add($"""<text transform="translate({X(phase.Begin) - 4:0.0} {Top + 6}) rotate(-90)" text-anchor="end" fill="#666" stroke="white" stroke-width="3" paint-order="stroke">{phase.Mark}</text>""");
        }

        Add($"""<text x="{(Left + Width - Right) / 2}" y="{Height - 12}" text-anchor="middle">seconds on the client's clock</text>""");
        Add($"""<text transform="translate(18 {(Top + Height - Bottom) / 2}) rotate(-90)" text-anchor="middle">TCP transactions per second</text>""");
        Add($"</svg>");
        return svg.ToString();

        void Add(FormattableString element) => svg.AppendLine(element.ToString(CultureInfo.InvariantCulture));
    }

    /// <summary>The next number of 1, 2, 2.5, 5 times a power of ten.</summary>
    internal static double RoundUp(double number)
    {
        double power = Math.Pow(10, Math.Floor(Math.Log10(number)));
        return power * new[] { 1, 2, 2.5, 5, 10 }.First(step => step * power >= number);
    }
}
