using System.CommandLine;
using System.Text.RegularExpressions;
using XenLoop.Command;
using XenLoop.Settings;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>The man pages (docs/man) and the shells' completions name what the programs have, and nothing else.</summary>
public sealed class ManualTests
{
    // What writes the status, below src/Daemon.
    private static readonly string[] _writers = ["Loop/ControlLoop.cs", "Guest/GuestStatus.cs", "Guest/Containment.cs", "Guest/Channels/Channel.cs", "Dom0/Dom0Role.cs"];

    private static readonly System.CommandLine.Command[] _commands = [.. Program.Root().Subcommands];

    /// <summary>A command's heading is its synopsis: "ping PEER [--count N] [--address IP]".</summary>
    [Fact]
    public void The_page_of_the_command_has_each_command_with_its_arguments_and_options()
    {
        string page = Page("xenloop.1");
        Assert.Equal(_commands.Select(Synopsis), Regex.Matches(Section(page, "COMMANDS"), "(?m)^### (.*)$").Select(m => m.Groups[1].Value));
        // Those that all of them have are said once.
        string[] common = ["--socket", "--version", "--help"];
        Assert.Equal(common, Options(Section(page, "DESCRIPTION")));
        Assert.All(_commands, c => Assert.Equal(c.Name != "check-config", c.Options.Any(o => o.Name == "--socket")));
        Assert.Empty(Options(page).Except(_commands.SelectMany(Own)).Except(common));
    }

    [Fact]
    public void The_page_of_the_daemon_and_its_help_have_each_option()
    {
        string page = Page("xenloopd.8"), source = Read("src/Daemon/CommandLine.cs");
        string[] known = Sorted(Regex.Matches(source, @"case ""(--[\w-]+)""").Select(m => m.Groups[1].Value));
        Assert.Equal(7, known.Length);
        Assert.Equal(known, Sorted(Options(Section(page, "SYNOPSIS"))));
        Assert.Equal(known, Sorted(Regex.Matches(Section(page, "OPTIONS"), @"(?m)^- `(--[\w-]+)`").Select(m => m.Groups[1].Value)));
        Assert.Equal(known, Sorted(Options(Regex.Match(source, @"(?s)Usage = ""{3}(.*?)""{3};").Groups[1].Value)));
    }

    [Fact]
    public void The_pages_have_each_exit_status()
    {
        Assert.Equal(Codes("src/xenloop/ExitCode.cs"), Told("xenloop.1"));
        // Its 0 has no name.
        Assert.Equal(["0", .. Codes("src/Daemon/CommandLine.cs")], Told("xenloopd.8"));

        static string[] Codes(string source) => [.. Regex.Matches(Read(source), @"const int \w+ = (\d+);").Select(m => m.Groups[1].Value)];
        static string[] Told(string page) => [.. Regex.Matches(Section(Page(page), "EXIT STATUS"), @"(?m)^- (\d+): ").Select(m => m.Groups[1].Value)];
    }

    [Fact]
    public void The_page_of_the_command_has_each_member_of_the_status()
    {
        string json = Section(Page("xenloop.1"), "JSON");
        string[] members = [.. _writers
            .SelectMany(file => Regex.Matches(Read($"src/Daemon/{file}"), @"json\.Write\w+\(""(\w+)""")).Select(m => m.Groups[1].Value)
            // Answers to other requests.
            .Where(m => m is not ("error" or "reloaded")).Distinct()];
        Assert.True(members.Length > 50, $"{members.Length} members");
        Assert.All(members, m => Assert.Contains($"`{m}`", json, StringComparison.Ordinal));
        // Each member that a line tells of.
        string[] told = [.. Regex.Matches(json, "(?m)^- ((`\\w+`(, )?)+):").SelectMany(m => Regex.Matches(m.Groups[1].Value, @"\w+")).Select(m => m.Value)];
        Assert.True(told.Length > 50, $"{told.Length} members");
        Assert.Empty(told.Except(members));
    }

