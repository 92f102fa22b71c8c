using System.Globalization;
using System.Runtime.InteropServices;
using XenLoop.Interop.Linux;

namespace XenLoop.Service;

/// <summary>
/// A daemon that is told to wait, and cannot begin or go on for want of something that may come yet (xenstored, a driver, a library),
/// begins anew after a while, and later each time: in the same process, of which nothing else is left, so that a service manager has
/// nothing to do and nothing to log. What is known of the attempts before is handed on in the environment.
/// </summary>
internal static class Attempts
{
    private const string Variable = "XENLOOPD_ATTEMPTS";

    // Apart from each other by a character that no message has.
    private const char Separator = '\n';

    // Reasons kept: who fails for more of them in turn is heard again.
    private const int MostReasons = 8;

    private static readonly TimeSpan _first = TimeSpan.FromSeconds(1);
    private static readonly TimeSpan _last = TimeSpan.FromMinutes(5);

    // The number of failures in a row, then their reasons, the last one first.
    private static readonly string[] _history = Environment.GetEnvironmentVariable(Variable)?.Split(Separator) ?? [];

    /// <summary>How many have failed in a row.</summary>
    public static int Failed => _history.Length > 1 && int.TryParse(_history[0], NumberStyles.None, CultureInfo.InvariantCulture, out int failed) ? failed : 0;

    /// <summary>So long after so many failures in a row: from a second to five minutes.</summary>
    public static TimeSpan Delay(int failed) => failed <= 0 ? TimeSpan.Zero : TimeSpan.FromSeconds(Math.Min(Math.ScaleB(_first.TotalSeconds, failed - 1), _last.TotalSeconds));

    /// <summary>To be called first: waits if an attempt has failed. SIGHUP ends the wait, SIGTERM the process.</summary>
    public static void Await()
    {
        if (Failed == 0)
        {
            return;
        }

        // Whoever begins anew for another reason than a failure is not to wait.
        OwnProcess.SetEnvironmentVariable(Variable, "");
        TimeSpan left = Delay(Failed);
        using ManualResetEventSlim wake = new();
        using PosixSignalRegistration hangUp = PosixSignalRegistration.Create(PosixSignal.SIGHUP, context =>
        {
            context.Cancel = true;
            wake.Set();
        });
        // Whoever is ordered after the service is not to wait for as long.
        ServiceManager.Ready($"waiting to try again in {left.TotalSeconds:0} s: {_history[1]}");
        while (left > TimeSpan.Zero)
        {
            TimeSpan slice = left < ServiceManager.AliveInterval ? left : ServiceManager.AliveInterval;
            if (wake.Wait(slice))
            {
                return;
            }

            left -= slice;
            ServiceManager.Alive();
        }
    }

    /// <summary>Logs why this attempt failed, unless one before it failed for that, and begins the next one. Does not return.</summary>
    /// <param name="reason">Said to the administrator.</param>
    /// <param name="lasted">How long all was well. After a long time it counts as the first failure.</param>
    /// <exception cref="Interop.NativeException">The process cannot begin anew.</exception>
    public static void Again(string reason, TimeSpan lasted)
    {
        string[] reasons = lasted < _last && _history.Length > 1 ? _history[1..] : [];
        int failed = reasons.Length > 0 ? Failed + 1 : 1;
        reason = reason.Replace(Separator, ' ');
        if (Array.IndexOf(reasons, reason) < 0)
        {
            Log.Error($"{reason}. Trying again, at last every {_last.TotalMinutes:0} minutes; nothing more is said until something changes");
        }

        OwnProcess.SetEnvironmentVariable(
            Variable,
            string.Join(Separator, [failed.ToString(CultureInfo.InvariantCulture), reason, .. reasons.Where(r => r != reason).Take(MostReasons - 1)]));
        OwnProcess.Replace();
    }
}
