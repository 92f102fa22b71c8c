using System.Globalization;
using System.Text.Json;
using XenLoop.Control;
using XenLoop.DataPath;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Settings;

namespace XenLoop.Guest;

/// <summary>
/// The daemon in a guest: offers itself, follows Dom0's introductions, and keeps a channel to every peer introduced.
/// </summary>
internal sealed class GuestRole : IRole
{
    private const string IntroductionsNode = "xenloop";
    private const string IntroductionsToken = "introductions";

    // A vif that Dom0 introduces may not have its interface yet (hot-plug): look again.
    private const int InterfaceRetryMilliseconds = 1000;

    // Each channel takes one of the guest's watches, of which there are some 120; one too many ends the connection.
    private const int MaxChannels = 100;

    // Longer than a channel's own deadlines (docs/protocol.md): drain, then close.
    private const int ShutdownMilliseconds = 2500;

    private readonly IHypervisor _hypervisor;
    private readonly XenStore _xenStore;
    private readonly RtNetlink _rtnetlink = new();
    private readonly DataLoop _loop;
    private readonly ChannelContext _context;

    // As introduced by Dom0.
    private readonly Dictionary<int, MacAddress> _vifs = [];
    private readonly Dictionary<ChannelKey, MacAddress> _peers = [];

    // As it is.
    private readonly Dictionary<int, VifPort> _ports = [];
    private readonly Dictionary<ChannelKey, Channel> _channels = [];

    private GuestSettings _settings;
    private long _portsDue = long.MaxValue;
    private bool _stopping;
    private bool _crowded;
    private string _lastComplaint = "";

    /// <param name="hypervisor">Stays open until after <see cref="Dispose"/>.</param>
    /// <param name="configuration">Of this guest.</param>
    /// <param name="mode">What the data loop does when idle.</param>
    /// <param name="ringBytes">Bytes of each ring of the channels this guest listens on.</param>
    /// <param name="faults">Signalled when the data loop gave a channel up: a turn is due.</param>
    public GuestRole(IHypervisor hypervisor, Configuration configuration, IdleMode mode, uint ringBytes, EventFd faults)
    {
        _hypervisor = hypervisor;
        _settings = configuration.Guest;
        _xenStore = hypervisor.OpenXenStore();
        Descriptors = [_xenStore.FileDescriptor];
        string domid = _xenStore.Read("domid") ?? throw new InvalidDataException("this domain has no \"domid\" node in XenStore");
        ushort self = ushort.Parse(domid, CultureInfo.InvariantCulture);
        Features features = TapDevice.ProbeUso() ? Features.Uso : Features.None;
        _loop = new DataLoop(mode, faults);
        _context = new ChannelContext(hypervisor, _xenStore, _loop, self, new Offer(Offer.CurrentVersion, features), ringBytes);

        // What a killed predecessor left goes first: peers see it go and drop their side.
        _xenStore.Remove(Offer.Directory);
        _xenStore.MakeDirectory(Offer.Directory);
        _xenStore.SetPermissions(Offer.Directory, (self, XenStoreAccess.None));
        _xenStore.Watch(IntroductionsNode, IntroductionsToken);
        _xenStore.Write(Offer.Node, _context.Offer.ToString());
        Log.Info($"domain {self} offers itself (features {(uint)features:x}); waiting for Dom0's introductions");
    }

    public IReadOnlyList<int> Descriptors { get; }

    public int Turn()
    {
        HashSet<string> fired = [];
        while (_xenStore.TryTakeWatch(out string path, out string token))
        {
            fired.Add(token);
            if (token == IntroductionsToken && !_stopping)
            {
                ReadIntroductions(path);
            }
        }

        long now = Environment.TickCount64;
        FollowVifs(now);
        FollowPeers();
        long due = _portsDue;
        bool retired = false;
        foreach (Channel channel in _channels.Values.ToArray())
        {
            if (fired.Contains(channel.WatchToken) || channel.Faulted || channel.Due <= now)
            {
                channel.Turn(now);
            }

            if (channel.Finished)
            {
                channel.Retire();
                _channels.Remove(channel.Key);
                retired = true;
            }

            due = Math.Min(due, channel.Due);
        }

        // What was in the way of a successor (another MAC address in the same place) is gone: look again.
        if (DropPorts() | retired)
        {
            return 0;
        }

        return due == long.MaxValue ? -1 : (int)Math.Clamp(due - Environment.TickCount64, 0, 60_000);
    }

    public void Configure(Configuration configuration) => _settings = configuration.Guest;

    public void WriteStatus(Utf8JsonWriter json)
    {
        json.WriteString("role", "guest");
        json.WriteNumber("domid", _context.Self);
        json.WriteStartArray("vifs");
        foreach (VifPort port in _ports.Values.OrderBy(p => p.Vif))
        {
            json.WriteStartObject();
            json.WriteNumber("vif", port.Vif);
            json.WriteString("interface", port.InterfaceName);
            json.WriteString("mac", port.Mac.ToString());
            json.WriteString("divert", port.Divert.Rung.ToString().ToLowerInvariant());
            json.WriteStartArray("peers");
            foreach (Channel channel in _channels.Values.Where(c => c.Key.Vif == port.Vif).OrderBy(c => c.Key.Peer).ThenBy(c => c.Key.PeerVif))
            {
                channel.WriteStatus(json);
            }

            json.WriteEndArray();
            json.WriteEndObject();
        }

        json.WriteEndArray();
    }

