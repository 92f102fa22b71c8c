using System.Globalization;
using System.Text.Json;

namespace XenLoop.Rig;

/// <summary>
/// The published daemon in Dom0 or a guest of the rig: puts it there, starts it, asks it. Everything goes through the
/// programs that users have.
/// </summary>
public sealed class XenLoopDaemon
{
    /// <summary>Where the published programs are.</summary>
    public static string PublishFolder => Path.Combine(RigImage.RepositoryRoot, "artifacts", "publish");

    private const string LogFile = "/var/log/xenloopd.log";
    private const string Private = "/usr/lib/xenloop";

    // Not by name: after an unprepared suspend there is a second process of this program, which is not to be touched.
    private const string PidFile = "/run/xenloopd.pid";

    private readonly Func<string, TimeSpan?, Task<CommandResult>> _run;

    private XenLoopDaemon(Func<string, TimeSpan?, Task<CommandResult>> run) => _run = run;

    /// <summary>Copies the published programs into Dom0, and has them prepare guests that are saved, as the package does.</summary>
    public static async Task<XenLoopDaemon> InstallAsync(XenHost host)
    {
        (await host.RunAsync($"mkdir -p {Private}")).Check();
        string common = Path.Combine(RigImage.RepositoryRoot, "packaging", "common");
        await Task.WhenAll(Programs()
            .Append((Local: Path.Combine(common, "save-helper"), Remote: $"{Private}/save-helper"))
            .Append((Local: Path.Combine(common, "hook-saves"), Remote: $"{Private}/hook-saves"))
            .Select(p => host.PushAsync(p.Local, p.Remote, "755")));
        (await host.RunAsync($"{Private}/hook-saves install")).Check();
        return new XenLoopDaemon(host.RunAsync);
    }

    /// <summary>Copies the published programs into a guest.</summary>
    public static async Task<XenLoopDaemon> InstallAsync(XenGuest guest)
    {
        await Task.WhenAll(Programs().Select(p => guest.PushAsync(p.Local, p.Remote, "755")));
        return new XenLoopDaemon(guest.RunAsync);
    }

    /// <summary>Installs the Debian package in a guest that has systemd, as an administrator does; its service then runs.
    /// What starts and ends a daemon here is not for that: use systemctl.</summary>
    public static async Task<XenLoopDaemon> InstallPackageAsync(XenGuest guest)
    {
        // The first is what guests need.
        await InstallPackagesAsync(guest, (await PackagesAsync())[0]);
        return OfPackage(guest);
    }

    /// <summary>The daemon in a guest that has the package, or will have it.</summary>
    public static XenLoopDaemon OfPackage(XenGuest guest) => new(guest.RunAsync);

    /// <summary>Publishes a program that is not published anyway: see packaging/publish.</summary>
    public static Task PublishAsync(string program) => RigImage.RunScriptAsync(Path.Combine("packaging", "publish"), program);

    /// <summary>Builds the Debian packages of these sources: the guest's first, then Dom0's.</summary>
    /// <param name="version">As which version; their own if null. Another takes minutes to compile.</param>
    /// <returns>The files.</returns>
    public static async Task<string[]> PackagesAsync(string? version = null) =>
    [
        .. (version is null
            ? await RigImage.RunScriptAsync(Path.Combine("packaging", "deb", "build"))
            : await RigImage.RunScriptAsync(Path.Combine("tests", "other-version"), version))
            .Split('\n').Take(2).Select(package => Path.Combine(RigImage.RepositoryRoot, package)),
    ];

    /// <summary>Installs packages in one step, over what is there, be it older or newer; returns when the service runs.</summary>
    public static async Task InstallPackagesAsync(XenGuest guest, params string[] packages)
    {
        (await guest.RunAsync("rm -rf /tmp/packages; mkdir /tmp/packages")).Check();
        await Task.WhenAll(packages.Select(package => guest.PushAsync(package, $"/tmp/packages/{Path.GetFileName(package)}")));
        // The libraries that it depends on are there, without their packages.
        (await guest.RunAsync("""
            until systemctl --quiet is-active multi-user.target; do sleep 0.2; done
            mkdir -p /var/lib/dpkg/info /var/lib/dpkg/updates
            dpkg --force-depends --force-downgrade --install /tmp/packages/*.deb 2>&1 && systemctl is-active xenloopd && exit 0
            systemctl status xenloopd
            dmesg | tail -n 30
            exit 1
            """)).Check();
    }

