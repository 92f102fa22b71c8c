using System.Globalization;
using XenLoop.Rig;

namespace XenLoop.Bench;

/// <summary>
/// Compares the instructions that a whole host with one processor spends on a round trip and on 64 KiB with those on record. They are the same from run to run, whatever
/// else the machine does, so that a rise is a change of the code.
/// </summary>
internal static class Gate
{
    /// <summary>How much more than on record is too much.</summary>
    private const double Most = 1.05;

    private static readonly string[] _measured = ["ping", "tcp_65536_1"];

    /// <param name="file">The record: lines of measurement and instructions for each unit of work.</param>
    /// <param name="record">Write the record instead.</param>
    /// <returns>Exit code: 0 if nothing has risen too much.</returns>
    public static async Task<int> RunAsync(string file, bool record)
    {
        if (!await XenHost.PrepareAsync())
        {
            Console.WriteLine("Instructions are not compared: they were recorded with the QEMU that the rig builds, which was not possible here.");
            return 0;
        }

        Measurement[] set = [.. Measurements.All.Where(m => _measured.Contains(m.Key))];
        Table table = await Compare.RunAsync(BenchHost.One, GuestKind.Pvh, set, [Way.Default]);
        // Both keep the one processor busy, on which an instruction takes a nanosecond: the time is the instructions. (What Xen counts for the domains has in it,
        // besides, what starting a program takes, which differs by more than a twentieth of 300 pings.)
        Dictionary<string, double> spent = table.Rows.ToDictionary(row => row.Measurement.Key, row => row.Cells[0].Median is var median && row.Measurement.IsTime
            ? 1000 * median
            : 65536 * 8 / median);
        if (record)
        {
            await File.WriteAllLinesAsync(file, ["measurement,instructions", .. spent.Select(s => string.Create(CultureInfo.InvariantCulture, $"{s.Key},{s.Value:0}"))]);
            return 0;
        }

        bool risen = false;
        foreach (string[] line in (await File.ReadAllLinesAsync(file)).Skip(1).Select(line => line.Split(',')))
        {
            double recorded = double.Parse(line[1], CultureInfo.InvariantCulture);
            double ratio = spent[line[0]] / recorded;
            // Nor is a figure that is none.
            risen |= !(ratio <= Most);
            Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{line[0]}: {spent[line[0]]:0} instructions, on record {recorded:0}: {ratio:0.000}x{(!(ratio <= Most) ? ", too many" : ratio < 2 - Most ? ": record it (--record)" : "")}"));
        }

        return risen ? 1 : 0;
    }
}