    [Fact]
    public void The_page_of_the_configuration_has_each_key_and_examples_that_pass()
    {
        string page = Page("xenloopd.toml.5");
        string[] keys = Sorted(Regex.Matches(Read("src/Daemon/Settings/ConfigurationReader.cs"), @"case ""(?:guest|policy)\.([\w-]+)"":").Select(m => m.Groups[1].Value));
        Assert.Equal(10, keys.Length);
        MatchCollection lines = Regex.Matches(Section(page, "IN A GUEST") + Section(page, "IN DOM0"), "(?m)^- ((`[\\w-]+`(, )?)+):");
        Assert.Equal(keys, Sorted(lines.SelectMany(m => Regex.Matches(m.Groups[1].Value, @"[\w-]+")).Select(m => m.Value).Distinct()));
        string[] examples = [.. Regex.Matches(page, "(?s)```toml\n(.*?)```").Select(m => m.Groups[1].Value)];
        Assert.Equal(7, examples.Length);
        Assert.All(examples, example => ConfigurationReader.Parse("example", example));
    }

    [Fact]
    public void Completions_have_each_command_and_its_options()
    {
        string bash = Read("packaging/completion/xenloop.bash"), zsh = Read("packaging/completion/_xenloop"), fish = Read("packaging/completion/xenloop.fish");
        string[] commands = [.. _commands.Select(c => c.Name)];
        Assert.Equal([.. commands, "--help", "--version"], Regex.Match(bash, @"(?m)^ +''\) words='(.*)'").Groups[1].Value.Split(' '));
        Assert.Equal(commands, Regex.Matches(zsh, "(?m)^  '([\\w-]+):").Select(m => m.Groups[1].Value));
        Assert.Equal(commands, Regex.Match(fish, "(?m)^set -l commands (.*)$").Groups[1].Value.Split(' '));
        Assert.Equal(commands, Regex.Matches(fish, @" -a ([\w-]+)").Select(m => m.Groups[1].Value));
        foreach (System.CommandLine.Command command in _commands)
        {
            string[] own = Sorted(Own(command));
            Assert.Equal(own, Sorted(OfArm(bash, command.Name)));
            Assert.Equal(own, Sorted(OfArm(zsh, command.Name)));
            Assert.Equal(own, Sorted(Regex.Matches(fish, $@"(?m)seen_subcommand_from (?:[\w-]+ )*{command.Name}(?: [\w-]+)*' -l ([\w-]+)").Select(m => $"--{m.Groups[1].Value}")));
        }

        // Of the arms of the shell's case, the one that is for a command, without what all have.
        static string[] OfArm(string script, string command) =>
            [.. Options(string.Concat(Regex.Matches(script, $@"(?m)^ +(?:[\w-]+ \| )*{command}(?: \| [\w-]+)*\) .*$").Select(m => m.Value)))
                .Where(o => o is not ("--socket" or "--help"))];
    }

    private static string Synopsis(System.CommandLine.Command command) => string.Join(' ', [
        command.Name,
        .. command.Arguments.Select(a => a.Arity.MinimumNumberOfValues == 0 ? $"[{a.Name}]" : a.Name),
        .. command.Options.Where(o => Own(command).Contains(o.Name)).Select(o => o.ValueType == typeof(bool) ? $"[{o.Name}]" : $"[{o.Name} {o.HelpName}]")]);

    /// <summary>The options that other commands need not have.</summary>
    private static string[] Own(System.CommandLine.Command command) =>
        [.. command.Options.Select(o => o.Name).Where(n => n.StartsWith("--", StringComparison.Ordinal) && n is not ("--socket" or "--help"))];

    /// <summary>What looks like an option, each once.</summary>
    private static string[] Options(string text) => [.. Regex.Matches(text, @"(?<![\w-])--[a-z][\w-]*").Select(m => m.Value).Distinct()];

    private static string[] Sorted(IEnumerable<string> words) => [.. words.Order(StringComparer.Ordinal)];

    private static string Section(string page, string heading) => Regex.Match(page, $@"(?ms)^## {heading}\n(.*?)(?=^## |\z)").Groups[1].Value;

    private static string Page(string name) => Read($"docs/man/{name}.md");

    private static string Read(string path) => File.ReadAllText(Path.Combine(RoomsTests.Root(), path));
}
