using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;
using System.Text;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Lab;

namespace XenLoop.Tests.Lab;

/// <summary>Looks at a domain from inside its network namespace, in this process. What is opened there can be used from any thread.</summary>
internal static partial class Namespaces
{
    private const int BPF_PROG_QUERY = 16;
    private const int CLONE_NEWNET = 0x40000000;

    public static T Run<T>(LabDomain domain, Func<T> function)
    {
        T result = default!;
        ExceptionDispatchInfo? failure = null;
        // A thread of its own, for it does not come back from there.
        Thread thread = new(() =>
        {
            try
            {
                Enter(domain.NetNs);
                result = function();
            }
            catch (Exception exception)
            {
                failure = ExceptionDispatchInfo.Capture(exception);
            }
        });
        thread.Start();
        thread.Join();
        failure?.Throw();
        return result;
    }

    /// <summary>What a daemon has put into the guest, named; empty when there is nothing.</summary>
    public static string[] Traces(LabGuest guest) => Run(guest, () =>
    {
        string[] interfaces = [.. Interfaces().Keys];
        List<string> traces = [.. interfaces.Where(n => n is not "lo" && !IsVif(n))];
        using Links links = new();
        using TrafficControl trafficControl = new();
        foreach (string vif in interfaces.Where(IsVif))
        {
            int index = links.FindLink(vif)!.Index;
            if (trafficControl.HasClsact(index))
            {
                traces.Add("clsact");
            }

            traces.AddRange(trafficControl.ListFilters(index, TcHook.Egress).Select(f => $"filter {f.Name}"));
            traces.AddRange(trafficControl.ListFilters(index, TcHook.Ingress).Select(f => $"filter {f.Name}"));
            int tcx = CountTcx(index, BpfAttachType.BPF_TCX_EGRESS) + CountTcx(index, BpfAttachType.BPF_TCX_INGRESS);
            traces.AddRange(Enumerable.Repeat("tcx", tcx));
        }

        return traces.ToArray();

        static bool IsVif(string name) => name.StartsWith("eth", StringComparison.Ordinal);
    });

    /// <summary>Packets that a guest has sent by its vif: netback's side of it has received them.</summary>
    public static long SentByVif(LabHost host, LabGuest guest) => Run(host.Dom0, () => Interfaces()[$"vif{guest.Domid}.0"]);

    /// <summary>UDP datagrams that have arrived for ports where nobody listens, by whatever way.</summary>
    public static long StrayDatagrams(LabGuest guest) => Run(guest, () =>
    {
        string[][] udp = [.. File.ReadLines("/proc/thread-self/net/snmp").Where(l => l.StartsWith("Udp:", StringComparison.Ordinal)).Select(l => l.Split(' '))];
        return long.Parse(udp[1][Array.IndexOf(udp[0], "NoPorts")], null);
    });

    /// <summary>The interfaces of the namespace the thread is in, and the packets each has received.</summary>
    private static Dictionary<string, long> Interfaces() =>
        File.ReadLines("/proc/thread-self/net/dev").Skip(2).Select(l => l.Split(':')).ToDictionary(
            l => l[0].Trim(),
            l => long.Parse(l[1].Split(' ', StringSplitOptions.RemoveEmptyEntries)[1], null));

    private static unsafe void Enter(string netns)
    {
        int number;
        fixed (byte* path = Encoding.UTF8.GetBytes($"/run/netns/{netns}\0"))
        {
            number = LibC.open(path, LibC.O_RDONLY | LibC.O_CLOEXEC, default);
        }

        using SafeFd fd = new(number);
        if (number < 0 || setns(number, CLONE_NEWNET) != 0)
        {
            throw new NativeException("setns", netns, LibC.errno);
        }
    }

    private static unsafe int CountTcx(int interfaceIndex, BpfAttachType type)
    {
        QueryAttribute attribute = new() { target_ifindex = (uint)interfaceIndex, attach_type = (uint)type };
        int SYS_bpf = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 280 : 321;
        // Before Linux 6.6 the type is unknown, and the count stays 0.
        _ = LibC.syscall(SYS_bpf, BPF_PROG_QUERY, &attribute, sizeof(QueryAttribute));
        return (int)attribute.prog_cnt;
    }

    // int setns(int fd, int nstype);
    [LibraryImport("libc")]
    private static partial int setns(int fd, int nstype);

    /// <summary>union bpf_attr, BPF_PROG_QUERY.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct QueryAttribute
    {
        public uint target_ifindex;
        public uint attach_type;
        public uint query_flags;
        public uint attach_flags;
        public ulong prog_ids;
        public uint prog_cnt;
        private readonly uint _padding;
        private readonly ulong _prog_attach_flags;
        private readonly ulong _link_ids;
        private readonly ulong _link_attach_flags;
        private readonly ulong _revision;
    }
}
