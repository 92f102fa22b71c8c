using System.Text.RegularExpressions;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>
/// The picture of the rooms in docs/architecture.md is drawn from the code, and no arrow in it points up. A room is a namespace of
/// src/Daemon or src/Interop, or another project of src or lab; it has an arrow to what it names, by a using, by a qualified name, by a
/// type of a namespace around it, or as a project. The order of the rooms is the picture's own: whoever needs an arrow up has to say why
/// the house should stand otherwise.
/// </summary>
public sealed partial class RoomsTests
{
    private const string Begin = "<!-- The rooms, drawn by tests/Unit/RoomsTests.cs -->";
    private const string End = "<!-- The end of the rooms -->";

    [Fact]
    public void The_picture_of_the_rooms_is_as_the_code_is()
    {
        string document = File.ReadAllText(Path.Combine(Root(), "docs", "architecture.md"));
        string picture = document.Split(Begin)[1].Split(End)[0].Trim('\n');
        string[] order = [.. picture.Split('\n').Select(l => l.Trim().Split(' ')[0])];
        Dictionary<string, HashSet<string>> arrows = Arrows(Sources(), References());
        // First, for a new arrow makes another picture as well, and this is not to be drawn.
        Assert.Empty(Upward(order, arrows));
        string drawn = Draw(order, arrows);
        Assert.True(picture == drawn, $"docs/architecture.md has another picture than the code; this is the code's:\n{drawn}");
    }

    [Fact]
    public void An_arrow_up_is_found_however_it_is_written()
    {
        string[] order = ["Upper", "Upper.Inner", "Middle", "Lower"];
        foreach ((string room, string code, string? wrong) in new[]
        {
            ("Upper", "using XenLoop.Lower;\nclass A { Middle.M? _m; }", null),
            ("Lower", "using XenLoop.Middle;", "Lower -> Middle"),
            ("Lower", "using static XenLoop.Upper.U;", "Lower -> Upper"),
            ("Lower", "class A { Middle.M? _m; }", "Lower -> Middle"),
            ("Lower", "class A { XenLoop.Upper.Inner.I? _i; }", "Lower -> Upper.Inner"),
            ("Upper.Inner", "class A(U u);", "Upper.Inner -> Upper"),
            ("Lower", "// using XenLoop.Middle; Middle.M\nclass A { string _s = \"Middle.M\"; }", null),
            ("Lower", "class A { int _i = b.Middle.M; }", null),
        })
        {
            Dictionary<string, HashSet<string>> arrows = Arrows(
                [("Upper", "class U;"), ("Upper.Inner", "class I;"), ("Middle", "class M;"), ("Lower", "class L;"), (room, code)], []);
            string[] expected = wrong is null ? [] : [wrong];
            Assert.Equal(expected, Upward(order, arrows));
        }
    }

    /// <summary>Where a native call may be made.</summary>
    [Fact]
    public void Native_calls_are_made_in_Interop_alone()
    {
        foreach (string file in Files("src").Where(f => !f.Contains("/src/Interop/", StringComparison.Ordinal)))
        {
            Match call = NativeCall().Match(Code(File.ReadAllText(file)));
            Assert.False(call.Success, $"{file}: {call.Value}");
        }
    }

    private static string Draw(string[] order, Dictionary<string, HashSet<string>> arrows) => string.Join('\n', order
        .Concat(arrows.Keys.Except(order).Order(StringComparer.Ordinal))
        .Where(arrows.ContainsKey)
        .Select(room => $"    {room,-16}{(arrows[room].Count == 0 ? "" : $"-> {string.Join(", ", arrows[room].OrderBy(r => Array.IndexOf(order, r)))}")}".TrimEnd()));

    private static string[] Upward(string[] order, Dictionary<string, HashSet<string>> arrows) =>
        [.. arrows.SelectMany(a => a.Value.Where(to => Array.IndexOf(order, to) <= Array.IndexOf(order, a.Key)).Select(to => $"{a.Key} -> {to}"))];