    /// <summary>Closes every channel in two phases, then removes every trace.</summary>
    public void Dispose()
    {
        // From here on no introduction counts, whatever still fires.
        _stopping = true;
        _vifs.Clear();
        _peers.Clear();
        long deadline = Environment.TickCount64 + ShutdownMilliseconds;
        while (_channels.Count > 0 && Environment.TickCount64 < deadline)
        {
            Turn();
            Thread.Sleep(2);
        }

        foreach (Channel channel in _channels.Values)
        {
            channel.Retire();
        }

        _channels.Clear();
        DropPorts();
        _loop.Dispose();
        _rtnetlink.Dispose();
        _xenStore.Remove(Offer.Directory);
        _xenStore.Dispose();
    }

    /// <summary>One node changed: re-read it alone if it names one peer, else all.</summary>
    private void ReadIntroductions(string path)
    {
        string[] names = path.Split('/');
        if (names.Length == 3 && int.TryParse(names[1], NumberStyles.None, CultureInfo.InvariantCulture, out int vif) && _vifs.ContainsKey(vif))
        {
            ReadPeer(vif, names[2]);
            return;
        }

        _vifs.Clear();
        _peers.Clear();
        foreach (string name in _xenStore.List(IntroductionsNode))
        {
            if (int.TryParse(name, NumberStyles.None, CultureInfo.InvariantCulture, out vif)
                && MacAddress.TryParse(_xenStore.Read($"{IntroductionsNode}/{name}") ?? "", out MacAddress mac))
            {
                _vifs[vif] = mac;
                foreach (string peer in _xenStore.List($"{IntroductionsNode}/{name}"))
                {
                    ReadPeer(vif, peer);
                }
            }
        }
    }

    private void ReadPeer(int vif, string name)
    {
        string[] parts = name.Split('-');
        if (parts.Length != 2
            || !ushort.TryParse(parts[0], NumberStyles.None, CultureInfo.InvariantCulture, out ushort peer)
            || !int.TryParse(parts[1], NumberStyles.None, CultureInfo.InvariantCulture, out int peerVif))
        {
            return;
        }

        ChannelKey key = new(vif, peer, peerVif);
        string value = _xenStore.Read($"{IntroductionsNode}/{vif}/{name}") ?? "";
        if (MacAddress.TryParse(value.Split(' ')[0], out MacAddress mac))
        {
            _peers[key] = mac;
        }
        else
        {
            _peers.Remove(key);
        }
    }

    private void FollowVifs(long now)
    {
        _portsDue = long.MaxValue;
        foreach ((int vif, MacAddress mac) in _vifs)
        {
            if (_ports.ContainsKey(vif))
            {
                continue;
            }

            try
            {
                if (_hypervisor.FindVifInterface(vif) is { } interfaceName)
                {
                    _ports[vif] = new VifPort(vif, interfaceName, mac, _rtnetlink);
                    Log.Info($"vif {vif} is {interfaceName}, {mac}, divert by {_ports[vif].Divert.Rung}");
                    continue;
                }
            }
            catch (NativeException e)
            {
                if (_lastComplaint != e.Message)
                {
                    _lastComplaint = e.Message;
                    Log.Error($"vif {vif} stays on netfront: {e.Message}");
                }
            }

            _portsDue = now + InterfaceRetryMilliseconds;
        }
    }

    private void FollowPeers()
    {
        foreach (Channel channel in _channels.Values)
        {
            bool wanted = IsPortCurrent(channel.Key.Vif) && _peers.TryGetValue(channel.Key, out MacAddress mac) && mac == channel.PeerMac;
            if (wanted != channel.Wanted)
            {
                channel.Wanted = wanted;
                channel.Turn(Environment.TickCount64);
            }
        }

        foreach ((ChannelKey key, MacAddress mac) in _peers)
        {
            if (!_channels.ContainsKey(key) && IsPortCurrent(key.Vif))
            {
                if (_channels.Count >= MaxChannels)
                {
                    if (!_crowded)
                    {
                        _crowded = true;
                        Log.Warning($"more than {MaxChannels} neighbours: traffic with the others stays on netfront");
                    }

                    break;
                }

                _channels[key] = new Channel(_context, key, _ports[key.Vif], mac);
            }
        }
    }

    private bool IsPortCurrent(int vif) =>
        _ports.TryGetValue(vif, out VifPort? port) && _vifs.TryGetValue(vif, out MacAddress mac) && mac == port.Mac;

    /// <returns>True when there was one to drop.</returns>
    private bool DropPorts()
    {
        bool dropped = false;
        foreach (VifPort port in _ports.Values.ToArray())
        {
            if (!IsPortCurrent(port.Vif) && _channels.Keys.All(k => k.Vif != port.Vif))
            {
                port.Dispose();
                _ports.Remove(port.Vif);
                dropped = true;
            }
        }

        return dropped;
    }
}
