using System.Buffers;
using System.Text;
using Tomlyn;
using Tomlyn.Parsing;
using Tomlyn.Syntax;
using XenLoop.Interop;

namespace XenLoop.Settings;

/// <summary>
/// Reads the configuration from TOML's syntax tree: it has the place of everything, and nothing is mapped by reflection.
/// The first mistake ends it.
/// </summary>
internal sealed class ConfigurationReader
{
    private const int MaxBytes = 1 << 20;
    private const string Groups = "policy.groups";

    /// <summary>The keys of each table. A group's name is the user's choice, so the groups' table has none.</summary>
    private static readonly Dictionary<string, string[]> _tables = new()
    {
        [""] = ["guest", "policy"],
        ["guest"] = ["enabled", "packets-per-second", "idle-seconds", "max-channels", "max-memory-mib"],
        ["policy"] = ["default", "allow", "deny", "groups", "ignore-restrictions", "ignore-restrictions-on"],
        [Groups] = [],
    };

    private readonly string _path;

    // Where each key and table was defined. TOML: a table is defined in one place, be it a header, an inline table, or
    // dotted keys of one other table.
    private readonly Dictionary<string, SyntaxNode> _keys = [];
    private readonly Dictionary<string, (SyntaxNode Definer, SyntaxNode Place)> _definers = [];

    private readonly Dictionary<string, Glob[]> _groups = [];
    private readonly List<Rule> _allow = [];
    private readonly List<Rule> _deny = [];
    private readonly List<Rule> _unrestricted = [];
    private Glob[] _unrestrictedPlaces = [];
    private GuestSettings _guest = new();
    private bool _allowedByDefault = true;

    private ConfigurationReader(string path) => _path = path;

    /// <summary>The file's text, or null when there is no such file.</summary>
    /// <exception cref="ConfigurationException">It cannot be read, is too large, or is not UTF-8.</exception>
    public static string? ReadText(string path)
    {
        byte[] bytes;
        int length;
        try
        {
            using FileStream file = new(path, FileMode.Open, FileAccess.Read, FileShare.ReadWrite, bufferSize: 0);
            // One byte more tells that there is more. A pipe, and what /proc has, does not tell its length.
            bytes = new byte[(file.CanSeek && file.Length > 0 ? Math.Min(file.Length, MaxBytes) : MaxBytes) + 1];
            length = file.ReadAtLeast(bytes, bytes.Length, throwOnEndOfStream: false);
        }
        catch (ArgumentException)
        {
            throw new ConfigurationException($"\"{path}\"", "is no name of a file; give one");
        }
        catch (Exception e) when (e is FileNotFoundException or DirectoryNotFoundException)
        {
            return null;
        }
        catch (UnauthorizedAccessException)
        {
            throw new ConfigurationException(path, "this user may not read it, or it is a folder; it must be a file, and you root");
        }
        catch (IOException e)
        {
            throw new ConfigurationException(path, $"cannot be read: {Errno.Describe(e.HResult)}; see to the file and its file system");
        }

        return Decode(path, bytes.AsSpan(0, length));
    }

    /// <summary>The text of what a file holds.</summary>
    /// <exception cref="ConfigurationException">It is too large, or is not UTF-8.</exception>
    internal static string Decode(string path, ReadOnlySpan<byte> text)
    {
        if (text.Length > MaxBytes)
        {
            throw new ConfigurationException(path, "larger than 1 MiB; is it the right file? Globs shorten lists of guests");
        }

        ReadOnlySpan<byte> mark = Encoding.UTF8.Preamble;
        text = text.StartsWith(mark) ? text[mark.Length..] : text;
        CheckUtf8(path, text);
        return Encoding.UTF8.GetString(text);
    }

    /// <exception cref="ConfigurationException">Something in it is wrong.</exception>
    public static Configuration Parse(string path, string text)
    {
        DocumentSyntax document;
        try
        {
            // Its own check of definitions would come before ours, and cites whole tables.
            document = SyntaxParser.Parse(text, path, validate: false);
        }
        catch (TomlException e)
        {
            throw new ConfigurationException(path, e.Line ?? 1, e.Column ?? 1, "lists or tables are nested too deeply; no setting needs more than two levels");
        }
        catch (ArgumentOutOfRangeException)
        {
            // Tomlyn's way to say that a file ends within an escape sequence.
            throw new ConfigurationException(path, "not TOML: its last text has no end; close it with a quote");
        }

        return new ConfigurationReader(path).Read(document);
    }

