using System.Globalization;

namespace XenLoop.Command;

/// <summary>Figures as people read them.</summary>
internal static class Quantity
{
    /// <summary>Three digits and a prefix of a thousand: "12.3k".</summary>
    public static string Short(double value)
    {
        string[] prefixes = ["", "k", "M", "G", "T"];
        int prefix = 0;
        // What rounds to a thousand is one of the next.
        while (value >= 999.5 && prefix < prefixes.Length - 1)
        {
            value /= 1000;
            prefix++;
        }

        string format = prefix == 0 && value == Math.Floor(value) ? "0" : value >= 99.95 ? "0" : value >= 9.995 ? "0.0" : "0.00";
        return value.ToString(format, CultureInfo.InvariantCulture) + prefixes[prefix];
    }

    /// <summary>The two largest units: "3d 4h".</summary>
    /// <param name="seconds">At least 0.</param>
    public static string Time(double seconds)
    {
        long whole = (long)seconds;
        return whole switch
        {
            < 60 => $"{whole}s",
            < 3600 => $"{whole / 60}m {whole % 60}s",
            < 86_400 => $"{whole / 3600}h {whole / 60 % 60}m",
            _ => $"{whole / 86_400}d {whole / 3600 % 24}h",
        };
    }

    /// <summary>A part of a whole in percent, rounded towards the middle: 100 % is all, 0 % nothing.</summary>
    public static string Share(double part, double whole) => whole <= 0 ? ""
        : part >= whole ? "100%"
        : part <= 0 ? "0%"
        : Math.Clamp(100 * part / whole, 0.1, 99.9).ToString("0.0", CultureInfo.InvariantCulture) + "%";
}
