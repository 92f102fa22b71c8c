using System.Text;
using XenLoop.Settings;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The configuration file: what it may say, and what is said of its mistakes.</summary>
public sealed class ConfigurationTests : IDisposable
{
    private readonly string _path = Path.GetTempFileName();

    public void Dispose() => File.Delete(_path);

    [Fact]
    public void All_settings_are_read()
    {
        Configuration configuration = Load("""
            [guest]
            enabled = false
            packets-per-second = 100
            idle-seconds = 60
            max-channels = 1
            max-memory-mib = 2

            [policy]
            default = "deny"
            ignore-restrictions = ["db"]
            ignore-restrictions-on = ["xapi*", "vif7.0"]
            allow = [["web", "db"]]  # a group may be defined after the rule that names it

            [policy.groups]
            web = ["web-*"]
            db = [
              "db-*",
            ]
            """);
        Assert.Equal(_path, configuration.Path);
        Assert.Equal(
            new GuestSettings { Enabled = false, PacketsPerSecond = 100, IdleSeconds = 60, MaxChannels = 1, MaxMemoryMiB = 2 }, configuration.Guest);
        Assert.False(configuration.Policy.AllowedByDefault);
        Assert.True(configuration.Policy.MayMeet(new("web-1", ""), new("db-1", "")));
        Assert.False(configuration.Policy.MayMeet(new("web-1", ""), new("web-2", "")));
        Assert.True(configuration.Policy.IgnoresRestrictions(new("db-1", ""), "vif1.0", "0/xenbr0"));
        Assert.False(configuration.Policy.IgnoresRestrictions(new("web-1", ""), "vif1.0", "0/xenbr0"));
        Assert.True(configuration.Policy.IgnoresRestrictions(new("web-1", ""), "vif1.0", "0/xapi3"));
        Assert.True(configuration.Policy.IgnoresRestrictions(new("web-1", ""), "vif7.0", "0/xenbr0"));
    }

    [Theory]
    [InlineData("")]
    [InlineData("# nothing but a remark\r\n")]
    [InlineData("[guest]\n[policy]\n[policy.groups]\n")]
    [InlineData("\uFEFF[guest]\n")]
    public void What_is_left_out_has_its_default(string text)
    {
        Configuration configuration = Load(text);
        Assert.Equal(new GuestSettings(), configuration.Guest);
        Assert.True(configuration.Policy.MayMeet(new("a", ""), new("b", "")));
    }

    [Theory]
    [InlineData("guest = { enabled = false, idle-seconds = 7 }")]
    [InlineData("guest.enabled = false\nguest.idle-seconds = 7")]
    [InlineData("[guest]\n\"enabled\" = false\nidle-seconds = 0x7")]
    public void A_table_may_be_written_in_each_of_TOML_s_ways(string text) =>
        Assert.Equal(new GuestSettings { Enabled = false, IdleSeconds = 7 }, Load(text).Guest);

    [Fact]
    public void A_file_that_is_not_there_means_the_defaults_only_where_it_need_not_be()
    {
        Configuration configuration = Configuration.LoadOrDefaults("/nonexistent/xenloopd.toml");
        Assert.Null(configuration.Path);
        Assert.Equal(new GuestSettings(), configuration.Guest);
        Assert.Equal(
            "/nonexistent/xenloopd.toml: there is no such file; make one or name another",
            Assert.Throws<ConfigurationException>(() => Configuration.Load("/nonexistent/xenloopd.toml")).Message);
    }