    private static Dictionary<string, HashSet<string>> Arrows(IEnumerable<(string Room, string Text)> sources, IEnumerable<(string From, string To)> references)
    {
        (string Room, string Code)[] all = [.. sources.Select(s => (s.Room, Code(s.Text)))];
        Dictionary<string, HashSet<string>> arrows = all.Select(s => s.Room).Distinct().ToDictionary(r => r, _ => new HashSet<string>());
        ILookup<string, string> types = all.SelectMany(s => TypeName().Matches(s.Code).Select(m => (s.Room, Name: m.Groups[1].Value))).ToLookup(t => t.Room, t => t.Name);
        foreach ((string room, string code) in all)
        {
            foreach (Match match in Using().Matches(code))
            {
                // The room, or a type in it.
                string name = match.Groups[1].Value;
                Add(room, arrows.ContainsKey(name) ? name : name.Contains('.', StringComparison.Ordinal) ? name[..name.LastIndexOf('.')] : "");
            }

        }

        foreach (string other in arrows.Keys.Where(o => types[o].Any()))
        {
            string name = $@"(?:{string.Join('|', types[other].Distinct())})\b";
            Regex alone = new($@"(?<![\w.]){name}"), qualified = new($@"(?<![\w.])(?:XenLoop\.)?{Regex.Escape(other)}\.{name}");
            foreach ((string room, string code) in all)
            {
                if (qualified.IsMatch(code) || (room.StartsWith($"{other}.", StringComparison.Ordinal) && alone.IsMatch(code)))
                {
                    Add(room, other);
                }
            }
        }

        foreach ((string from, string to) in references)
        {
            Add(from, to);
        }

        return arrows;

        void Add(string from, string to)
        {
            if (from != to && arrows.ContainsKey(to))
            {
                arrows[from].Add(to);
            }
        }
    }

    /// <summary>Each source with its room.</summary>
    private static IEnumerable<(string Room, string Text)> Sources() => Files("src").Concat(Files("lab")).Select(file =>
    {
        string text = File.ReadAllText(file);
        string project = Path.GetFileNameWithoutExtension(ProjectOf(file));
        string space = Namespace().Match(text).Groups[1].Value;
        return (project is "Daemon" or "Interop" && space.Length > 0 ? space : project, text);
    });

    /// <summary>Which project refers to which. Daemon and Interop are told of by their namespaces.</summary>
    private static IEnumerable<(string From, string To)> References() =>
        from file in Directory.EnumerateFiles(Root(), "*.csproj", SearchOption.AllDirectories)
        let project = Path.GetFileNameWithoutExtension(file)
        where (file.Contains("/src/", StringComparison.Ordinal) || file.Contains("/lab/", StringComparison.Ordinal)) && project is not ("Daemon" or "Interop")
        from Match match in ProjectReference().Matches(File.ReadAllText(file))
        select (project, match.Groups[1].Value);

    private static string ProjectOf(string file)
    {
        DirectoryInfo? folder = new FileInfo(file).Directory;
        while (folder is not null)
        {
            if (folder.EnumerateFiles("*.csproj").FirstOrDefault() is { } project)
            {
                return project.Name;
            }

            folder = folder.Parent;
        }

        throw new InvalidOperationException($"{file} belongs to no project.");
    }

    private static IEnumerable<string> Files(string folder) => Directory.EnumerateFiles(Path.Combine(Root(), folder), "*.cs", SearchOption.AllDirectories)
        .Where(f => !f.Contains("/obj/", StringComparison.Ordinal) && !f.Contains("/bin/", StringComparison.Ordinal));

    /// <summary>Without comments and the contents of strings.</summary>
    private static string Code(string text) => CommentOrString().Replace(text, "\"\"");

    internal static string Root()
    {
        DirectoryInfo? directory = new(AppContext.BaseDirectory);
        while (directory is not null && !File.Exists(Path.Combine(directory.FullName, "XenLoop.sln")))
        {
            directory = directory.Parent;
        }

        return directory?.FullName ?? throw new InvalidOperationException($"{AppContext.BaseDirectory} is not below a folder with XenLoop.sln.");
    }

    [GeneratedRegex("\"\"\"[\\s\\S]*?\"\"\"|\"(\\\\.|[^\"\\\\\\n])*\"|//[^\\n]*")]
    private static partial Regex CommentOrString();

    [GeneratedRegex(@"^using (?:static )?XenLoop\.([\w.]+);", RegexOptions.Multiline)]
    private static partial Regex Using();

    [GeneratedRegex(@"^namespace XenLoop\.([\w.]+);", RegexOptions.Multiline)]
    private static partial Regex Namespace();

    [GeneratedRegex(@"\b(?:class|struct|interface|enum|record(?: struct)?|delegate [\w?]+) (\w+)")]
    private static partial Regex TypeName();

    [GeneratedRegex(@"<ProjectReference Include=""[^""]*?(\w+)\.csproj""")]
    private static partial Regex ProjectReference();

    [GeneratedRegex(@"\bLibC\.\w+\(|\[LibraryImport|\[DllImport|delegate\* unmanaged|using static Tmds\.Linux")]
    private static partial Regex NativeCall();
}
