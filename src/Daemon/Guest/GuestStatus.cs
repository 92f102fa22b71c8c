using System.Text.Json;
using XenLoop.Divert;
using XenLoop.Guest.Channels;
using XenLoop.Protocol;
using XenLoop.Settings;

namespace XenLoop.Guest;

/// <summary>What a guest's daemon says of itself (docs/man/xenloop.1.md).</summary>
/// <param name="introductions">What it is told.</param>
/// <param name="vifs">What it is attached to.</param>
/// <param name="channels">Those there are.</param>
/// <param name="kept">Memory of sessions that are over.</param>
/// <param name="disabled">Whom the operator keeps on netfront.</param>
internal sealed class GuestStatus(Introductions introductions, Vifs vifs, ChannelTable channels, KeptMemory kept, DisabledPeers disabled)
{
    /// <summary>Writes the members of the status object.</summary>
    public void Write(Utf8JsonWriter json, ushort domid, Standing standing, GuestSettings settings, TimeSpan now)
    {
        Containment.WriteStatus(json);
        json.WriteString("role", "guest");
        json.WriteNumber("domid", domid);
        json.WriteBoolean("enabled", settings.Enabled);
        json.WriteString("standing", standing.ToString().ToLowerInvariant());
        WriteSettings(json, settings);
        json.WriteNumber("channels", channels.Count);
        json.WriteNumber("ring_memory_bytes", channels.Memory);
        json.WriteNumber("kept_memory_bytes", kept.Bytes);
        json.WriteNumber("kept_grants", kept.Grants);
        json.WriteNumber("ring_memory_limit_bytes", channels.MemoryLimit);
        if (vifs.Complaint is { } complaint)
        {
            json.WriteString("last_error", complaint);
        }

        json.WriteStartArray("told_vifs");
        foreach (int vif in introductions.Vifs.Keys)
        {
            json.WriteNumberValue(vif);
        }

        json.WriteEndArray();
        json.WriteStartArray("vifs");
        foreach (VifPort port in vifs.Ports)
        {
            WriteVif(json, port, now);
        }

        json.WriteEndArray();
    }

    private static void WriteSettings(Utf8JsonWriter json, GuestSettings settings)
    {
        json.WriteStartObject("settings");
        json.WriteNumber("packets_per_second", settings.PacketsPerSecond);
        json.WriteNumber("idle_seconds", settings.IdleSeconds);
        json.WriteNumber("max_channels", settings.MaxChannels);
        if (settings.MaxMemoryMiB is { } memory)
        {
            json.WriteNumber("max_memory_mib", memory);
        }

        json.WriteEndObject();
    }

    private void WriteVif(Utf8JsonWriter json, VifPort port, TimeSpan now)
    {
        json.WriteStartObject();
        json.WriteNumber("vif", port.Vif);
        json.WriteString("interface", port.InterfaceName);
        json.WriteString("mac", port.Mac.ToString());
        json.WriteString("divert", port.Divert.Rung.ToString().ToLowerInvariant());
        json.WriteBoolean("filtered", port.Divert.HasOthers);
        json.WriteString("obstacle", port.Obstacle);
        json.WriteStartArray("peers");
        foreach ((ChannelKey key, Introduction peer) in introductions.Peers.Where(p => p.Key.Vif == port.Vif).OrderBy(p => p.Key.Peer).ThenBy(p => p.Key.PeerVif))
        {
            if (!channels.Contains(key))
            {
                WriteIdlePeer(json, port, key, peer);
            }
        }

        foreach (Channel channel in channels.All.Where(c => c.Key.Vif == port.Vif))
        {
            json.WriteStartObject();
            channel.WriteStatus(json, now);
            WriteDisabled(json, disabled.Contains(channel.PeerMac));
            json.WriteEndObject();
        }

        json.WriteEndArray();
        json.WriteEndObject();
    }

    private void WriteIdlePeer(Utf8JsonWriter json, VifPort port, ChannelKey key, Introduction peer)
    {
        DivertCounters divert = port.Divert.Read(peer.Mac);
        json.WriteStartObject();
        json.WriteNumber("domid", key.Peer);
        json.WriteNumber("vif", key.PeerVif);
        json.WriteString("mac", peer.Mac.ToString());
        json.WriteString("state", "idle");
        json.WriteNumber("packets_seen", divert.Seen);
        json.WriteNumber("packets_diverted", divert.Diverted);
        WriteDisabled(json, disabled.Contains(peer.Mac));
        json.WriteEndObject();
    }

    private static void WriteDisabled(Utf8JsonWriter json, bool isDisabled)
    {
        if (isDisabled)
        {
            json.WriteBoolean("disabled", true);
        }
    }
}
