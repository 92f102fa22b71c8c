using System.Globalization;
using System.Text;

namespace XenLoop.Command;

/// <summary>How a cell is meant, for terminals that have colours.</summary>
internal enum Tone
{
    Plain,
    Good,
    Bad,
    Faint,
}

/// <summary>One cell of a table.</summary>
internal readonly record struct Cell(string Text, Tone Tone = Tone.Plain)
{
    public static implicit operator Cell(string text) => new(text);
}

/// <summary>
/// Lines of text in columns. What is in the cells comes from other domains as well: nothing in it reaches the terminal as anything but
/// characters.
/// </summary>
/// <param name="headings">Of the columns. One that is empty in all rows is left out.</param>
internal sealed class Table(params string[] headings)
{
    private const string Gap = "  ";

    private readonly List<Cell[]> _rows = [];

    public int Count => _rows.Count;

    public void Add(params Cell[] cells) => _rows.Add([.. cells.Select(c => c with { Text = Plain(c.Text) })]);

    /// <summary>The lines.</summary>
    /// <param name="indent">Before each.</param>
    /// <param name="coloured">With escape sequences for the tones.</param>
    public string Draw(string indent, bool coloured)
    {
        int[] columns = [.. Enumerable.Range(0, headings.Length).Where(i => _rows.Any(r => r[i].Text.Length > 0))];
        int[] widths = [.. headings.Select((h, i) => Math.Max(h.Length, _rows.Count == 0 ? 0 : _rows.Max(r => r[i].Text.Length)))];
        StringBuilder text = new();
        foreach (Cell[] row in _rows.Prepend([.. headings.Select(h => new Cell(h, Tone.Faint))]))
        {
            StringBuilder line = new(indent);
            foreach (int column in columns)
            {
                Cell cell = row[column];
                line.Append(Paint(column == columns[^1] ? cell.Text : cell.Text.PadRight(widths[column]), cell.Tone, coloured));
                line.Append(column == columns[^1] ? "" : Gap);
            }

            text.Append(coloured ? line : new StringBuilder(line.ToString().TrimEnd())).Append('\n');
        }

        return text.ToString();
    }

    public static string Paint(string text, Tone tone, bool coloured) => !coloured || tone == Tone.Plain || text.Length == 0
        ? text
        : $"\e[{tone switch { Tone.Good => "32", Tone.Bad => "31", _ => "2" }}m{text}\e[0m";

    /// <summary>Without anything that a terminal would obey, or that would turn the line around.</summary>
    public static string Plain(string text) => string.Concat(text.Select(c =>
        char.IsControl(c) || char.GetUnicodeCategory(c) is UnicodeCategory.Format or UnicodeCategory.LineSeparator or UnicodeCategory.ParagraphSeparator ? '?' : c));
}
