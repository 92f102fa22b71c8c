using System.Diagnostics;
using System.Globalization;
using XenLoop.Divert;
using XenLoop.Interop.Linux;
using XenLoop.Tests.Unit;

namespace XenLoop.Tests.Unit
{
    /// <summary>A process that holds a divert until it is killed.</summary>
    internal static class DivertHolder
    {
        internal const string Variable = "XENLOOP_TEST_HOLD_DIVERT";

        /// <summary>Starts it in the namespace of the calling thread; eth0 is diverted when this returns.</summary>
        public static Process Start(DivertRung rung, MacAddress own, MacAddress peer)
        {
            // The test assembly has no Main of its own: the runtime's start-up hook is the way in.
            string assembly = typeof(DivertHolder).Assembly.Location;
            ProcessStartInfo start = new("dotnet", ["exec", assembly]) { RedirectStandardOutput = true };
            start.Environment["DOTNET_STARTUP_HOOKS"] = assembly;
            start.Environment[Variable] = string.Join(',', ((int)rung).ToString(CultureInfo.InvariantCulture), own, peer);
            Process process = Process.Start(start)!;
            string? said = process.StandardOutput.ReadLine();
            return said == "holding" ? process : throw new InvalidOperationException($"The holder said '{said}'.");
        }

        public static void Hold(string what)
        {
            string[] parts = what.Split(',');
            TapDevice tap = TapDevice.Open("xl1.0", uso: false);
            using (Links links = new())
            {
                tap.BringUp(links, 1500, 1000);
            }
            BpfRingBuffer demands = new("test_demand", 4096);
            VifDivert divert = VifDivert.Attach(
                "eth0", MacAddress.Parse(parts[1]), 1, 0, demands, (DivertRung)int.Parse(parts[0], CultureInfo.InvariantCulture));
            divert.Connect(MacAddress.Parse(parts[2]), tap.Index, 0);
            divert.Slot(0).Open();
            Console.WriteLine("holding");
            Thread.Sleep(Timeout.Infinite);
            GC.KeepAlive(divert);
            GC.KeepAlive(tap);
            GC.KeepAlive(demands);
        }
    }
}

/// <summary>Called by the runtime before Main when DOTNET_STARTUP_HOOKS names this assembly.</summary>
internal static class StartupHook
{
    public static void Initialize()
    {
        if (Environment.GetEnvironmentVariable(DivertHolder.Variable) is string what)
        {
            DivertHolder.Hold(what);
        }
    }
}
