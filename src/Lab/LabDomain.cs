using System.Globalization;
using System.Net;
using System.Net.NetworkInformation;
using XenLoop.Hypervisor;

namespace XenLoop.Lab;

/// <summary>A domain of the lab: a network namespace, and the two sockets that make a process there one of this domain.</summary>
internal class LabDomain
{
    private readonly List<LabProcess> _processes = [];

    public required ushort Domid { get; init; }

    public required string Name { get; init; }

    /// <summary>Network namespace, as <c>ip netns exec</c> takes it.</summary>
    public required string NetNs { get; init; }

    /// <summary>A directory of its own; RUNTIME_DIRECTORY names it to the domain's programs, as systemd does.</summary>
    public required string RuntimeDirectory { get; init; }

    public required IPAddress IPv4 { get; init; }

    public required IPAddress IPv6 { get; init; }

    /// <summary>XenStore's socket for this domain.</summary>
    public string StoreSocket => Path.Combine(RuntimeDirectory, "xenstored");

    /// <summary>The broker's socket for this domain.</summary>
    public string BrokerSocket => Path.Combine(RuntimeDirectory, "broker");

    /// <summary>Starts xenloopd here.</summary>
    /// <param name="binary">Path of the program.</param>
    /// <param name="arguments">Its arguments.</param>
    /// <param name="onLine">Called with each line of its output.</param>
    public LabProcess StartDaemon(string binary, IEnumerable<string>? arguments = null, Action<string>? onLine = null) =>
        Start(onLine, [binary, .. arguments ?? []]);

    /// <summary>Starts a shell command here, to run beside the test.</summary>
    public LabProcess Start(string command) => Start(null, ["sh", "-c", command]);

    /// <summary>Runs a shell command here and waits for its end.</summary>
    public async Task<(int ExitCode, string Output)> RunAsync(string command, CancellationToken cancellation = default)
    {
        using LabProcess process = Start(command);
        await process.WaitForExitAsync(cancellation);
        lock (_processes)
        {
            _processes.Remove(process);
        }

        return (process.ExitCode, process.Output);
    }

    /// <summary>Ends every process that was started here.</summary>
    public void KillAll()
    {
        LabProcess[] processes;
        lock (_processes)
        {
            processes = [.. _processes];
            _processes.Clear();
        }

        foreach (LabProcess process in processes)
        {
            process.Dispose();
        }
    }

    private LabProcess Start(Action<string>? onLine, IEnumerable<string> command)
    {
        Dictionary<string, string> environment = new()
        {
            [LabProtocol.SocketVariable] = BrokerSocket,
            ["XENSTORED_PATH"] = StoreSocket,
            ["RUNTIME_DIRECTORY"] = RuntimeDirectory,
        };
        LabProcess process = LabProcess.Start(onLine, environment, ["ip", "netns", "exec", NetNs, .. command]);
        lock (_processes)
        {
            _processes.Add(process);
        }

        return process;
    }
}

/// <summary>A guest with one vif: <c>eth0</c> here, <c>vif</c>N<c>.0</c> in Dom0, on a bridge there.</summary>
internal sealed class LabGuest : LabDomain
{
    public required PhysicalAddress Mac { get; init; }

    public required string Bridge { get; init; }

    public required Guid Uuid { get; init; }

    /// <summary>The MAC as XenStore writes it: <c>00:16:3e:78:00:01</c>.</summary>
    public string MacText => string.Join(':', Mac.GetAddressBytes().Select(b => b.ToString("x2", CultureInfo.InvariantCulture)));

    /// <summary>eth0's link-local address, made from the MAC.</summary>
    public IPAddress LinkLocal
    {
        get
        {
            byte[] m = Mac.GetAddressBytes();
            return new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, (byte)(m[0] ^ 2), m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]]);
        }
    }

    public string Home => $"/local/domain/{Domid}";

    /// <summary>The vif's backend area in XenStore, which the guest reads and does not write.</summary>
    public string Backend => $"/local/domain/0/backend/vif/{Domid}/0";
}
