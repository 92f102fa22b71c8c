using System.Text;
using System.Text.Json;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Settings;

namespace XenLoop.Command;

/// <summary>What was looked at, and how it is.</summary>
/// <param name="IsWell">Null for what is only told.</param>
/// <param name="What">Was looked at.</param>
/// <param name="Found">How it is.</param>
/// <param name="Remedy">What to do; empty where nothing is wrong.</param>
internal readonly record struct Finding(bool? IsWell, string What, string Found, string Remedy = "");

/// <summary>"xenloop doctor": looks at all that channels need, on this domain, and names the remedy for what is missing.</summary>
internal static class Doctor
{
    private static readonly Version _oldestKernel = new(5, 8);

    // The device, and the driver that makes it.
    private static readonly (string Node, string Module)[] _devices =
        [("/dev/net/tun", "tun"), ("/dev/xen/gntalloc", "xen-gntalloc"), ("/dev/xen/gntdev", "xen-gntdev"), ("/dev/xen/evtchn", "xen-evtchn")];

    public static System.CommandLine.Command Create() =>
        Request.Create("doctor", "Look at all that channels need here, and name the remedy for what is missing.", (_, daemon) =>
        {
            List<Finding> findings = [.. Look(daemon)];
            Console.Write(Draw(findings, Terminal.HasColours));
            return findings.Any(f => f.IsWell == false) ? ExitCode.Failed : ExitCode.Fine;
        });

    public static string Draw(IReadOnlyCollection<Finding> findings, bool coloured)
    {
        Table table = new("", "WHAT", "FOUND");
        foreach (Finding finding in findings)
        {
            (string word, Tone tone) = finding.IsWell switch { true => ("ok", Tone.Good), false => ("WRONG", Tone.Bad), _ => ("-", Tone.Faint) };
            table.Add(new Cell(word, tone), finding.What, finding.Found);
        }

        // A remedy is a line of its own, below what it is for: with both in one line neither would be read.
        StringBuilder text = new();
        foreach ((string line, string remedy) in table.Draw("", coloured).TrimEnd('\n').Split('\n').Zip(findings.Select(f => f.Remedy).Prepend("")))
        {
            text.Append(line).Append('\n');
            if (remedy.Length > 0)
            {
                text.Append($"       -> {Table.Plain(remedy)}\n");
            }
        }

        int wrong = findings.Count(f => f.IsWell == false);
        return $"{text}\n{(wrong == 0 ? "Nothing is wrong." : $"{wrong} of {findings.Count} wrong.")}\n";
    }

    /// <summary>In the order in which one thing needs the other.</summary>
    public static IEnumerable<Finding> Look(DaemonLink daemon)
    {
        yield return Check(Environment.IsPrivilegedProcess, "user", Environment.IsPrivilegedProcess ? "root" : "not root: most of what follows cannot be seen", "sudo xenloop doctor");
        yield return Check(Machine.IsXenDomain, "Xen", Machine.IsXenDomain ? "a domain of Xen's" : "this machine is no Xen domain", "xenloop is of use in a Xen guest, and in Dom0");
        JsonElement? status = null;
        string silence = "";
        try
        {
            status = daemon.Ask("status");
        }
        catch (CommandException e)
        {
            silence = e.Message;
        }

        yield return Check(status is not null, "daemon", status is null ? silence : $"answers, process {status.Value.Whole("pid")}", "systemctl start xenloopd; journalctl -u xenloopd says why it ended");
        if (status?.Text("version") is { } version)
        {
            yield return Check(version == ControlLoop.Version, "version", $"daemon {version}, this command {ControlLoop.Version}", "systemctl restart xenloopd starts the daemon that is installed");
        }

        yield return LookAtConfiguration(status?.Text("configuration"));
        List<Finding> ofXenStore = LookAtXenStore(status, out bool isDom0);
        foreach (Finding finding in ofXenStore)
        {
            yield return finding;
        }

        foreach (Finding finding in isDom0 ? DoctorOfDom0.Look(status) : LookAtGuest(status))
        {
            yield return finding;
        }
    }

    /// <summary>Of a check that is well no remedy is told.</summary>
    public static Finding Check(bool isWell, string what, string found, string remedy) => new(isWell, what, found, isWell ? "" : remedy);

