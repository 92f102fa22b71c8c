using System.Text.Json;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Loop;

/// <summary>
/// What the daemon is on this domain: a guest, or Dom0's introducer. Level-triggered: whatever fired, a turn compares
/// what should be with what is. All calls come from the control thread.
/// </summary>
internal interface IRole : IDisposable
{
    /// <summary>For the service manager: what the daemon does.</summary>
    string Activity { get; }

    /// <summary>Descriptors that become readable when a turn is due; the same ones for life.</summary>
    IReadOnlyList<int> Descriptors { get; }

    /// <summary>Takes the watches that fired, and brings what is closer to what should be.</summary>
    /// <returns>When another turn is due though nothing fires.</returns>
    Deadline Turn();

    /// <summary>Returns when every other thread of the role has answered; never, when one hangs.</summary>
    void AwaitThreads();

    /// <summary>Makes known what this role answers besides what all do.</summary>
    void Register(ControlSocket control);

    /// <summary>Takes over another configuration; a turn follows.</summary>
    void Configure(Configuration configuration);

    /// <summary>Writes the members of the status object.</summary>
    void WriteStatus(Utf8JsonWriter json);
}
