using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Lab;
using XenLoop.Ring;

namespace XenLoop.Tests.Lab;

/// <summary>
/// A guest that does the victim all the harm that docs/security.md lists, one after the other as a seed has it. It never waits for the
/// victim: where there is no channel to spoil, it spoils something else.
/// </summary>
internal sealed class EvilPeer : IDisposable
{
    // Netback has a processor of its own, and so has another guest: what is made here is to take none from the victim.
    private const int Niceness = 10;

    private static readonly TimeSpan _longest = TimeSpan.FromMilliseconds(400);

    // A flood goes on until the victim has had enough of it.
    private static readonly TimeSpan _longestFlood = TimeSpan.FromSeconds(3);

    private readonly LabGuest _self;
    private readonly LabGuest _victim;
    private readonly HandPeer _peer;
    private readonly Random _random;
    private readonly (string Name, bool Connected, Action<Stopwatch> Do)[] _deeds;
    private readonly Dictionary<string, int> _done = [];
    private readonly Socket _provoking;
    private volatile string _doing = "";

    private EvilPeer(LabGuest self, LabGuest victim, HandPeer peer, int seed)
    {
        (_self, _victim, _peer, _random) = (self, victim, peer, new Random(seed));
        _provoking = Namespaces.Run(victim, () => new Socket(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp) { Blocking = false });
        _deeds =
        [
            ("index garbage", true, Indices),
            ("records of garbage", true, Records),
            ("frames refused by the TAP", true, RefusedFrames),
            ("bad virtio headers", true, Headers),
            ("foreign MACs", true, ForeignMacs),
            ("events with nothing behind", true, Events),
            ("one byte of consumer index for each event", true, Bytes),
            ("silent with full rings", true, Silent),
            ("valid frames", true, ValidFrames),
            ("pages kept", true, Abandon),
            ("node rewritten", false, Rewrite),
            ("120 nodes with long names", false, LongNodes),
            ("garbage offers", false, Offers),
            ("garbage in the channel's node", false, Garbage),
            ("long reasons", false, Reasons),
        ];
    }

    /// <summary>Frames put into rings that the victim has to deliver.</summary>
    public long FramesSent { get; private set; }

    /// <summary>What it has done how often, and is doing.</summary>
    public string Account => $"{_self.Name}: {string.Join(", ", _done.OrderBy(d => d.Key, StringComparer.Ordinal).Select(d => $"{d.Key} {d.Value}"))}; now {_doing}";

    /// <summary>Every deed at least once.</summary>
    public IEnumerable<string> Deeds => _done.Keys;

    public static IEnumerable<string> AllDeeds(EvilPeer one) => one._deeds.Select(d => d.Name);

    public static async Task<EvilPeer> StartAsync(DaemonLab lab, LabGuest self, LabGuest victim, int seed) =>
        new(self, victim, await HandPeer.StartAsync(lab, self, victim), seed);

    /// <summary>Goes on until cancelled; on a thread of its own.</summary>
    public unsafe Task Run(CancellationToken end) => Task.Factory.StartNew(
        () =>
        {
            Scheduling.SetNiceness(Niceness);
            while (!end.IsCancellationRequested)
            {
                try
                {
                    bool connected = _peer.TryConnect(_random.Next(4) == 0 ? Spoil : null);
                    (string name, bool needsChannel, Action<Stopwatch> deed) = _deeds[_random.Next(_deeds.Length)];
                    // Channels are rare: the victim waits longer after each violation.
                    if (connected == needsChannel || (!needsChannel && _random.Next(4) == 0))
                    {
                        _doing = name;
                        _done[name] = _done.GetValueOrDefault(name) + 1;
                        deed(Stopwatch.StartNew());
                        if (connected && _random.Next(2) == 0)
                        {
                            // Whatever it was: what was mapped for it stays so.
                            Abandon(Stopwatch.StartNew());
                        }
                    }
                }
                catch (PeerViolationException)
                {
                    // The pages are wiped, or garbled by what was done before.
                }
                catch (NativeException)
                {
                    // XenStore's quota, or a port that has gone.
                }

                Thread.Sleep(_random.Next(20));
            }
        },
        CancellationToken.None,
        TaskCreationOptions.LongRunning,
        TaskScheduler.Default);

    public void Dispose()
    {
        _provoking.Dispose();
        _peer.Dispose();
    }

    private bool Goes(Stopwatch watch) => watch.Elapsed < _longestFlood && !_peer.OtherClosed;

    /// <summary>What it grants may be of no use.</summary>
    private unsafe void Spoil(ControlPage* page)
    {
        switch (_random.Next(4))
        {
            case 0:
                page->RingReferences[_random.Next(32)] = (uint)_random.Next();
                break;
            case 1:
                page->RingBytes = (uint)_random.Next();
                break;
            case 2:
                page->Version = (uint)_random.Next(10);
                break;
            default:
                page->Session = (ulong)_random.NextInt64();
                break;
        }
    }

    private void Abandon(Stopwatch watch)
    {
        _peer.Abandon();
        _peer.Offer();
    }

