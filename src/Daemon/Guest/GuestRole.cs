using System.Globalization;
using System.Text.Json;
using XenLoop.DataPath;
using XenLoop.Divert;
using XenLoop.Hypervisor;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Loop;
using XenLoop.Service;
using XenLoop.Settings;

namespace XenLoop.Guest;

/// <summary>
/// The daemon in a guest: offers itself, follows Dom0's introductions, counts what goes to each peer introduced, and
/// keeps a channel to those with traffic.
/// </summary>
internal sealed class GuestRole : IRole
{
    private const string IntroductionsNode = "xenloop";
    private const string IntroductionsToken = "introductions";

    // Nobody ever writes this node. A watch fires when it is set, and after that at each end of a suspend, save a cancelled one:
    // the kernel sets all watches again then.
    private const string DomidNode = "domid";
    private const string ResumedToken = "resumed";

    // What cannot be attached to (a kernel without BPF, say) is tried again when something changes, and after this at first.
    private const long FirstPortRetryMilliseconds = 1000;
    private const long LastPortRetryMilliseconds = 300_000;

    // Longer than a channel's own deadlines (docs/protocol.md): drain, then close.
    private const int ShutdownMilliseconds = 2500;

    // A channel in use makes room for a peer with so many times its traffic.
    private const double RivalFactor = 2;

    private const int DemandQueueBytes = 4096;

    private readonly IHypervisor _hypervisor;
    private readonly XenStore _xenStore;
    private readonly RtNetlink _rtnetlink = new();
    private readonly LinkMonitor _links = new();
    private readonly BpfRingBuffer _demands;
    private readonly DataLoop _loop;
    private readonly ChannelContext _context;

    // As introduced by Dom0.
    private readonly Dictionary<int, MacAddress> _vifs = [];
    private readonly Dictionary<ChannelKey, Introduction> _peers = [];

    // As it is.
    private readonly Dictionary<int, VifPort> _ports = [];
    private readonly Dictionary<ChannelKey, Channel> _channels = [];

