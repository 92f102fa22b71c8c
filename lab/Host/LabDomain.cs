using System.Net;
using System.Net.NetworkInformation;

namespace XenLoop.Lab;

/// <summary>A domain of the lab: a network namespace, and the two sockets that make a process there one of this domain.</summary>
internal class LabDomain
{
    private readonly List<LabProcess> _processes = [];

    public required ushort Domid { get; init; }

    /// <summary>As <c>xl list</c> shows it; <see cref="LabHost.RenameAsync"/> changes it.</summary>
    public required string Name { get; set; }

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

/// <summary>A guest: each vif is an <c>eth</c>V here and a <c>vif</c>D<c>.</c>V in its backend's domain, on a bridge there.</summary>
internal sealed class LabGuest : LabDomain
{
    private volatile IReadOnlyList<LabVif> _vifs = [];

    public required Guid Uuid { get; init; }

    /// <summary>Those plugged in, by index; of a guest that was destroyed, the last ones.</summary>
    public IReadOnlyList<LabVif> Vifs
    {
        get => _vifs;
        set => _vifs = [.. value.OrderBy(v => v.Index)];
    }

    /// <summary>The vif with this index, which is plugged in.</summary>
    public LabVif this[int vif] =>
        _vifs.FirstOrDefault(v => v.Index == vif) ?? throw new InvalidOperationException($"{Name} has no vif {vif}.");

    /// <summary>Vif 0's MAC, as all that follows is vif 0's.</summary>
    public PhysicalAddress Mac => this[0].Mac;

    public string MacText => this[0].MacText;

    public IPAddress LinkLocal => this[0].LinkLocal;

    public string Bridge => this[0].Bridge;

    public string Backend => this[0].Backend;

    /// <summary>The guest's area in XenStore.</summary>
    public string Home => $"/local/domain/{Domid}";

    /// <summary>What libxl keeps of the guest for itself: no guest reads or writes it.</summary>
    public string Libxl => $"/libxl/{Domid}";
}