    private unsafe void Indices(Stopwatch watch)
    {
        RingLine* line = _random.Next(2) == 0 ? _peer.Produced : _peer.Consumed;
        Volatile.Write(ref line->Index, (uint)_random.NextInt64(uint.MaxValue));
        _peer.Notify();
    }

    private unsafe void Records(Stopwatch watch)
    {
        Span<byte> ring = new(_peer.Data, (int)_peer.RingBytes);
        _random.NextBytes(ring);
        for (int i = 0; i < ring.Length; i += 8 * _random.Next(1, 300))
        {
            // Lengths that might be.
            BitConverter.TryWriteBytes(ring[i..], _random.Next(0, 3000));
        }

        Volatile.Write(ref _peer.Produced->Index, _peer.Produced->Index + (8u * (uint)_random.Next(1, (int)_peer.RingBytes / 8)));
        _peer.Notify();
    }

    private void RefusedFrames(Stopwatch watch)
    {
        byte[] frame = _peer.Datagram();
        (frame[0], frame[10 + 14 + 9]) = (1, 132);
        while (Goes(watch))
        {
            _peer.Fill(frame);
            _peer.Notify();
            Thread.Sleep(1);
        }
    }

    private void Headers(Stopwatch watch)
    {
        byte[] frame = _peer.Datagram();
        for (int i = 0; i < 20 && Goes(watch); i++)
        {
            _random.NextBytes(frame.AsSpan(0, 10));
            _peer.Put(frame);
            _peer.Notify();
            Thread.Sleep(1);
        }
    }

    private void ForeignMacs(Stopwatch watch)
    {
        byte[] frame = _peer.Datagram();
        _random.NextBytes(frame.AsSpan(10, 12));
        _peer.Put(frame);
        _peer.Notify();
    }

    private void Events(Stopwatch watch)
    {
        while (Goes(watch))
        {
            for (int i = 0; i < 100; i++)
            {
                _peer.Notify();
            }
        }
    }

    private unsafe void Bytes(Stopwatch watch)
    {
        Provoke(200);
        while (Goes(watch))
        {
            if (_peer.Consumed->Index != Other()->Index)
            {
                Volatile.Write(ref _peer.Consumed->Index, _peer.Consumed->Index + 1);
            }

            _peer.Notify();
            Thread.SpinWait(500);
        }

        RingLine* Other() => _peer.OtherProduced;
    }

    private void Silent(Stopwatch watch)
    {
        Provoke(200);
        _peer.Fill(_peer.Datagram());
        Thread.Sleep(_longest);
    }

    private void ValidFrames(Stopwatch watch)
    {
        byte[] frame = _peer.Datagram();
        while (Goes(watch))
        {
            FramesSent += _peer.Fill(frame);
            _peer.Notify();
            // Nobody is to be kept from sending; and what this costs is not what is asked here.
            Thread.Sleep(100);
        }
    }

    private void Rewrite(Stopwatch watch)
    {
        while (watch.Elapsed < _longest)
        {
            _peer.Say(string.Create(null, $"{(_random.Next(2) == 0 ? "connected" : "closing")} {_peer.Session:x16}"));
        }

        _peer.LetGo();
    }

    private void LongNodes(Stopwatch watch)
    {
        for (int i = 0; i < 120; i++)
        {
            _peer.WriteNode($"data/xenloop/{i}-{new string('n', 200)}", new string('v', 100));
        }

        for (int i = 0; i < 120; i++)
        {
            _peer.RemoveNode($"data/xenloop/{i}-{new string('n', 200)}");
        }
    }

    private void Offers(Stopwatch watch)
    {
        for (int i = 0; i < 20; i++)
        {
            _peer.Offer(Nonsense());
        }

        _peer.Offer();
    }

    private void Garbage(Stopwatch watch)
    {
        for (int i = 0; i < 20; i++)
        {
            _peer.Say(Nonsense());
        }

        // It may have said that it has closed. That this is believed is a known limit, of which nothing is to be shown here.
        _peer.LetGo();
    }

    private void Reasons(Stopwatch watch)
    {
        _peer.LetGo();
        _peer.Say($"closed {_peer.OtherSays?.Session ?? 0:x16} {new string('\u00e9', 20)}{_random.Next()} {new string('x', 1800)}");
    }

    private string Nonsense()
    {
        string[] words = ["listening", "connected", "closing", "closed", "calling", "", "open", "1", "listening\0", new string('x', 1500)];
        string[] fields = ["0", "1", "-1", "ffffffffffffffff", $"{_peer.OtherSays?.Session ?? 0:x16}", "4294967296", "", " ", "\u00e9", "\n", new string('9', 20)];
        return string.Join(' ', Enumerable.Range(0, _random.Next(1, 8)).Select(i => i == 0 ? words[_random.Next(words.Length)] : fields[_random.Next(fields.Length)]));
    }

    /// <summary>Has the victim's stack send to this guest, whose rings so get full.</summary>
    private void Provoke(int datagrams)
    {
        byte[] datagram = new byte[1400];
        IPEndPoint discard = new(_self.IPv4, 9);
        for (int i = 0; i < datagrams; i++)
        {
            try
            {
                _provoking.SendTo(datagram, discard);
            }
            catch (SocketException)
            {
                return; // a queue of the victim's is full, or its peer has said that nobody listens
            }
        }
    }
}
