using System.Diagnostics;
using System.Globalization;
using System.Runtime.Versioning;
using System.Text;
using Tmds.Linux;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>Before libxl saves a guest, its helper's stand-in has the guest quiesced, and says whether it may be saved.</summary>
[Collection(DaemonTests.Name)]
[UnsupportedOSPlatform("windows")]
public sealed class SaveHelperTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("xenloop-save-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("pv", 4)]
    [InlineData("pvh", 3)]
    [InlineData("hvm", 3)]
    [InlineData(null, 4)]
    public async Task Whether_a_guest_that_does_not_answer_may_be_saved_depends_on_its_type(string? type, int expected)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        LabGuest guest = lab.Pair.B;
        SetType(lab, guest, type);
        lab[guest].Signal(LibC.SIGSTOP);
        (int exit, string output) = await AskAsync(lab, $"quiesce --timeout 0.3 {guest.Name}");
        Assert.Equal(expected, exit);
        Assert.Contains($"domain {guest.Domid} (b) has not closed its channels within 0.3 s", output, StringComparison.Ordinal);
        Assert.Contains("Restart xenloopd in the guest", output, StringComparison.Ordinal);
        Assert.Contains($"xenstore-rm /local/domain/{guest.Domid}/data/xenloop", output, StringComparison.Ordinal);
        Assert.Equal(expected == 4, output.Contains("must not be saved", StringComparison.Ordinal));
    }

    [Fact]
    public async Task A_guest_of_XAPI_is_an_HVM_guest_when_it_has_a_device_model()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        LabGuest guest = lab.Pair.B;
        SetType(lab, guest, null);
        lab.XenStore.Write($"/local/domain/0/device-model/{guest.Domid}/state", "running");
        lab[guest].Signal(LibC.SIGSTOP);
        Assert.Equal(3, (await AskAsync(lab, $"quiesce --timeout 0.3 {guest.Uuid}")).ExitCode);
        lab[guest].Signal(LibC.SIGCONT);
        Assert.Equal((0, "quiesced\n"), await AskAsync(lab, $"quiesce {guest.Uuid.ToString().ToUpperInvariant()}"));
        Assert.Equal((0, ""), await AskAsync(lab, $"resume {guest.Uuid}"));
        await lab.ChannelUpAsync(lab.Pair.A, guest);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Without_a_daemon_in_Dom0_that_answers_guests_are_judged_by_what_XenStore_says(bool hung)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        SetType(lab, b, "pv");
        if (hung)
        {
            lab[lab.Dom0].Signal(LibC.SIGSTOP);
        }
        else
        {
            await lab.KillAsync(lab.Dom0);
        }

        LabGuest plain = await lab.Host.AddGuestAsync("plain");
        Stopwatch watch = Stopwatch.StartNew();
        Assert.Equal((0, "absent\n"), await AskAsync(lab, $"quiesce {plain.Name}"));
        Assert.InRange(watch.ElapsedMilliseconds, 0, 500);
        watch.Restart();
        (int exit, string output) = await AskAsync(lab, $"quiesce --timeout 0.5 {a.Domid}");
        Assert.Equal(3, exit);
        Assert.Contains("systemctl restart xenloopd", output, StringComparison.Ordinal);
        Assert.InRange(watch.ElapsedMilliseconds, 500, 2000);
        Assert.Equal(4, (await AskAsync(lab, $"quiesce --timeout 0.5 {b.Domid}")).ExitCode);
    }

    [Fact]
    public async Task A_daemon_in_Dom0_that_starts_again_in_time_is_waited_for()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        LabGuest guest = lab.Pair.B;
        await lab.KillAsync(lab.Dom0);
        Task<(int, string)> asking = AskAsync(lab, $"quiesce {guest.Name}");
        await Task.Delay(500);
        Assert.False(asking.IsCompleted);
        lab.Start(lab.Dom0);
        Assert.Equal((0, "quiesced\n"), await asking);
    }

    [Fact]
    public async Task Where_there_is_no_XenStore_the_command_says_so()
    {
        await using DaemonLab lab = await DaemonLab.StartAsync();
        (int exit, string output) = await lab.Dom0.RunAsync($"XENSTORED_PATH=/nowhere {DaemonLab.Command} quiesce {DaemonLab.Socket} 1");
        Assert.Equal(1, exit);
        Assert.Contains("xs_open on /nowhere", output, StringComparison.Ordinal);
        Assert.Single(output.TrimEnd().Split('\n'));
    }

    [Theory]
    [InlineData("dash")]
    [InlineData("bash")]
    public async Task The_guest_has_no_channels_while_the_helper_saves_and_nothing_stands_between_libxl_and_the_helper(string shell)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        string helper = Install(shell, """
            echo "$0 $*"
            cat <&14 >&15
            cat
            echo message >&2
            exit 7
            """);
        // Descriptors as libxl gives them: a pipe each for standard input and output, and a stream with a number it tells.
        string bytes = Path.Combine(_folder, "bytes");
        byte[] random = new byte[300_000];
        Random.Shared.NextBytes(random);
        File.WriteAllBytes(bytes, random);
        LabProcess save = lab.Dom0.Start($"""
            cd {_folder}
            mkfifo gate
            (cat bytes; cat gate; cat bytes) | bash -c 'exec 14<bytes 15>stream; {helper} --save-domain 15 -1 {b.Domid} 1 2 3; echo $? >exit' | cat >output
            """);
        await lab.UntilAsync("the helper has copied the stream", () => File.Exists($"{_folder}/stream") && new FileInfo($"{_folder}/stream").Length == random.Length);
        Assert.Equal(default, lab.Host.Broker.Count(b.Domid));
        string request = lab.XenStore.Read($"{b.Home}/xenloop/quiesce")!;
        string holder = request.Split(' ')[1];
        Assert.Equal($"{helper}.real", File.ReadAllText($"/proc/{holder}/cmdline").Split('\0')[1]);

        File.WriteAllText($"{_folder}/gate", "");
        await lab.UntilAsync("the helper has ended", () => save.HasExited);
        Assert.Equal("7\n", File.ReadAllText($"{_folder}/exit"));
        Assert.Equal(random, File.ReadAllBytes($"{_folder}/stream"));
        byte[] head = Encoding.ASCII.GetBytes($"{helper}.real --save-domain 15 -1 {b.Domid} 1 2 3\n");
        Assert.Equal([.. head, .. random, .. random], File.ReadAllBytes($"{_folder}/output"));
        Assert.Equal("quiesced\nmessage\n", save.Output);
        await lab.ChannelUpAsync(a, b);
    }

    [Fact]
    public async Task Only_a_PV_guest_that_does_not_answer_is_not_saved_and_a_restore_asks_nobody()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        LabGuest guest = lab.Pair.B;
        string helper = Install("sh", "echo helped; exit 0");
        lab[guest].Signal(LibC.SIGSTOP);
        Stopwatch watch = Stopwatch.StartNew();
        Assert.Equal((0, "helped\n"), await lab.Dom0.RunAsync($"{helper} --restore-domain 3 -1 {guest.Domid} 0"));
        Assert.InRange(watch.ElapsedMilliseconds, 0, 1000);
        (int exit, string output) = await lab.Dom0.RunAsync($"{helper} --save-domain 3 -1 {guest.Domid} 0");
        Assert.Equal(0, exit);
        Assert.EndsWith("helped\n", output, StringComparison.Ordinal);
        SetType(lab, guest, "pv");
        (exit, output) = await lab.Dom0.RunAsync($"{helper} --save-domain 3 -1 {guest.Domid} 0");
        Assert.Equal(1, exit);
        Assert.Contains("must not be saved", output, StringComparison.Ordinal);
        Assert.DoesNotContain("helped", output, StringComparison.Ordinal);
        // Nothing is the matter with the next domain, nor with one that is gone.
        Assert.Equal(0, (await lab.Dom0.RunAsync($"{helper} --save-domain 3 -1 {lab.Pair.A.Domid} 0")).ExitCode);
        Assert.Equal(0, (await lab.Dom0.RunAsync($"{helper} --save-domain 3 -1 999 0")).ExitCode);
    }

    [Theory]
    [InlineData("-mode hvm_save", true)]
    [InlineData("-mode save", false)]
    public async Task XAPIs_hook_has_the_guest_quiesced_until_what_saves_it_has_ended(string mode, bool tellsDomid)
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        (LabGuest a, LabGuest b) = lab.Pair;
        string hook = InstallHook(lab);
        string manager = Path.Combine(_folder, "emu-manager");
        Script(manager, "#!/bin/sh\nwhile :; do sleep 0.1; done\n");
        Assert.Equal((0, "quiesced\n"), await lab.Dom0.RunAsync($"{hook} -vmuuid {b.Uuid} -reason source {(tellsDomid ? $"-vmdomid {b.Domid}" : "")}"));
        Assert.Equal(default, lab.Host.Broker.Count(b.Domid));
        string holder = lab.XenStore.Read($"{b.Home}/xenloop/quiesce")!.Split(' ')[1];

        LabProcess other = lab.Dom0.Start($"exec {manager} -fd 1 {mode} -domid {b.Domid}0 -live true");
        LabProcess save = lab.Dom0.Start($"exec {manager} -fd 1 {mode} -domid {b.Domid} -live true");
        // The hook looks each second.
        await Task.Delay(4000);
        Assert.True(Directory.Exists($"/proc/{holder}"));
        save.Signal(LibC.SIGTERM);
        await lab.UntilAsync(() => "the hook's process ends with what it waited for\n" + lab.Dom0.RunAsync($"ps -o pid,ppid,stat,args -p {holder} --ppid {holder}; ps -eo pid,ppid,stat,args | grep -e 'hvm_[s]ave'").Result.Output, () => !Directory.Exists($"/proc/{holder}"));
        Assert.False(other.HasExited);
        await lab.ChannelUpAsync(a, b);
    }

    [Fact]
    public async Task XAPIs_hook_stops_XAPI_for_a_PV_guest_that_does_not_answer_and_for_nothing_else()
    {
        await using DaemonLab lab = await DaemonLab.StartWithChannelAsync();
        LabGuest guest = lab.Pair.B;
        string hook = InstallHook(lab);
        LabGuest plain = await lab.Host.AddGuestAsync("plain");
        Assert.Equal((0, "absent\n"), await lab.Dom0.RunAsync($"{hook} -vmuuid {plain.Uuid} -reason suspend"));
        Assert.Equal((0, ""), await lab.Dom0.RunAsync($"{hook} -vmuuid {Guid.NewGuid()} -reason suspend"));
        lab[guest].Signal(LibC.SIGSTOP);
        SetType(lab, guest, "pv");
        (int exit, string output) = await lab.Dom0.RunAsync($"{hook} -vmuuid {guest.Uuid} -reason suspend");
        Assert.Equal(4, exit);
        Assert.Contains("must not be saved", output, StringComparison.Ordinal);
        await lab.UntilAsync("nothing holds the guest", () => lab.XenStore.Read($"{guest.Home}/xenloop/quiesce") is null);
        SetType(lab, guest, "hvm");
        (exit, output) = await lab.Dom0.RunAsync($"{hook} -vmuuid {guest.Uuid} -reason suspend");
        Assert.Equal(1, exit);
        Assert.Contains("can be saved all the same", output, StringComparison.Ordinal);
        Assert.NotNull(lab.XenStore.Read($"{guest.Home}/xenloop/quiesce"));
    }

    private string InstallHook(DaemonLab lab)
    {
        string hook = Path.Combine(_folder, "xenloop");
        string packaged = File.ReadAllText(Path.Combine(DaemonLab.Root, "packaging/common/xapi-hook"));
        Assert.Contains("$(/usr/bin/xenloop ", packaged, StringComparison.Ordinal);
        Script(hook, packaged.Replace("/usr/bin/xenloop quiesce", $"{DaemonLab.Command} quiesce {DaemonLab.Socket}", StringComparison.Ordinal));
        return hook;
    }

    /// <summary>The package's helper with what it calls, and what it takes the place of.</summary>
    /// <returns>Its path, which is like libxl's.</returns>
    private string Install(string shell, string real)
    {
        string helper = Path.Combine(_folder, "libxl-save-helper");
        string packaged = File.ReadAllText(Path.Combine(DaemonLab.Root, "packaging/common/save-helper"));
        Assert.Contains("#!/bin/sh\n", packaged, StringComparison.Ordinal);
        Assert.Contains(" /usr/bin/xenloop ", packaged, StringComparison.Ordinal);
        Script(helper, packaged.Replace("#!/bin/sh\n", $"#!/bin/{shell}\n", StringComparison.Ordinal).Replace("/usr/bin/xenloop quiesce", $"{DaemonLab.Command} quiesce {DaemonLab.Socket}", StringComparison.Ordinal));
        Script($"{helper}.real", $"#!/bin/bash\n{real}\n");
        return helper;
    }

    private static void Script(string path, string text)
    {
        File.WriteAllText(path, text);
        File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
    }

    private static void SetType(DaemonLab lab, LabGuest guest, string? type)
    {
        if (type is null)
        {
            lab.XenStore.Remove(LabNodes.TypeNode(guest));
        }
        else
        {
            lab.XenStore.Write(LabNodes.TypeNode(guest), type);
        }
    }

    private static Task<(int ExitCode, string Output)> AskAsync(DaemonLab lab, string command) =>
        lab.Dom0.RunAsync(string.Create(CultureInfo.InvariantCulture, $"{DaemonLab.Command} {command} {DaemonLab.Socket}"));
}
