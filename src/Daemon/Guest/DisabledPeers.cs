using System.Globalization;
using System.Text.Json;
using XenLoop.Interop.Linux;
using XenLoop.Loop;
using XenLoop.Protocol;
using XenLoop.Service;

namespace XenLoop.Guest;

/// <summary>
/// The peers that the operator keeps on netfront, by "xenloop disable", until the daemon is started again or for some seconds. By their MAC
/// addresses, which a migration does not change. To keep a peer there for good is for Dom0's policy to say.
/// </summary>
/// <param name="introductions">Who there is.</param>
/// <param name="channels">Of these, those of a peer that is switched off are closed.</param>
/// <param name="calls">Gets the peers that may have channels again: their calls may stand.</param>
/// <param name="clock">The monotonic clock.</param>
internal sealed class DisabledPeers(Introductions introductions, ChannelTable channels, HashSet<ChannelKey> calls, TimeProvider clock)
{
    private const int MostSeconds = 86_400;

    private readonly Dictionary<MacAddress, Deadline> _until = [];

    /// <summary>When <see cref="Expire"/> is due.</summary>
    public Deadline Due
    {
        get
        {
            Deadline due = Deadline.Never;
            foreach (Deadline until in _until.Values)
            {
                due = due.Or(until);
            }

            return due;
        }
    }

    public void Register(ControlSocket control)
    {
        control.Register("disable PEER SECONDS", (json, arguments) => Disable(json, arguments[0], arguments[1]));
        control.Register("enable PEER", (json, arguments) => Enable(json, arguments[0]));
    }

    public bool Contains(MacAddress mac) => _until.ContainsKey(mac);

    /// <summary>Lets those have channels again whose time is over.</summary>
    public void Expire(TimeSpan now)
    {
        foreach ((MacAddress mac, Deadline until) in _until)
        {
            if (until.IsDue(now))
            {
                Remove(mac, "the time is over");
            }
        }
    }

    private void Disable(Utf8JsonWriter json, string peer, string seconds)
    {
        if (!int.TryParse(seconds, NumberStyles.None, CultureInfo.InvariantCulture, out int time) || time > MostSeconds)
        {
            json.WriteString("error", $"\"{seconds}\" is no number of seconds from 0, for as long as the daemon runs, to {MostSeconds}");
            return;
        }

        List<MacAddress> found = Find(json, peer);
        foreach (MacAddress mac in found)
        {
            _until[mac] = time == 0 ? Deadline.Never : Deadline.At(clock.Now() + TimeSpan.FromSeconds(time));
            channels.Drop(mac, "switched off by the operator");
            Log.Info($"{mac} stays on netfront {(time == 0 ? "until the operator or a restart of this daemon ends that" : $"for {time} s")}");
        }

        WriteMacs(json, "disabled", found);
    }

    private void Enable(Utf8JsonWriter json, string peer)
    {
        List<MacAddress> found = Find(json, peer);
        found.ForEach(m => Remove(m, "on request"));
        WriteMacs(json, "enabled", found);
    }

    private void Remove(MacAddress mac, string why)
    {
        if (_until.Remove(mac))
        {
            Log.Info($"{mac} may have channels again: {why}");
            calls.UnionWith(introductions.Peers.Where(p => p.Value.Mac == mac).Select(p => p.Key));
        }
    }

    /// <summary>A domid stands for all the peer's vifs. Says so where there is nobody.</summary>
    private List<MacAddress> Find(Utf8JsonWriter json, string peer)
    {
        List<MacAddress> found = [];
        bool isMac = MacAddress.TryParse(peer, out MacAddress mac);
        foreach ((ChannelKey key, Introduction introduction) in introductions.Peers)
        {
            if ((isMac ? introduction.Mac == mac : key.Peer.ToString(CultureInfo.InvariantCulture) == peer) && !found.Contains(introduction.Mac))
            {
                found.Add(introduction.Mac);
            }
        }

        // One that has gone since may be enabled all the same.
        if (found.Count == 0 && isMac && _until.ContainsKey(mac))
        {
            found.Add(mac);
        }

        if (found.Count == 0)
        {
            json.WriteString("error", $"Dom0 has introduced no peer \"{peer}\"; give the domid or the MAC address of one that \"xenloop status\" shows");
        }

        return found;
    }

    private static void WriteMacs(Utf8JsonWriter json, string name, List<MacAddress> macs)
    {
        json.WriteStartArray(name);
        macs.ForEach(m => json.WriteStringValue(m.ToString()));
        json.WriteEndArray();
    }
}
