using System.Text.Json;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>The configuration file of a running daemon, and what is left in XenStore when no daemon is to follow.</summary>
[Collection(DaemonTests.Name)]
public sealed class DaemonConfigurationTests : IDisposable
{
    private const string Mistake = "[guest]\nmax-channels = 101\n";

    private readonly string _file = Path.GetTempFileName();

    // After the file's name.
    private const string Complaint = ":2:16: \"guest.max-channels\" is 101, out of range; write a whole number from 1 to 100";

    public void Dispose() => File.Delete(_file);

    [Fact]
    public async Task A_mistake_at_the_start_ends_the_daemon_with_a_code_of_its_own()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        LabGuest a = await lab.Host.AddGuestAsync("a");
        File.WriteAllText(_file, Mistake);
        foreach (LabDomain domain in new[] { a, lab.Dom0 })
        {
            LabProcess daemon = lab.Start(domain, "--config", _file);
            await lab.UntilAsync("the daemon ends", () => daemon.HasExited);
            await daemon.WaitForExitAsync();
            Assert.Equal(78, daemon.ExitCode);
            Assert.Contains(_file + Complaint, daemon.Output, StringComparison.Ordinal);
        }

        LabProcess without = lab.Start(a, "--config", "/nonexistent/xenloopd.toml");
        await lab.UntilAsync("the daemon ends", () => without.HasExited);
        await without.WaitForExitAsync();
        Assert.Equal(78, without.ExitCode);
        Assert.Contains("/nonexistent/xenloopd.toml: there is no such file", without.Output, StringComparison.Ordinal);
        Assert.Null(lab.XenStore.Read($"{a.Home}/data/xenloop"));
    }

    [Fact]
    public async Task A_reload_puts_the_file_in_force_and_one_with_a_mistake_changes_nothing()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest a = await lab.Host.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        File.WriteAllText(_file, "[guest]\nmax-channels = 2\n");
        LabProcess daemon = lab.Start(a, "--config", _file);
        await lab.ChannelUpAsync(a, b);
        ulong? session = lab.Session(a, b);
        Assert.Equal(_file, ConfigurationOf(a));
        await ReloadsAsync(a, _file);

        File.WriteAllText(_file, Mistake);
        int refused = Refused();
        daemon.Signal(LibC.SIGHUP);
        await lab.UntilAsync("the daemon refuses the file", () => Refused() == refused + 1);
        (int exit, string output) = await a.RunAsync($"{DaemonLab.Command} reload {DaemonLab.Socket}");
        Assert.Equal((6, $"xenloop: {_file}{Complaint}; the configuration in force stays\n"), (exit, output));
        Assert.Equal(refused + 2, Refused());
        Assert.Equal(_file, ConfigurationOf(a));

        File.Delete(_file);
        (exit, output) = await a.RunAsync($"{DaemonLab.Command} reload {DaemonLab.Socket}");
        Assert.Equal(6, exit);
        Assert.Contains($"{_file}: there is no such file", output, StringComparison.Ordinal);

        File.WriteAllText(_file, "[guest]\nmax-channels = 3\n");
        int reloads = lab.CountMessages(a, $"configuration reloaded: {_file}");
        daemon.Signal(LibC.SIGHUP);
        await lab.UntilAsync("the daemon reloads", () => lab.CountMessages(a, $"configuration reloaded: {_file}") == reloads + 1);
        await ReloadsAsync(a, _file);
        Assert.False(daemon.HasExited);
        Assert.Equal(session, lab.Session(a, b));
        Assert.Equal("running", DaemonLab.State(a, b));

        int Refused() => lab.CountMessages(a, $"{_file}{Complaint}; the configuration in force stays");
    }

    [Fact]
    public async Task Dom0_reloads_without_a_loss_of_channels()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        File.WriteAllText(_file, "[policy]\nallow = [[\"*\", \"*\"]]\n");
        LabProcess daemon = lab.Start(lab.Dom0, "--config", _file);
        LabGuest a = await lab.AddGuestAsync("a"), b = await lab.AddGuestAsync("b");
        await lab.ChannelUpAsync(a, b);
        ulong? session = lab.Session(a, b);
        await ReloadsAsync(lab.Dom0, _file);
        daemon.Signal(LibC.SIGHUP);
        await lab.UntilAsync("the daemon reloads", () => lab.CountMessages(lab.Dom0, "configuration reloaded") == 3);
        Assert.Equal(_file, ConfigurationOf(lab.Dom0));
        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b), lab.Messages());
    }

    [Fact]
    public async Task The_command_checks_a_file_without_a_daemon()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync(introducer: false);
        File.WriteAllText(_file, "[policy]\ndefault = \"deny\"\n");
        Assert.Equal((0, $"{_file}: nothing wrong\n"), await lab.Dom0.RunAsync($"{DaemonLab.Command} check-config {_file}"));
        File.WriteAllText(_file, Mistake);
        Assert.Equal((1, $"xenloop: {_file}{Complaint}\n"), await lab.Dom0.RunAsync($"{DaemonLab.Command} check-config {_file}"));
        (int exit, string output) = await lab.Dom0.RunAsync($"{DaemonLab.Command} reload {DaemonLab.Socket}");
        Assert.Equal(5, exit);
        Assert.Contains("no daemon answers", output, StringComparison.Ordinal);
    }

    [Fact]
    public async Task Forget_removes_what_a_killed_guest_daemon_left_and_is_refused_while_one_runs()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        ulong? session = lab.Session(a, b);
        await ForgetAsync(lab, a, refused: true);
        Assert.Equal(session, lab.Session(a, b));
        Assert.True(lab.IsUp(a, b), lab.Messages());

        await lab.KillAsync(a);
        Assert.NotNull(lab.XenStore.Read($"{a.Home}/data/xenloop/offer"));
        await ForgetAsync(lab, a, refused: false);
        Assert.Null(lab.XenStore.Read($"{a.Home}/data/xenloop"));
        Assert.NotNull(lab.XenStore.Read($"{a.Home}/data"));
        await lab.UntilAsync("nobody is introduced to a", () => lab.Introduced(b) is [] && DaemonLab.State(b, a) == "none");

        // Where there is nothing left, too.
        await ForgetAsync(lab, a, refused: false);
    }

    [Fact]
    public async Task Forget_in_Dom0_withdraws_all_introductions_and_is_refused_while_its_daemon_runs()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        await ForgetAsync(lab, lab.Dom0, refused: true);
        Assert.True(lab.IsUp(a, b), lab.Messages());

        Assert.Equal(0, await lab.StopAsync(lab.Dom0));
        Assert.NotNull(lab.XenStore.Read($"{a.Home}/xenloop/0/{b.Domid}-0"));
        await ForgetAsync(lab, lab.Dom0, refused: false);
        foreach (LabGuest guest in new[] { a, b })
        {
            Assert.Null(lab.XenStore.Read($"{guest.Home}/xenloop"));
            Assert.NotNull(lab.XenStore.Read($"{guest.Home}/data/xenloop/offer"));
        }

        await lab.UntilAsync("both are back on netfront", () => DaemonLab.State(a, b) == "none" && DaemonLab.State(b, a) == "none");
        await Ping.MustAsync(a, b, 2);

        // A daemon that comes back introduces them anew.
        lab.Start(lab.Dom0);
        await lab.ChannelUpAsync(a, b);
    }

    private static string? ConfigurationOf(LabDomain domain) => DaemonLab.Status(domain)!.Value.GetProperty("configuration").GetString();

    private static async Task ReloadsAsync(LabDomain domain, string file)
    {
        Assert.Equal((0, $"reloaded: {file}\n"), await domain.RunAsync($"{DaemonLab.Command} reload {DaemonLab.Socket}"));
        Assert.Equal(file, JsonDocument.Parse(DaemonLab.Ask(domain, "reload")!).RootElement.GetProperty("reloaded").GetString());
    }

    private static async Task ForgetAsync(DaemonLab lab, LabDomain domain, bool refused)
    {
        (int exit, string output) = await domain.RunAsync($"{DaemonLab.Daemon} --forget");
        Assert.True(exit == (refused ? 1 : 0), $"{output}{lab.Messages()}");
        Assert.Equal(refused, output.Contains("another xenloopd answers", StringComparison.Ordinal));
    }
}
