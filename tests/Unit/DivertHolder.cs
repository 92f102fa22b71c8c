using System.Diagnostics;
using System.Globalization;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Tests.Unit;

namespace XenLoop.Tests.Unit
{
    /// <summary>A process that holds a divert until it is killed.</summary>
    internal static unsafe class DivertHolder
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
            divert.Stamp(0).Open();
            Console.WriteLine("holding");
            Thread.Sleep(Timeout.Infinite);
            GC.KeepAlive(divert);
            GC.KeepAlive(tap);
            GC.KeepAlive(demands);
        }

        /// <summary>TCX programs at the egress of an interface (BPF_PROG_QUERY).</summary>
        public static int CountTcxPrograms(int index)
        {
            const int BPF_PROG_QUERY = 16;
            int SYS_bpf = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 280 : 321;
            prog_query_attr attribute = new() { target_ifindex = (uint)index, attach_type = (uint)BpfAttachType.BPF_TCX_EGRESS };
            return (int)LibC.syscall(SYS_bpf, BPF_PROG_QUERY, &attribute, sizeof(prog_query_attr)) == 0
                ? (int)attribute.prog_cnt
                : throw new NativeException("bpf(BPF_PROG_QUERY)", $"interface {index}", LibC.errno);
        }

        [StructLayout(LayoutKind.Sequential)]
        private struct prog_query_attr
        {
            public uint target_ifindex;
            public uint attach_type;
            public uint query_flags;
            public uint attach_flags;
            public ulong prog_ids;
            public uint prog_cnt;
            private readonly uint _pad;
            public ulong prog_attach_flags;
            public ulong link_ids;
            public ulong link_attach_flags;
            public ulong revision;
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