    /// <summary>Starts the daemon; returns when it answers. Its messages go to <see cref="LogAsync"/>.</summary>
    public async Task StartAsync(string arguments = "") => (await _run(StartScript(arguments), null)).Check();

    /// <summary>
    /// Strikes the daemon with KILL or STOP after some seconds, and starts it again or continues it after some more;
    /// all by the clock over there.
    /// </summary>
    public async Task StrikeAsync(string signal, double before, double down) => (await _run(string.Create(CultureInfo.InvariantCulture,
        $"""
        sleep {before}
        kill -{signal} $(cat {PidFile})
        sleep {down}
        {(signal == "KILL" ? StartScript("") : $"kill -CONT $(cat {PidFile})")}
        """), null)).Check();

    /// <summary>Sends a signal (KILL, STOP, CONT, TERM) to the daemon.</summary>
    public async Task SignalAsync(string signal) => (await _run($"kill -{signal} $(cat {PidFile})", null)).Check();

    /// <summary>Asks it to end and waits until it has.</summary>
    public Task StopAsync() => EndAsync("TERM");

    /// <summary>Kills it and waits until it is gone: until then its socket is there, and a successor would not start.</summary>
    public Task KillAsync() => EndAsync("KILL");

    private async Task EndAsync(string signal) =>
        (await _run($"pid=$(cat {PidFile}); kill -{signal} $pid; while kill -0 $pid 2>/dev/null; do sleep 0.05; done", null)).Check();

    /// <summary>What it answers to <c>status</c>.</summary>
    public async Task<JsonElement> StatusAsync() =>
        JsonDocument.Parse((await _run("xenloop status --json", null)).Check().Output).RootElement;

    /// <summary>The status of its channel to a domain's first vif; null when there is none.</summary>
    public async Task<JsonElement?> PeerAsync(int domid) => FindPeer(await StatusAsync(), domid);

    /// <summary>Waits until the channel to a domain is in this state ("running", say).</summary>
    /// <param name="domid">The peer.</param>
    /// <param name="state">As the status says it.</param>
    /// <param name="pinging">Meanwhile pings this address of the peer's: without traffic no channel is built.</param>
    public async Task WaitForAsync(int domid, string state, string? pinging = null)
    {
        // The loop runs over there, so that little of it is in the way of what is being measured.
        CommandResult result = await _run(
            $$"""
            for i in $(seq 300); do
              xenloop status --json | tr -d ' \n' | grep -q '"domid":{{domid}},"vif":0,"mac":"[0-9a-f:]*","state":"{{state}}"' && exit 0
              {{(pinging is null ? "" : $"ping -q -c 1 -W 1 {pinging} >/dev/null")}}
              sleep 0.1
            done
            echo 'The channel to domain {{domid}} is not {{state}} after 30 s.'; xenloop status --json; cat {{LogFile}}; exit 1
            """, TimeSpan.FromMinutes(3));
        result.Check();
    }

    /// <summary>What it has written to standard error.</summary>
    public async Task<string> LogAsync() => (await _run($"cat {LogFile}", null)).Output;

    private static string StartScript(string arguments) => $$"""
        setsid nohup xenloopd {{arguments}} >>{{LogFile}} 2>&1 </dev/null &
        pid=$!
        echo $pid >{{PidFile}}
        until xenloop status --json >/dev/null 2>&1; do
          kill -0 $pid 2>/dev/null || { echo 'xenloopd ended:'; cat {{LogFile}}; exit 1; }
          sleep 0.1
        done
        """;

    private static JsonElement? FindPeer(JsonElement status, int domid)
    {
        foreach (JsonElement vif in status.GetProperty("vifs").EnumerateArray())
        {
            foreach (JsonElement peer in vif.GetProperty("peers").EnumerateArray())
            {
                if (peer.GetProperty("domid").GetInt32() == domid)
                {
                    return peer;
                }
            }
        }

        return null;
    }

    private static IEnumerable<(string Local, string Remote)> Programs()
    {
        foreach ((string program, string folder) in new[] { ("xenloopd", "/usr/sbin"), ("xenloop", "/usr/bin") })
        {
            string local = Path.Combine(PublishFolder, program, program);
            if (!File.Exists(local))
            {
                throw new FileNotFoundException($"{local} is missing. Publish the programs first: ./test publishes them.");
            }

            yield return (local, $"{folder}/{program}");
        }
    }
}