    private GuestSettings _settings;
    private long _memoryLimit;
    private long _portsDue = long.MaxValue;
    private long _portRetry = FirstPortRetryMilliseconds;
    private string? _quiesce;
    private bool _quiesced;
    private bool _watchesResumes;
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
        _xenStore = hypervisor.OpenXenStore();
        _demands = new BpfRingBuffer("xenloop_demand", DemandQueueBytes);
        Descriptors = [_xenStore.FileDescriptor, _links.FileDescriptor, _demands.FileDescriptor];
        ushort self = ReadDomid() ?? throw new InvalidDataException("this domain has no \"domid\" node in XenStore");
        Features features = TapDevice.ProbeUso() ? Features.Uso : Features.None;
        _loop = new DataLoop(mode, faults);
        _context = new ChannelContext(hypervisor, _xenStore, _loop, new Offer(Offer.CurrentVersion, features), ringBytes) { Self = self, CheckNotResumed = CheckNotResumed };
        BeginAnew();
        _xenStore.Watch(IntroductionsNode, IntroductionsToken);
        _xenStore.Watch(DomidNode, ResumedToken);
        _settings = new GuestSettings { Enabled = false };
        Configure(configuration);
    }

    public string Activity => "offering this guest";

    public IReadOnlyList<int> Descriptors { get; }

    /// <summary>Bytes that the rings of all channels take, or will.</summary>
    private long RingMemory => _channels.Values.Sum(c => c.MemoryBytes);

    private bool TakesPart => _settings.Enabled && !_stopping && _quiesce is null;

    public void Register(ControlSocket control)
    {
        // A guest answers what every daemon does.
    }

    public void Configure(Configuration configuration)
    {
        GuestSettings before = _settings;
        _settings = configuration.Guest;
        _context.IdleMilliseconds = _settings.IdleSeconds * 1000L;
        _memoryLimit = _settings.MaxMemoryMiB * 1024L * 1024 ?? Math.Min(GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / 8, 128L << 20);
        if (before.Enabled != _settings.Enabled)
        {
            if (_settings.Enabled)
            {
                _xenStore.Write(Offer.Node, _context.Offer.ToString());
                Log.Info($"domain {_context.Self} offers itself (features {(uint)_context.Offer.Features:x}); waiting for Dom0's introductions");
            }
            else
            {
                _xenStore.Remove(Offer.Node);
                Log.Info($"domain {_context.Self} takes no part, as its configuration says");
            }
        }

        foreach ((ChannelKey key, Introduction peer) in _peers)
        {
            Track(key, peer);
        }

        // The vifs may be wanted again before Dom0 has noticed that they were not.
        _portsDue = 0;
        // The least useful go first, until the rest is within the limits.
        _crowded = false;
        long now = Environment.TickCount64;
        foreach (Channel channel in _channels.Values)
        {
            channel.IdleTimeChanged(now);
        }

        foreach (Channel channel in _channels.Values.Where(c => c.IsRunning).OrderBy(c => c.TakeRate(now)).Take(Excess()).ToArray())
        {
            channel.Drop("over the limit that the configuration sets");
            channel.Turn(now);
        }
    }

    public int Turn()
    {
        HashSet<string> fired = [];
        while (_xenStore.TryTakeWatch(out string path, out string token))
        {
            fired.Add(token);
            if (token == ResumedToken && _watchesResumes)
            {
                FollowResume();
            }

            _watchesResumes |= token == ResumedToken;
            if (token == IntroductionsToken && !_stopping)
            {
                ReadIntroductions(path);
            }
        }

        long now = Environment.TickCount64;
        if (_links.TakeChanges() | fired.Contains(IntroductionsToken) | _portsDue <= now)
        {
            FollowVifs(now);
        }

        while (_demands.TryTake(out Demand demand))
        {
            Follow(demand, now);
        }

        long due = _portsDue;
        bool retired = false;
        foreach (Channel channel in _channels.Values.ToArray())
        {
            bool wanted = IsPortCurrent(channel.Key.Vif) && _peers.TryGetValue(channel.Key, out Introduction peer) && peer.Mac == channel.PeerMac;
            if (fired.Contains(channel.WatchToken) || channel.Faulted || channel.Due <= now || channel.Wanted != wanted)
            {
                channel.Wanted = wanted;
                channel.Turn(now);
            }

            if (channel.IsFinished(now))
            {
                channel.Retire();
                _channels.Remove(channel.Key);
                retired = true;
            }

            due = Math.Min(due, channel.Due);
        }

        // What was in the way of a successor (another MAC address in the same place) is gone: look again.
        if (DropPorts())
        {
            FollowVifs(now);
            due = Math.Min(due, _portsDue);
        }

        if (_quiesce is not null && !_quiesced && _channels.Count == 0)
        {
            _quiesced = true;
            _xenStore.Write(Offer.Quiesced, _quiesce);
            Log.Info("quiesced: nothing is shared with other guests until the suspend is over");
        }

        if (retired)
        {
            return 0;
        }

        return due == long.MaxValue ? -1 : (int)Math.Clamp(due - Environment.TickCount64, 0, int.MaxValue);
    }

    public void WriteStatus(Utf8JsonWriter json)
    {
        Containment.WriteStatus(json);
        json.WriteString("role", "guest");
        json.WriteNumber("domid", _context.Self);
        json.WriteBoolean("enabled", _settings.Enabled);
        json.WriteNumber("channels", _channels.Count);
        json.WriteNumber("ring_memory_bytes", RingMemory);
        json.WriteNumber("ring_memory_limit_bytes", _memoryLimit);
        json.WriteStartArray("vifs");
        foreach (VifPort port in _ports.Values.OrderBy(p => p.Vif))
        {
            json.WriteStartObject();
            json.WriteNumber("vif", port.Vif);
            json.WriteString("interface", port.InterfaceName);
            json.WriteString("mac", port.Mac.ToString());
            json.WriteString("divert", port.Divert.Rung.ToString().ToLowerInvariant());
            json.WriteStartArray("peers");
            foreach ((ChannelKey key, Introduction peer) in _peers.Where(p => p.Key.Vif == port.Vif).OrderBy(p => p.Key.Peer).ThenBy(p => p.Key.PeerVif))
            {
                if (!_channels.ContainsKey(key))
                {
                    WriteIdlePeer(json, port, key, peer);
                }
            }

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
        _demands.Dispose();
        _links.Dispose();
        _rtnetlink.Dispose();
        _xenStore.Remove(Offer.Directory);
        _xenStore.Dispose();
    }

    private static void WriteIdlePeer(Utf8JsonWriter json, VifPort port, ChannelKey key, Introduction peer)
    {
        DivertCounters divert = port.Divert.Read(peer.Mac);
        json.WriteStartObject();
        json.WriteNumber("domid", key.Peer);
        json.WriteNumber("vif", key.PeerVif);
        json.WriteString("mac", peer.Mac.ToString());
        json.WriteString("state", "idle");
        json.WriteNumber("packets_seen", divert.Seen);
        json.WriteNumber("packets_diverted", divert.Diverted);
        json.WriteEndObject();
    }

    /// <summary>Makes the guest's own area in XenStore. What a killed predecessor left goes first: peers see it go and drop their side.</summary>
    private void BeginAnew()
    {
        _xenStore.Remove(Offer.Directory);
        _xenStore.MakeDirectory(Offer.Directory);
        _xenStore.SetPermissions(Offer.Directory, (_context.Self, XenStoreAccess.None));
    }

    private ushort? ReadDomid() =>
        ushort.TryParse(_xenStore.Read(DomidNode), NumberStyles.None, CultureInfo.InvariantCulture, out ushort domid) ? domid : null;

    /// <summary>
    /// After a restore or a migration the home in XenStore is a new one, on the same or on another host, and mostly so is the domid.
    /// Who holds anything was not asked before.
    /// </summary>
    private void FollowResume()
    {
        if (_channels.Values.Any(c => !c.IsWaiting))
        {
            Containment.Run();
        }

        ushort before = _context.Self;
        _context.Self = ReadDomid() ?? before;
        Log.Info($"resumed after a suspend: domain {before} is domain {_context.Self} now");
        // They only remember failures, of peers of another life.
        foreach (Channel channel in _channels.Values)
        {
            channel.Retire();
        }

        _channels.Clear();
        BeginAnew();
        if (_settings.Enabled)
        {
            _xenStore.Write(Offer.Node, _context.Offer.ToString());
        }
    }

    /// <summary>
    /// To be called before a port is closed, for the watch that tells of a resume comes later than the first signs of it: does not
    /// return when the guest has another home in XenStore than when the channel was built.
    /// </summary>
    private void CheckNotResumed()
    {
        try
        {
            if (ReadDomid() is { } domid && domid == _context.Self && _xenStore.ReadIfVisible(Offer.Directory) is not null)
            {
                return;
            }
        }
        catch (NativeException)
        {
            // Without XenStore there is no knowing; no suspend takes it away.
            return;
        }

        Containment.Run();
    }

    private void ReadQuiesce()
    {
        string? request = _xenStore.Read($"{IntroductionsNode}/{Offer.QuiesceRequest}");
        if (request == _quiesce)
        {
            return;
        }

        if (_quiesced)
        {
            _xenStore.Remove(Offer.Quiesced);
            _quiesced = false;
        }

        _quiesce = request;
        _portsDue = 0;
    }

    /// <summary>One node changed: re-read it alone if it names one peer, else all.</summary>
    private void ReadIntroductions(string path)
    {
        string[] names = path.Split('/');
        if (names is [_, Offer.QuiesceRequest])
        {
            ReadQuiesce();
            return;
        }

        if (names.Length == 3 && ChannelKey.ParseVif(names[1]) is { } vif && _vifs.ContainsKey(vif))
        {
            if (ChannelKey.Parse(vif, names[2]) is { } key)
            {
                SetPeer(key, ReadPeer(key));
            }

            return;
        }

        ReadQuiesce();
        Dictionary<ChannelKey, Introduction> peers = [];
        _vifs.Clear();
        foreach (string name in _xenStore.List(IntroductionsNode))
        {
            if (ChannelKey.ParseVif(name) is { } number && MacAddress.TryParse(_xenStore.Read($"{IntroductionsNode}/{name}") ?? "", out MacAddress mac))
            {
                _vifs[number] = mac;
                foreach (string peer in _xenStore.List($"{IntroductionsNode}/{name}"))
                {
                    if (ChannelKey.Parse(number, peer) is { } key && ReadPeer(key) is { } introduction)
                    {
                        peers[key] = introduction;
                    }
                }
            }
        }

        foreach (ChannelKey gone in _peers.Keys.Where(k => !peers.ContainsKey(k)).ToArray())
        {
            SetPeer(gone, null);
        }

        foreach ((ChannelKey key, Introduction introduction) in peers)
        {
            SetPeer(key, introduction);
        }
    }

    private Introduction? ReadPeer(ChannelKey key) => Introduction.Parse(_xenStore.Read($"{IntroductionsNode}/{key.Vif}/{key.PeerName}"));

    private void SetPeer(ChannelKey key, Introduction? introduction)
    {
        Introduction? before = _peers.TryGetValue(key, out Introduction known) ? known : null;
        if (introduction == before)
        {
            return;
        }

        if (introduction is not { } peer)
        {
            _peers.Remove(key);
            Forget(key.Vif, known.Mac);
            return;
        }

        _peers[key] = peer;
        if (before?.Mac != peer.Mac)
        {
            if (before is not null)
            {
                Forget(key.Vif, known.Mac);
            }

            Track(key, peer);
        }

        if (peer.Call != before?.Call)
        {
            Hear(key, peer, Environment.TickCount64);
        }
    }

    /// <summary>Answers a peer's call, if there is one; its node tells whether the call still stands.</summary>
    private void Hear(ChannelKey key, Introduction peer, long now)
    {
        if (peer.Call != 0)
        {
            OpenChannel(key, peer, now)?.Turn(now);
        }
    }

    /// <summary>Counts the packets to a peer, if its vif's interface is there: else that comes later.</summary>
    private void Track(ChannelKey key, Introduction peer)
    {
        if (!IsPortCurrent(key.Vif))
        {
            return;
        }

        try
        {
            _ports[key.Vif].Divert.Track(peer.Mac, _settings.PacketsPerSecond);
        }
        catch (NativeException e)
        {
            Complain($"{key} stays on netfront: {e.Message}");
        }
    }

    private void Forget(int vif, MacAddress mac)
    {
        if (IsPortCurrent(vif) && !_peers.Any(p => p.Key.Vif == vif && p.Value.Mac == mac))
        {
            _ports[vif].Divert.Forget(mac);
        }
    }

    private void Follow(Demand demand, long now)
    {
        foreach ((ChannelKey key, Introduction peer) in _peers)
        {
            if (key.Vif == demand.Vif && peer.Mac.Bits == demand.Address && IsPortCurrent(key.Vif))
            {
                if (OpenChannel(key, peer, now, Math.Max(demand.PacketsBefore, (uint)_settings.PacketsPerSecond)) is { } channel)
                {
                    channel.Demand();
                    channel.Turn(now);
                }

                return;
            }
        }
    }

    /// <summary>The channel to a peer, to be given a turn; null when there is no room for one more, at least not yet.</summary>
    /// <param name="key">Of the channel.</param>
    /// <param name="peer">As introduced.</param>
    /// <param name="now">Milliseconds of <see cref="Environment.TickCount64"/>.</param>
    /// <param name="packetsPerSecond">To the peer, as far as this side knows.</param>
    private Channel? OpenChannel(ChannelKey key, Introduction peer, long now, double packetsPerSecond = 0)
    {
        if (_channels.TryGetValue(key, out Channel? channel))
        {
            return channel;
        }

        // Two peers with one address: the divert knows only one of them.
        bool ambiguous = _channels.Values.Any(c => c.Key.Vif == key.Vif && c.PeerMac == peer.Mac);
        if (!IsPortCurrent(key.Vif) || ambiguous || !HasRoom(packetsPerSecond, now))
        {
            return null;
        }

        channel = new Channel(_context, key, _ports[key.Vif], peer.Mac);
        _channels[key] = channel;
        return channel;
    }

    /// <summary>
    /// Room for one more channel. If there is none, the least useful one begins to make some when the newcomer has clearly
    /// more traffic: the newcomer's next packets, at most a second later, find it.
    /// </summary>
    private bool HasRoom(double packetsPerSecond, long now)
    {
        if (_channels.Count < _settings.MaxChannels && RingMemory + (2L * _context.RingBytes) <= _memoryLimit)
        {
            return true;
        }

        // One that holds nothing, because it failed, makes room at once.
        if (_channels.Values.FirstOrDefault(c => c.IsWaiting) is { } failed)
        {
            failed.Retire();
            _channels.Remove(failed.Key);
            return HasRoom(packetsPerSecond, now);
        }

        if (!_crowded)
        {
            _crowded = true;
            Log.Warning($"{_channels.Count} channels are as many as max-channels ({_settings.MaxChannels}) and max-memory-mib ({_memoryLimit >> 20}) allow: "
                + "the least used make room for peers with more traffic, which stays on netfront meanwhile");
        }

        Channel? least = _channels.Values.Where(c => c.IsProven(now)).MinBy(c => c.TakeRate(now));
        if (least is not null && least.TakeRate(now) * RivalFactor < packetsPerSecond)
        {
            least.Drop("makes room for a peer with more traffic");
            least.Turn(now);
        }

        return false;
    }

    /// <summary>How many channels there are too many.</summary>
    private int Excess()
    {
        int excess = Math.Max(0, _channels.Count - _settings.MaxChannels);
        long memory = RingMemory - _memoryLimit;
        return Math.Max(excess, (int)Math.Ceiling(Math.Max(0, memory) / (2.0 * _context.RingBytes)));
    }

    private void FollowVifs(long now)
    {
        _portsDue = long.MaxValue;
        foreach (VifPort port in _ports.Values)
        {
            port.CheckPlace();
        }

        foreach ((int vif, MacAddress mac) in _vifs)
        {
            if (_ports.ContainsKey(vif) || !TakesPart)
            {
                continue;
            }

            try
            {
                // A vif that Dom0 introduces may not have its interface yet (hot-plug): the kernel tells when it has.
                if (_hypervisor.FindVifInterface(vif) is { } interfaceName)
                {
                    _ports[vif] = new VifPort(vif, interfaceName, mac, _rtnetlink, _demands);
                    _portRetry = FirstPortRetryMilliseconds;
                    Log.Info($"vif {vif} is {interfaceName}, {mac}, divert by {_ports[vif].Divert.Rung}");
                    foreach ((ChannelKey key, Introduction peer) in _peers)
                    {
                        if (key.Vif == vif)
                        {
                            Track(key, peer);
                            Hear(key, peer, now);
                        }
                    }
                }
            }
            catch (NativeException e)
            {
                Complain($"vif {vif} stays on netfront: {e.Message}");
                _portsDue = now + _portRetry;
                _portRetry = Math.Min(_portRetry * 2, LastPortRetryMilliseconds);
            }
        }
    }

    private void Complain(string message)
    {
        if (_lastComplaint != message)
        {
            _lastComplaint = message;
            Log.Error(message);
        }
    }

    private bool IsPortCurrent(int vif) =>
        TakesPart && _ports.TryGetValue(vif, out VifPort? port) && _vifs.TryGetValue(vif, out MacAddress mac) && mac == port.Mac && port.IsInPlace;

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
