using System.Net.Sockets;
using System.Text.Json;
using XenLoop.Service;

namespace XenLoop.Lab;

/// <summary>Asks the daemon of a lab's domain, through its control socket, as the operator's command does.</summary>
internal static class LabStatus
{
    /// <summary>Null while no daemon answers.</summary>
    public static JsonElement? Ask(LabDomain domain)
    {
        try
        {
            return JsonDocument.Parse(ControlClient.Ask(Path.Combine(domain.RuntimeDirectory, "control.sock"), "status")).RootElement;
        }
        catch (Exception e) when (e is SocketException or IOException or JsonException)
        {
            return null;
        }
    }

    /// <summary>A guest's channels, of every vif.</summary>
    public static IEnumerable<JsonElement> Peers(JsonElement status) =>
        status.TryGetProperty("vifs", out JsonElement vifs)
            ? vifs.EnumerateArray().SelectMany(v => v.GetProperty("peers").EnumerateArray())
            : [];
}
