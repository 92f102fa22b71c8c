using System.CommandLine;
using System.Diagnostics;
using System.Formats.Tar;
using System.Globalization;
using System.Text;
using XenLoop.Loop;
using XenLoop.Settings;

namespace XenLoop.Command;

/// <summary>"xenloop bugreport": one archive of what a maintainer asks for first. Names and addresses of guests are in it; no packet, no key, no
/// password: the configuration knows none, and of the environment nothing is taken.</summary>
internal static class BugReport
{
    private const int PatienceMilliseconds = 5000;

    // A file in the archive, and the program that fills it. What is missing here leaves a line that says so.
    private static readonly (string Name, string Program, string Arguments)[] _programs =
    [
        ("log.txt", "journalctl", "-u xenloopd -n 5000 --no-pager -o short-iso-precise"),
        // Where OpenRC starts the daemon.
        ("log-of-openrc.txt", "tail", "-n 5000 /var/log/xenloopd.log"),
        ("service.txt", "systemctl", "status xenloopd --no-pager -n 0"),
        ("links.txt", "ip", "-d link"),
        ("qdiscs.txt", "tc", "-s qdisc"),
        ("neighbours.txt", "ip", "neigh"),
        ("kernel.txt", "uname", "-a"),
        ("xenstore.txt", "xenstore-ls", "-f -p data/xenloop"),
        ("introductions.txt", "xenstore-ls", "-f -p xenloop"),
    ];

    public static System.CommandLine.Command Create()
    {
        Argument<string?> file = new("FILE") { Description = "The archive; by default xenloop-bugreport-TIME.tar here.", Arity = ArgumentArity.ZeroOrOne };
        System.CommandLine.Command command = Request.Create("bugreport", "Write one archive of what a report of a fault needs; there are no secrets in it.", (result, daemon) =>
        {
            string path = result.GetValue(file) ?? string.Create(CultureInfo.InvariantCulture, $"xenloop-bugreport-{DateTime.UtcNow:yyyyMMdd-HHmmss}.tar");
            Write(path, daemon);
            Console.WriteLine($"{path}: names and addresses of guests are in it, no packets and no secrets; look through it before you send it");
            return ExitCode.Fine;
        });
        command.Arguments.Add(file);
        return command;
    }

    private static void Write(string path, DaemonLink daemon)
    {
        // Nobody else's to read, and nothing that is there already is written over.
        using FileStream stream = new(path, new FileStreamOptions
        {
            Mode = FileMode.CreateNew,
            Access = FileAccess.Write,
            UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
        });
        using TarWriter archive = new(stream, TarEntryFormat.Ustar);
        Add(archive, "version.txt", ControlLoop.Version + "\n");
        Add(archive, "status.json", Try(() => daemon.AskText("status")));
        Add(archive, "status.txt", Try(() => StatusCommand.Look(daemon, all: true, 1000)));
        Add(archive, "doctor.txt", Try(() => Doctor.Draw([.. Doctor.Look(daemon)], coloured: false)));
        Add(archive, "xenloopd.toml", Try(() => File.ReadAllText(daemon.Ask("status").Text("configuration") ?? Configuration.DefaultPath)));
        foreach ((string name, string program, string arguments) in _programs)
        {
            Add(archive, name, Try(() => Run(program, arguments)));
        }
    }

    private static void Add(TarWriter archive, string name, string text) => archive.WriteEntry(new UstarTarEntry(TarEntryType.RegularFile, $"xenloop-bugreport/{name}")
    {
        DataStream = new MemoryStream(Encoding.UTF8.GetBytes(text)),
        Mode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
        ModificationTime = DateTimeOffset.UtcNow,
    });

    /// <summary>What cannot be had is no reason not to have the rest.</summary>
    private static string Try(Func<string> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is CommandException or IOException or UnauthorizedAccessException or System.ComponentModel.Win32Exception)
        {
            return $"not to be had: {e.Message}\n";
        }
    }

    private static string Run(string program, string arguments)
    {
        using Process process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true })!;
        Task<string> output = process.StandardOutput.ReadToEndAsync(), errors = process.StandardError.ReadToEndAsync();
        if (!process.WaitForExit(PatienceMilliseconds))
        {
            process.Kill();
            return $"{program} did not end within {PatienceMilliseconds / 1000} s\n";
        }

        return output.GetAwaiter().GetResult() + errors.GetAwaiter().GetResult();
    }
}
