using System.Globalization;
using System.Net;
using System.Text;
using System.Text.RegularExpressions;

namespace XenLoop.Tests.Lab;

/// <summary>Draws as SVG what a terminal shows.</summary>
internal static class TerminalPicture
{
    private const double Width = 8.4;
    private const double Height = 18;
    private const double Margin = 14;

    /// <param name="command">What was typed.</param>
    /// <param name="screen">The lines, with the escape sequences of colours.</param>
    public static string Draw(string command, string screen)
    {
        string[] lines = [$"\e[2m#\e[0m {command}", .. screen.TrimEnd().Split('\n').Select(l => l.TrimEnd('\r'))];
        StringBuilder text = new();
        int columns = 0;
        for (int i = 0; i < lines.Length; i++)
        {
            string tone = "";
            int column = 0;
            // Escape sequences, and words with single spaces between them: each with a place of its own, whatever the viewer's font is.
            foreach (Match part in Regex.Matches(lines[i], @"\e\[(?<tone>\d*)m|(?<words>[^\e ]+( [^\e ]+)*)| +"))
            {
                if (part.Value[0] == '\e')
                {
                    tone = part.Groups["tone"].Value switch { "32" => "good", "31" => "bad", "2" => "faint", _ => "" };
                    continue;
                }

                if (part.Groups["words"].Success)
                {
                    text.Append(CultureInfo.InvariantCulture, $"""<text x="{Margin + (Width * column):0.#}" y="{Margin + (Height * (i + 0.75)):0.#}" textLength="{Width * part.Length:0.#}" class="{tone}">{WebUtility.HtmlEncode(part.Value)}</text>""").Append('\n');
                }

                column += part.Length;
            }

            columns = Math.Max(columns, column);
        }

        double width = (2 * Margin) + (Width * columns), height = (2 * Margin) + (Height * lines.Length);
        return string.Create(CultureInfo.InvariantCulture, $$"""
            <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{width:0}} {{height:0}}" width="{{width:0}}" height="{{height:0}}">
            <style>text { font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #d8d8d8 } .good { fill: #4ec77a } .bad { fill: #f27a6d } .faint { fill: #8a8f98 }</style>
            <rect width="100%" height="100%" rx="8" fill="#16191d"/>
            {{text}}</svg>

            """);
    }
}