    private static Finding LookAtConfiguration(string? path)
    {
        try
        {
            Configuration configuration = path is null ? Configuration.LoadOrDefaults(Configuration.DefaultPath) : Configuration.Load(path);
            return new(true, "configuration", configuration.Path ?? "no file; the defaults");
        }
        catch (ConfigurationException e)
        {
            return new(false, "configuration", e.Message, "correct it; the one in force stays until then, but the daemon would not start with this");
        }
    }

    private static List<Finding> LookAtXenStore(JsonElement? status, out bool isDom0)
    {
        isDom0 = status is { } known ? known.Text("role") == "dom0" : Machine.IsControlDomain;
        List<Finding> findings = [];
        try
        {
            using XenStore xenStore = XenStore.Open();
            findings.Add(new(true, "XenStore", $"answers; this is domain {xenStore.Read(StorePaths.OwnDomid) ?? "0"}"));
            if (!isDom0)
            {
                string? offer = xenStore.Read(StorePaths.OwnOffer);
                findings.Add(Check(Offer.Parse(offer) is not null, "offer", offer switch
                {
                    null => "none is written",
                    Offer.Off => "this guest is switched off",
                    _ => $"protocol and features {offer}",
                }, offer == Offer.Off ? "set \"enabled = true\" in the configuration, and \"xenloop reload\"" : "the daemon writes it; start it"));
                string[] told = [.. xenStore.List(StorePaths.OwnIntroductions).Where(n => ChannelKey.ParseVif(n) is not null)];
                int peers = told.Sum(v => xenStore.List($"{StorePaths.OwnIntroductions}/{v}").Length);
                findings.Add(Check(told.Length > 0, "introductions", told.Length == 0 ? "Dom0 tells nothing of this guest's vifs" : $"{told.Length} vifs, {peers} peers",
                    "have xenloopd run in Dom0, and this guest's vifs on a bridge there; \"xenloop status\" in Dom0 says more"));
            }
        }
        catch (NativeException e)
        {
            findings.Add(new(false, "XenStore", e.Message, "load the driver (modprobe xenfs), be root, have libxenstore installed"));
        }

        return findings;
    }

    private static IEnumerable<Finding> LookAtGuest(JsonElement? status)
    {
        string release = Machine.ReadOrEmpty("/proc/sys/kernel/osrelease").Trim();
        bool isKnown = Version.TryParse(release.Split('-', '+')[0], out Version? kernel);
        yield return Check(!isKnown || kernel >= _oldestKernel, "kernel", release, $"Linux {_oldestKernel} or later is needed");
        foreach ((string node, string module) in _devices)
        {
            bool isThere = File.Exists(node);
            yield return Check(isThere, node, isThere ? "there" : "missing", $"modprobe {module} (a container needs the device given to it)");
        }

        if (status is not { } answer)
        {
            yield break;
        }

        if (answer.Text("last_error") is { } error)
        {
            yield return new(false, "vifs", error, "the daemon tries again by itself");
        }

        if (answer.TryGetProperty("unprepared_suspends", out JsonElement suspends))
        {
            yield return new(false, "suspends", $"{suspends.Whole("count")} that Dom0 had not announced", suspends.Text("remedy") ?? "");
        }

        foreach (JsonElement vif in answer.Items("vifs"))
        {
            string name = $"vif {vif.Whole("vif")}";
            string rung = vif.Text("divert") == "tcx" ? "TCX" : "cls_bpf; Linux 6.6 has TCX, which costs less";
            yield return Check(vif.Text("obstacle") is null, name, vif.Text("obstacle") ?? $"{vif.Text("interface")}, divert by {rung}", "remove it, if channels are worth more; \"xenloop status\" shows when it is gone");
            foreach (JsonElement peer in vif.Items("peers").Where(p => p.Has("last_error") || p.Flag("disabled")))
            {
                yield return new(false, $"peer {peer.Whole("domid")}", GuestView.Why(answer, vif, peer), peer.Flag("disabled") ? $"xenloop enable {peer.Whole("domid")}" : "the logs of both guests say more: journalctl -u xenloopd");
            }
        }

        foreach (int vif in answer.Items("told_vifs").Select(v => v.GetInt32()).Where(t => !answer.Items("vifs").Any(v => v.Whole("vif") == t)))
        {
            yield return new(false, $"vif {vif}", "introduced, and not attached to: its interface is not there, or this guest takes no part", "ip link shows the interfaces");
        }
    }
}