    private static void CheckUtf8(string path, ReadOnlySpan<byte> text)
    {
        int line = 1, column = 1;
        while (!text.IsEmpty)
        {
            if (Rune.DecodeFromUtf8(text, out Rune rune, out int consumed) != OperationStatus.Done)
            {
                throw new ConfigurationException(path, line, column, "not UTF-8; save the file in that encoding");
            }

            (line, column) = rune.Value == '\n' ? (line + 1, 1) : (line, column + 1);
            text = text[consumed..];
        }
    }

    private Configuration Read(DocumentSyntax document)
    {
        foreach (DiagnosticMessage message in document.Diagnostics.Where(d => d.Kind == DiagnosticMessageKind.Error))
        {
            throw At(message.Span.Start, $"not TOML: {message.Message.TrimEnd('.')}; a setting is a line \"key = value\", texts stand in quotes, lists in brackets (see xenloopd.toml(5))");
        }

        foreach (KeyValueSyntax pair in document.KeyValues)
        {
            ReadPair("", pair, document);
        }

        foreach (TableSyntaxBase table in document.Tables)
        {
            string name = EnterHeader(table);
            foreach (KeyValueSyntax pair in table.Items)
            {
                ReadPair(name, pair, table);
            }
        }

        // Not before now: groups may be defined after the rules that name them.
        foreach (Rule rule in _allow.Concat(_deny).Concat(_unrestricted))
        {
            CheckGroup(rule.One, rule.OneAt);
            CheckGroup(rule.Other, rule.OtherAt);
        }

        return new()
        {
            Path = _path,
            Guest = _guest,
            Policy = new(_groups, _allow.Select(r => (r.One, r.Other)), _deny.Select(r => (r.One, r.Other)))
            {
                AllowedByDefault = _allowedByDefault,
                UnrestrictedGroups = [.. _unrestricted.Select(u => u.One)],
                UnrestrictedPlaces = _unrestrictedPlaces,
            },
        };
    }

    private string EnterHeader(TableSyntaxBase table)
    {
        string name = "";
        foreach ((string part, SyntaxNode place) in Parts(table.Name!))
        {
            name = Enter(name, part, place);
        }

        if (table is TableArraySyntax)
        {
            throw At(table, $"[[{name}]] is a list of tables; write [{name}]");
        }

        Define(name, table, table);
        return name;
    }

    private void ReadPair(string table, KeyValueSyntax pair, SyntaxNode definer)
    {
        List<(string Name, SyntaxNode Place)> parts = Parts(pair.Key!);
        foreach ((string part, SyntaxNode place) in parts.SkipLast(1))
        {
            table = Enter(table, part, place);
            Define(table, definer, place);
        }

        (string key, SyntaxNode at) = parts[^1];
        if (_tables.ContainsKey(Join(table, key)))
        {
            string inner = Enter(table, key, at);
            if (pair.Value is not InlineTableSyntax inline)
            {
                throw At(pair.Value!, $"\"{inner}\" is a table, not {Describe(pair.Value!)}; write [{inner}] and its settings below");
            }

            Define(inner, inline, at);
            foreach (InlineTableItemSyntax item in inline.Items)
            {
                ReadPair(inner, item.KeyValue!, inline);
            }

            return;
        }

        CheckKey(table, key, at);
        string name = Join(table, key);
        if (!_keys.TryAdd(name, at))
        {
            throw At(at, $"{(table == Groups ? $"the group \"{key}\"" : $"\"{key}\" in [{table}]")} is defined twice, first on line {Line(_keys[name])}; keep one");
        }

