using System.Text.Json;

namespace XenLoop.Command;

/// <summary>What the doctor looks at in Dom0: bridges, policy, guests, and the hooks before a save.</summary>
internal static class DoctorOfDom0
{
    private const string Helper = "libxl-save-helper";
    private const string Ours = "/usr/lib/xenloop/save-helper";
    private const string XapiHook = "/usr/lib/xenloop/xapi-hook";

    public static IEnumerable<Finding> Look(JsonElement? status)
    {
        foreach (Finding finding in LookAtHooks())
        {
            yield return finding;
        }

        if (status is not { } answer)
        {
            yield break;
        }

        JsonElement[] guests = [.. answer.Items("guests")];
        string[] segments = [.. guests.SelectMany(g => g.Items("vifs")).Select(v => v.Text("segment")).OfType<string>().Distinct()];
        yield return Doctor.Check(guests.Length == 0 || segments.Length > 0, "bridges", segments.Length > 0 ? string.Join(", ", segments) : "no vif of any guest is on one", "put guests' vifs on a bridge (bridge= in the guest's configuration)");
        foreach (JsonElement guest in guests)
        {
            foreach (JsonElement vif in guest.Items("vifs").Where(v => v.Text("restricted") is not null && !v.Flag("restriction_ignored")))
            {
                yield return new(null, $"{guest.Text("name")} vif {vif.Whole("vif")}", vif.Text("restricted")!);
            }

            if (guest.Text("apart") is { } apart)
            {
                yield return new(null, $"guest {guest.Text("name")}", apart);
            }
        }

        int denied = guests.Sum(g => g.Members("denied").Sum(r => r.Value.GetArrayLength()));
        yield return new(null, "policy", denied == 0 ? "keeps nobody apart" : $"keeps {denied} pairs of guests apart; \"xenloop status\" names the rules");
    }

    private static IEnumerable<Finding> LookAtHooks()
    {
        bool some = false;
        foreach (string helper in Helpers())
        {
            some = true;
            string? target = File.ResolveLinkTarget(helper, returnFinalTarget: false)?.FullName;
            bool ours = target == Ours && File.Exists($"{helper}.real");
            yield return Doctor.Check(ours, "save helper", ours ? $"{helper} is XenLoop's" : $"{helper} is not XenLoop's: guests are saved with channels open", "/usr/lib/xenloop/hook-saves install");
        }

        if (Directory.Exists("/etc/xapi.d"))
        {
            some = true;
            bool hooked = Directory.EnumerateFiles("/etc/xapi.d", "*", SearchOption.AllDirectories).Any(f => File.ResolveLinkTarget(f, returnFinalTarget: false)?.FullName == XapiHook);
            yield return Doctor.Check(hooked, "XAPI's hooks", hooked ? "there" : "missing: guests are saved with channels open", "/usr/lib/xenloop/hook-saves install");
        }

        if (!some)
        {
            yield return new(null, "save helper", "neither libxl's save helper nor XAPI is here: nobody saves guests");
        }
    }

    /// <summary>Where distributions have it.</summary>
    private static IEnumerable<string> Helpers()
    {
        foreach (string folder in (string[])["/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/local/lib", "/usr/local/libexec"])
        {
            if (!Directory.Exists(folder))
            {
                continue;
            }

            foreach (string xen in Directory.EnumerateDirectories(folder, "xen*"))
            {
                string helper = Path.Combine(xen, "bin", Helper);
                if (Path.Exists(helper))
                {
                    yield return helper;
                }
            }
        }
    }
}