    [Theory]
    // Syntax.
    [InlineData("[guest]\nenabled = yes", "2:11", "not TOML: Unexpected token `yes`", "texts stand in quotes")]
    [InlineData("[guest\nenabled = true", "1:7", "not TOML:", "see xenloopd.toml(5)")]
    [InlineData("[policy]\nallow = [[\"a\", \"b\"", "2:19", "not TOML:", "lists in brackets")]
    [InlineData("[policy]\n\ndefault = \"deny", "3:15", "not TOML:", "texts stand in quotes")]
    // Who is not to be restricted.
    [InlineData("[policy]\nignore-restrictions = \"web\"", "2:23", "\"policy.ignore-restrictions\" is the text \"web\", not a list", "write the names of groups")]
    [InlineData("[policy]\nignore-restrictions = [\"web\"]", "2:24", "unknown group \"web\"", "define it in [policy.groups]")]
    [InlineData("[policy]\nignore-restrictions-on = [\"\"]", "2:27", "an empty glob in \"policy.ignore-restrictions-on\"", "or remove it")]
    // Unknown keys and tables.
    [InlineData("[policy]\ndefualt = \"deny\"", "2:1", "unknown key \"defualt\" in [policy]", "did you mean \"default\"?")]
    [InlineData("[guest]\nidle_seconds = 5", "2:1", "unknown key \"idle_seconds\" in [guest]", "did you mean \"idle-seconds\"?")]
    [InlineData("[guest]\nspeed = 5", "2:1", "unknown key \"speed\" in [guest]", "known keys: enabled, packets-per-second, idle-seconds, max-channels, max-memory-mib")]
    [InlineData("guest = { max-chanels = 5 }", "1:11", "unknown key \"max-chanels\" in [guest]", "did you mean \"max-channels\"?")]
    [InlineData("\n[gest]\n", "2:2", "unknown table or key \"gest\"", "did you mean \"guest\"? known tables: guest, policy")]
    [InlineData("[policy.group]\n", "1:9", "unknown key \"group\" in [policy]", "did you mean \"groups\"?")]
    [InlineData("enabled = false", "1:1", "unknown table or key \"enabled\"", "it belongs in [guest]")]
    [InlineData("[guest]\ndefault = \"deny\"", "2:1", "unknown key \"default\" in [guest]", "it belongs in [policy]")]
    [InlineData("[guest.policy]\n", "1:8", "unknown key \"policy\" in [guest]", "[policy] is a table of its own")]
    // Types and ranges.
    [InlineData("[guest]\nenabled = \"yes\"", "2:11", "\"guest.enabled\" is the text \"yes\"", "write enabled = true or enabled = false")]
    [InlineData("[guest]\nidle-seconds = \"5\"", "2:16", "\"guest.idle-seconds\" is the text \"5\"", "from 1 to 604800, without quotes")]
    [InlineData("[guest]\nmax-memory-mib = 1.5", "2:18", "\"guest.max-memory-mib\" is the number 1.5", "a whole number from 1 to 4096")]
    [InlineData("[guest]\nmax-channels = 0", "2:16", "\"guest.max-channels\" is 0, out of range", "from 1 to 100")]
    [InlineData("[guest]\nmax-channels = 101", "2:16", "\"guest.max-channels\" is 101, out of range", "from 1 to 100")]
    [InlineData("[guest]\npackets-per-second = -1", "2:22", "\"guest.packets-per-second\" is -1, out of range", "from 1 to 1000000")]
    [InlineData("[guest]\nidle-seconds = 4294967297", "2:16", "\"guest.idle-seconds\" is 4294967297, out of range", "from 1 to 604800")]
    [InlineData("[policy]\ndefault = false", "2:11", "\"policy.default\" is false", "write default = \"allow\" or default = \"deny\"")]
    [InlineData("[policy]\ndefault = \"Allow\"", "2:11", "\"policy.default\" is the text \"Allow\"", "write default = \"allow\" or default = \"deny\"")]
    [InlineData("guest = 5", "1:9", "\"guest\" is a table, not the number 5", "write [guest]")]
    [InlineData("[[guest]]\nenabled = true", "1:1", "[[guest]] is a list of tables", "write [guest]")]
    [InlineData("[guest.enabled]\nx = 1", "1:8", "\"guest.enabled\" is a setting, not a table", "write enabled = ... below [guest]")]
    [InlineData("[policy]\nallow = \"web\"", "2:9", "\"policy.allow\" is the text \"web\", not a list", "allow = [[\"one\", \"other\"]]")]
    [InlineData("[policy]\ndeny = [\"web\", \"db\"]", "2:9", "an entry of \"policy.deny\" is the text \"web\", not a list", "a rule is a pair of groups")]
    [InlineData("[policy]\ndeny = [[1979-05-27, \"db\"]]", "2:10", "a rule's entry is a date or time, not a text", "a rule is a pair of groups")]
    [InlineData("[policy.groups]\nweb = \"web-*\"", "2:7", "the group \"web\" is the text \"web-*\", not a list", "web = [\"web-*\"]")]
    [InlineData("[policy.groups]\n\"my web\" = [\"a\", true]", "2:18", "an entry of the group \"my web\" is true, not a text", "\"my web\" = [\"web-*\"]")]
    [InlineData("[policy.groups]\nweb.eu = [\"a\"]", "2:1", "the group \"web\" is a list of globs, not a table", "stands in quotes")]
    // Rules and groups.
    [InlineData("[policy]\nallow = [[\"web\", \"dbs\"]]\n[policy.groups]\nweb = []\ndb = []", "2:18", "unknown group \"dbs\"", "did you mean \"db\"?")]
    [InlineData("[policy]\ndeny = [\n  [\"*\", \"web\"],\n]", "3:9", "unknown group \"web\"", "define it in [policy.groups]")]
    [InlineData("[policy]\ndeny = [[\"guest-*\", \"*\"]]", "2:10", "unknown group \"guest-*\"", "rules name groups, not globs: define one in [policy.groups], such as mygroup = [\"guest-*\"]")]
    [InlineData("[policy]\nallow = [[\"*\"]]", "2:10", "a rule with 1 entry", "one group twice for its members among themselves")]
    [InlineData("[policy]\nallow = [[\"*\", \"*\"], [\"*\", \"*\", \"*\"]]", "2:22", "a rule with 3 entries", "a rule is a pair of groups")]
    [InlineData("[policy]\nallow = [[]]", "2:10", "a rule with 0 entries", "a rule is a pair of groups")]
    [InlineData("[policy.groups]\nweb = [\"a\"]\ndb = []\n\"web\" = [\"b\"]", "4:1", "the group \"web\" is defined twice, first on line 2", "keep one")]
    [InlineData("[policy.groups]\n\"*\" = [\"a\"]", "2:1", "\"*\" is the group of all guests and cannot be defined", "choose another name")]
    [InlineData("[policy.groups]\nweb = [\"a\", \"\"]", "2:13", "an empty glob in the group \"web\"", "or remove it")]
    [InlineData("[policy.groups]\nweb = [\"  \"]", "2:8", "an empty glob in the group \"web\"", "or remove it")]
    [InlineData("[policy.groups]\nweb = [\"web[12]\"]", "2:8", "the glob \"web[12]\" has brackets", "use * and ?")]
    // Twice.
    [InlineData("[guest]\nenabled = true\nenabled = true", "3:1", "\"enabled\" in [guest] is defined twice, first on line 2", "keep one")]
    [InlineData("[guest]\n[policy]\n[guest]\n", "3:1", "the table [guest] is defined twice, first on line 1", "put all its settings in one place")]
    [InlineData("guest.enabled = true\n[guest]\nidle-seconds = 5", "2:1", "the table [guest] is defined twice, first on line 1", "put all its settings in one place")]
    [InlineData("[policy]\ngroups.web = []\n[policy.groups]\n", "3:1", "the table [policy.groups] is defined twice, first on line 2", "put all its settings in one place")]
    public void A_mistake_is_named_with_its_place_and_remedy(string text, string place, string problem, string remedy)
    {
        string message = Assert.Throws<ConfigurationException>(() => Load(text)).Message;
        Assert.StartsWith($"{_path}:{place}: {problem}", message, StringComparison.Ordinal);
        Assert.Contains(remedy, message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_deep_nesting_is_refused()
    {
        string message = Assert.Throws<ConfigurationException>(() => Load($"[policy]\nallow = {new string('[', 100_000)}")).Message;
        Assert.Contains("nested too deeply; no setting needs", message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("[policy.groups]\na = [\"\\u")]
    [InlineData("\"\\U0001")]
    public void A_file_that_ends_within_an_escape_sequence_is_refused(string text) =>
        Assert.Contains("not TOML", Assert.Throws<ConfigurationException>(() => Load(text)).Message, StringComparison.Ordinal);

    [Fact]
    public void What_is_not_UTF8_is_refused_with_its_place()
    {
        File.WriteAllBytes(_path, [.. "[guest]\n# "u8, 0xfc, .. "\n"u8]);
        Assert.Equal(
            $"{_path}:2:3: not UTF-8; save the file in that encoding",
            Assert.Throws<ConfigurationException>(() => Configuration.Load(_path)).Message);
        File.WriteAllBytes(_path, Encoding.Unicode.GetPreamble());
        Assert.StartsWith($"{_path}:1:1: not UTF-8", Assert.Throws<ConfigurationException>(() => Configuration.Load(_path)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_file_over_a_mebibyte_is_refused()
    {
        File.WriteAllText(_path, new string('\n', 1 << 20));
        Assert.NotNull(Configuration.Load(_path));
        File.WriteAllText(_path, new string('\n', (1 << 20) + 1));
        Assert.StartsWith($"{_path}: larger than 1 MiB;", Assert.Throws<ConfigurationException>(() => Configuration.Load(_path)).Message, StringComparison.Ordinal);
    }

    [Theory]
    [InlineData("/", "it must be a file")]
    [InlineData("/proc/self/mem", "cannot be read: EIO")]
    [InlineData("", "give one")]
    public void A_file_that_cannot_be_read_is_no_missing_file(string path, string remedy)
    {
        foreach (Func<string, Configuration> load in new Func<string, Configuration>[] { Configuration.Load, Configuration.LoadOrDefaults })
        {
            Assert.Contains(remedy, Assert.Throws<ConfigurationException>(() => load(path)).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void A_message_has_no_control_characters()
    {
        string message = Assert.Throws<ConfigurationException>(() => Load("[guest]\n\"a\\u001bb\" = 1")).Message;
        Assert.Contains("unknown key \"a?b\"", message, StringComparison.Ordinal);
    }

    private Configuration Load(string text)
    {
        File.WriteAllText(_path, text);
        return Configuration.Load(_path);
    }
}