        Set(name, key, pair.Value!);
    }

    private void Set(string name, string key, ValueSyntax value)
    {
        switch (name)
        {
            case "guest.enabled":
                _guest = _guest with { Enabled = ReadBoolean(name, key, value) };
                break;
            case "guest.packets-per-second":
                _guest = _guest with { PacketsPerSecond = ReadNumber(name, value, 1_000_000) };
                break;
            case "guest.idle-seconds":
                _guest = _guest with { IdleSeconds = ReadNumber(name, value, 7 * 24 * 3600) };
                break;
            case "guest.max-channels":
                _guest = _guest with { MaxChannels = ReadNumber(name, value, GuestSettings.MostChannels) };
                break;
            case "guest.max-memory-mib":
                _guest = _guest with { MaxMemoryMiB = ReadNumber(name, value, 4096) };
                break;
            case "policy.default":
                _allowedByDefault = value is StringValueSyntax { Value: "allow" or "deny" } text
                    ? text.Value == "allow"
                    : throw At(value, $"\"policy.default\" is {Describe(value)}; write default = \"allow\" or default = \"deny\"");
                break;
            case "policy.allow":
                ReadRules(name, key, value, _allow);
                break;
            case "policy.deny":
                ReadRules(name, key, value, _deny);
                break;
            case "policy.ignore-restrictions":
                const string Remedy = "write the names of groups, ignore-restrictions = [\"one\"]; \"*\" is every guest";
                foreach (ValueSyntax item in Items(value, $"\"{name}\"", Remedy))
                {
                    string group = ReadText(item, $"an entry of \"{name}\"", Remedy);
                    _unrestricted.Add(new Rule(group, item, group, item));
                }

                break;
            case "policy.ignore-restrictions-on":
                _unrestrictedPlaces = ReadGlobs(value, $"\"{name}\"", "write globs of bridges or of vifs' interfaces, ignore-restrictions-on = [\"xenbr0\"]", "interface");
                break;
            default:
                ReadGroup(key, value);
                break;
        }
    }

    private bool ReadBoolean(string name, string key, ValueSyntax value) =>
        value is BooleanValueSyntax boolean
            ? boolean.Value
            : throw At(value, $"\"{name}\" is {Describe(value)}; write {key} = true or {key} = false, without quotes");

    private int ReadNumber(string name, ValueSyntax value, int max) => value switch
    {
        IntegerValueSyntax number when number.Value >= 1 && number.Value <= max => (int)number.Value,
        IntegerValueSyntax number => throw At(value, $"\"{name}\" is {number.Value}, out of range; write a whole number from 1 to {max}"),
        _ => throw At(value, $"\"{name}\" is {Describe(value)}; write a whole number from 1 to {max}, without quotes"),
    };

    private void ReadRules(string name, string key, ValueSyntax value, List<Rule> rules)
    {
        foreach (ValueSyntax item in Items(value, $"\"{name}\"", $"write pairs of groups, {key} = [[\"one\", \"other\"]]"))
        {
            const string Remedy = "a rule is a pair of groups, [\"one\", \"other\"], or one group twice for its members among themselves";
            List<ValueSyntax> pair = Items(item, $"an entry of \"{name}\"", Remedy);
            if (pair.Count != 2)
            {
                throw At(item, $"a rule with {pair.Count} {(pair.Count == 1 ? "entry" : "entries")}; {Remedy}");
            }

            rules.Add(new Rule(ReadText(pair[0], "a rule's entry", Remedy), pair[0], ReadText(pair[1], "a rule's entry", Remedy), pair[1]));
        }
    }

    private void ReadGroup(string group, ValueSyntax value)
    {
        string remedy = $"a group is a list of globs, {Quote(group)} = [\"web-*\"]";
        if (group == Policy.Everyone)
        {
            throw At(_keys[Join(Groups, group)], "\"*\" is the group of all guests and cannot be defined; choose another name");
        }

        _groups[group] = ReadGlobs(value, $"the group \"{group}\"", remedy, "guest");
    }

    private Glob[] ReadGlobs(ValueSyntax value, string what, string remedy, string kind)
    {
        List<Glob> globs = [];
        foreach (ValueSyntax item in Items(value, what, remedy))
        {
            string glob = ReadText(item, $"an entry of {what}", remedy);
            if (string.IsNullOrWhiteSpace(glob))
            {
                throw At(item, $"an empty glob in {what}, which would match no {kind}; write a name, or \"*\" for every {kind}, or remove it");
            }

            // Somebody who means a set of characters must not get a rule that silently matches nothing.
            if (glob.AsSpan().IndexOfAny("[]{}\\") >= 0)
            {
                throw At(item, $"the glob \"{glob}\" has brackets or a backslash, which mean nothing here; use * and ?, or several globs");
            }

            globs.Add(new Glob(glob));
        }

        return [.. globs];
    }

    private void CheckGroup(string group, SyntaxNode at)
    {
        if (group == Policy.Everyone || _groups.ContainsKey(group))
        {
            return;
        }

        // A glob where a group belongs is the likely mistake.
        string remedy = group.AsSpan().IndexOfAny("*?") >= 0
            ? $"; rules name groups, not globs: define one in [{Groups}], such as mygroup = [\"{group}\"]"
            : Suggest(group, _groups.Keys) ?? $"; define it in [{Groups}]";
        throw At(at, $"unknown group \"{group}\"{remedy}");
    }

    /// <summary>One step down; a table that there is not is an error.</summary>
    private string Enter(string table, string name, SyntaxNode place)
    {
        string inner = Join(table, name);
        if (_tables.ContainsKey(inner))
        {
            return inner;
        }

        if (table == Groups)
        {
            throw At(place, $"the group \"{name}\" is a list of globs, not a table; a name with dots stands in quotes");
        }

        CheckKey(table, name, place);
        throw At(place, $"\"{inner}\" is a setting, not a table; write {name} = ... below [{table}]");
    }

    private void Define(string table, SyntaxNode definer, SyntaxNode place)
    {
        if (!_definers.TryAdd(table, (definer, place)) && _definers[table].Definer != definer)
        {
            throw At(place, $"the table [{table}] is defined twice, first on line {Line(_definers[table].Place)}; put all its settings in one place");
        }
    }

    private void CheckKey(string table, string key, SyntaxNode place)
    {
        string[] known = _tables[table];
        if (table == Groups || known.Contains(key))
        {
            return;
        }

        string what = table.Length == 0 ? $"unknown table or key \"{key}\"" : $"unknown key \"{key}\" in [{table}]";
        string? home = _tables.FirstOrDefault(t => t.Value.Contains(key)).Key;
        string remedy = home switch
        {
            null => $"{Suggest(key, known) ?? ";"} known {(table.Length == 0 ? "tables" : "keys")}: {string.Join(", ", known)}",
            "" => $"; [{key}] is a table of its own",
            _ => $"; it belongs in [{home}]",
        };
        throw At(place, what + remedy);
    }

    private List<ValueSyntax> Items(ValueSyntax value, string what, string remedy) =>
        value is ArraySyntax array
            ? [.. array.Items.Select(i => i.Value!)]
            : throw At(value, $"{what} is {Describe(value)}, not a list; {remedy}");

    private string ReadText(ValueSyntax value, string what, string remedy) =>
        value is StringValueSyntax { Value: { } text }
            ? text
            : throw At(value, $"{what} is {Describe(value)}, not a text in quotes; {remedy}");

    private ConfigurationException At(SyntaxNode node, string problem) => At(node.Span.Start, problem);

    private ConfigurationException At(TextPosition place, string problem) => new(_path, place.Line + 1, place.Column + 1, problem);

    private static int Line(SyntaxNode node) => node.Span.Start.Line + 1;

    private static List<(string Name, SyntaxNode Place)> Parts(KeySyntax key) =>
        [(Name(key.Key!), key.Key!), .. key.DotKeys.Select(d => (Name(d.Key!), (SyntaxNode)d.Key!))];

    private static string Name(BareKeyOrStringValueSyntax key) => key switch
    {
        BareKeySyntax bare => bare.Key!.Text!,
        StringValueSyntax quoted => quoted.Value!,
        _ => key.ToString().Trim(),
    };

    private static string Join(string table, string name) => table.Length == 0 ? name : $"{table}.{name}";

    private static string Quote(string key) => BareKeySyntax.IsBareKey(key) ? key : $"\"{key}\"";

    private static string Describe(ValueSyntax value) => value switch
    {
        StringValueSyntax text => $"the text \"{text.Value}\"",
        BooleanValueSyntax boolean => boolean.Value ? "true" : "false",
        IntegerValueSyntax or FloatValueSyntax => $"the number {value.ToString().Trim()}",
        ArraySyntax => "a list",
        InlineTableSyntax => "a table",
        _ => "a date or time",
    };

    private static string? Suggest(string word, IEnumerable<string> known)
    {
        string? nearest = known.MinBy(k => Edits(word, k));
        return nearest is not null && Edits(word, nearest) <= Math.Max(1, word.Length / 3) ? $"; did you mean \"{nearest}\"?" : null;
    }

    /// <summary>Characters to insert, remove or replace to make one word the other (Levenshtein's distance).</summary>
    private static int Edits(string one, string other)
    {
        int[] previous = [.. Enumerable.Range(0, other.Length + 1)];
        for (int i = 0; i < one.Length; i++)
        {
            int[] current = new int[other.Length + 1];
            current[0] = i + 1;
            for (int j = 0; j < other.Length; j++)
            {
                int replaced = previous[j] + (char.ToLowerInvariant(one[i]) == char.ToLowerInvariant(other[j]) ? 0 : 1);
                current[j + 1] = Math.Min(replaced, Math.Min(previous[j + 1], current[j]) + 1);
            }

            previous = current;
        }

        return previous[other.Length];
    }

    private sealed record Rule(string One, SyntaxNode OneAt, string Other, SyntaxNode OtherAt);
}
