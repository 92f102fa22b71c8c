using System.Diagnostics;
using System.Globalization;
using System.Net.Sockets;
using System.Text.Json;
using XenLoop.Dom0;
using XenLoop.Interop;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;
using XenLoop.Service;

namespace XenLoop.Command;

/// <summary>What a guest needs before it is suspended, and after it. Runs in Dom0.</summary>
internal static class Suspend
{
    /// <summary>Has a guest close its channels, and says whether it may be saved. A guest without a daemon costs no wait, whatever else is wrong.</summary>
    /// <param name="socket">Of Dom0's daemon.</param>
    /// <param name="domain">Domid, name or UUID.</param>
    /// <param name="holder">The process that suspends it; 0 for none.</param>
    /// <param name="timeout">For the guest, and for Dom0's daemon.</param>
    /// <returns>The exit code.</returns>
    /// <exception cref="NativeException">XenStore cannot be reached.</exception>
    public static int Quiesce(string socket, string domain, int holder, TimeSpan timeout)
    {
        Stopwatch watch = Stopwatch.StartNew();
        using XenStore xenStore = XenStore.Open();
        if (Find(xenStore, domain) is not { } domid)
        {
            return ExitCode.Failed;
        }

        if (Offer.Parse(xenStore.Read(StorePaths.Offer(domid))) is null)
        {
            TryTell(socket, $"quiesce {domid} {holder}");
            Console.WriteLine("absent");
            return ExitCode.Fine;
        }

        string guest = $"domain {domid} ({xenStore.Read(StorePaths.GuestName(domid))})";
        string remedy = $"Restart xenloopd in the guest (its log may say more: journalctl -u xenloopd), and try again. If that daemon is known to be dead: xenstore-rm {StorePaths.Area(domid)}";
        bool pending = false;
        string fault = "";
        do
        {
            try
            {
                string state = Ask(socket, $"quiesce {domid} {holder}", timeout - watch.Elapsed);
                if (state != "pending")
                {
                    Console.WriteLine(state);
                    return ExitCode.Fine;
                }

                pending = true;
            }
            catch (Exception e) when (e is SocketException or IOException or JsonException)
            {
                // It may just be starting again; what it was asked before stands in XenStore.
                fault = e.Message;
            }

            // The guest answers within milliseconds, or not for long.
            Thread.Sleep(10);
        }
        while (watch.Elapsed < timeout);

        if (pending)
        {
            Console.Error.WriteLine($"xenloop: {guest} has not closed its channels within {timeout.TotalSeconds} s.");
        }
        else
        {
            // What it introduced stands while it is away, so the guest may have channels.
            Console.Error.WriteLine($"xenloop: {guest} may have channels, and xenloopd in Dom0, which would have them closed, does not answer on {socket} ({fault}).");
            remedy = "Start xenloopd in Dom0 (systemctl restart xenloopd), and try again";
        }

        string? type = Type(xenStore, domid);
        if (type is "pvh" or "hvm")
        {
            Console.Error.WriteLine($"xenloop: It can be saved all the same: its daemon finds out when it is resumed, and what its channels hold then is lost. {remedy}.");
            return ExitCode.NotAnswered;
        }

        Console.Error.WriteLine($"xenloop: It must not be saved: {(type is null ? "if it is a PV guest, its" : "a PV guest's")} image would be broken, with no error now, and the guest would crash when it is restored. {remedy}. Or shut the guest down instead.");
        return ExitCode.MustNotBeSaved;
    }

    /// <summary>Lets a guest have channels again.</summary>
    /// <returns>The exit code.</returns>
    /// <exception cref="NativeException">XenStore cannot be reached.</exception>
    /// <exception cref="CommandException">No daemon answers, or it cannot do it.</exception>
    public static int Resume(DaemonLink daemon, string domain)
    {
        using XenStore xenStore = XenStore.Open();
        if (Find(xenStore, domain) is not { } domid)
        {
            return ExitCode.Failed;
        }

        daemon.Ask($"resume {domid}");
        return ExitCode.Fine;
    }

    /// <summary>Whether it is heard or not: for a guest that has no daemon yet.</summary>
    private static void TryTell(string socket, string request)
    {
        try
        {
            Ask(socket, request, TimeSpan.FromMilliseconds(100));
        }
        catch (Exception e) when (e is SocketException or IOException or JsonException)
        {
            // A daemon that starts in such a guest now, while there is none in Dom0, finds nobody to have a channel with.
        }
    }

    /// <returns>The state in the answer.</returns>
    private static string Ask(string socket, string request, TimeSpan patience)
    {
        using JsonDocument json = JsonDocument.Parse(ControlClient.Ask(socket, request, patience));
        return json.RootElement.TryGetProperty("state", out JsonElement state)
            ? state.GetString()!
            : throw new IOException(json.RootElement.GetProperty("error").GetString());
    }

    /// <summary>By domid, name or UUID, which is how XAPI knows guests; says so where there is none.</summary>
    private static ushort? Find(XenStore xenStore, string domain)
    {
        bool isDomid = ushort.TryParse(domain, NumberStyles.None, CultureInfo.InvariantCulture, out ushort number);
        try
        {
            foreach (ushort domid in GuestDirectory.List(xenStore))
            {
                if (isDomid ? domid == number : xenStore.Read(StorePaths.GuestName(domid)) == domain || string.Equals(xenStore.Read(StorePaths.Vm(domid)), $"/vm/{domain}", StringComparison.OrdinalIgnoreCase))
                {
                    return domid;
                }
            }
        }
        catch (NativeException e) when (e.Errno == Errno.EACCES)
        {
            throw new CommandException(ExitCode.Refused, "this is no Dom0: guests may not see each other in XenStore; ask in Dom0");
        }

        Console.Error.WriteLine($"xenloop: there is no domain \"{domain}\"; xl list shows them");
        return null;
    }

    /// <returns>"pv", "pvh" or "hvm"; null where no toolstack tells.</returns>
    private static string? Type(XenStore xenStore, ushort domid) =>
        // libxl writes the first, for each guest. XAPI does not, but gives a device model to HVM guests, and only to them.
        xenStore.Read(StorePaths.LibxlType(domid)) ?? (xenStore.List(StorePaths.DeviceModel(domid)).Length > 0 ? "hvm" : null);
}
