namespace XenLoop.Divert;

/// <summary>
/// What the kernel's programs and the daemon tell each other of one channel's TAP, in memory that both map: counters that only
/// grow, modulo 2^64. From them each side knows, without a system call,
/// <list type="bullet">
/// <item>how full the TAP's queue is: <see cref="Queued"/> less what the daemon has drained. The egress program passes packets to
/// netfront from <see cref="MostQueued"/> on, until half of that is drained; so the queue never drops one, and the sender is
/// slowed by netfront as ever. A datagram's fragments keep together;</item>
/// <item>whether somebody drains it at all: a packet that is diverted when nothing has been drained for
/// <see cref="StaleNanoseconds"/> passes to netfront instead. So the divert fails open with no timer anywhere, and an idle daemon
/// sleeps;</item>
/// <item>whether what one hands over comes out: <see cref="Diverted"/> and <see cref="Queued"/> on the way out,
/// <see cref="Arrived"/> on the way in.</item>
/// </list>
/// Valid until the <see cref="VifDivert"/> is disposed. Any thread may call any method, but for <see cref="Drain"/>.
/// </summary>
internal readonly unsafe struct DivertSlot
{
    /// <summary>Undrained packets of this age mean that nobody drains.</summary>
    internal const int StaleNanoseconds = 100_000_000;

    /// <summary>Frames in the TAP's queue beyond which packets go by netfront. Enough for what one burst of a sender brings while
    /// the data thread is at another channel; little enough that what is in the queue is milliseconds old.</summary>
    internal const int MostQueued = 512;

    /// <summary>Packets are diverted again when so few frames are left: so that the ways alternate rarely, and order with them.</summary>
    internal const int FewQueued = MostQueued / 2;

    /// <summary>
    /// For so many times 2^30 nanoseconds after the queue was full fragments go by netfront, all of them. IP gives a datagram up when 64
    /// fragments of others from the same host come between two of its own (net.ipv4.ipfrag_max_dist), as they do where two ways
    /// are in use, and keeps what it has of it for 30 seconds, in memory that is soon used up.
    /// </summary>
    internal const int FragmentsAway = 9;

    /// <summary>What the TAP's queue must hold so that it never drops: beyond <see cref="MostQueued"/>, each CPU that looked
    /// before the others had put their packets there, and a super-packet that the TAP does not take whole (up to 128 frames).</summary>
    internal const int QueueLength = 2048;

    // A line of its own for each who writes, in pairs, as x86 fetches them.
    internal const int Size = 256;

    // The daemon writes.
    internal const int BlockedOffset = 0;
    internal const int DrainedOffset = 8;

    // The CPUs that transmit write.
    internal const int DivertedOffset = 64;
    internal const int QueuedOffset = 72;
    internal const int MovedToOffset = 80;
    internal const int MovedAtOffset = 88;
    internal const int FullOffset = 96;
    internal const int FullAtOffset = 104;
    internal const int OvertakenOffset = 112;
    internal const int OvertakenAtOffset = 120;

    // The CPU that re-injects writes.
    internal const int ArrivedOffset = 128;

    private readonly byte* _words;

    internal DivertSlot(byte* words) => _words = words;

    public bool IsBlocked => Read(BlockedOffset) != 0;

    /// <summary>Packets that the egress program has handed to the TAP. A super-packet counts as one.</summary>
    public ulong Diverted => Read(DivertedOffset);

    /// <summary>Frames that have come to the TAP's queue: as many as packets diverted, or more, if the TAP does not take super-packets of some kind.</summary>
    public ulong Queued => Read(QueuedOffset);

    /// <summary>As last told by <see cref="Drain"/>.</summary>
    public ulong Drained => Read(DrainedOffset);

    /// <summary>Frames written to the TAP that have come to the re-injecting program.</summary>
    public ulong Arrived => Read(ArrivedOffset);

    /// <summary><see cref="Queued"/> when a packet last went by netfront because the slot is blocked, or nobody drained: frames up to here
    /// are older than that packet.</summary>
    public ulong Overtaken => Read(OvertakenOffset);

    /// <summary>CLOCK_MONOTONIC in nanoseconds when the first packet overtook those frames.</summary>
    public long OvertakenAt => (long)Read(OvertakenAtOffset);

    /// <summary>Tells that so many frames have been taken out of the queue, since ever. One thread.</summary>
    public void Drain(ulong frames) => Volatile.Write(ref *(ulong*)(_words + DrainedOffset), frames);

    /// <summary>Lets packets in: from here on the program diverts. A slot is blocked at first.</summary>
    public void Open()
    {
        StartClock();
        Volatile.Write(ref *(ulong*)(_words + BlockedOffset), 0);
    }

    /// <summary>The next packet finds that something has been drained since the last, whenever that was, and counts the time from then on.</summary>
    public void StartClock() => Volatile.Write(ref *(ulong*)(_words + MovedToOffset), Drained - 1);

    /// <summary>Every packet passes to netfront from now on. A program that runs in this moment on another CPU may still
    /// divert its packet: see <see cref="VifDivert.WaitForPackets"/>.</summary>
    public void Block() => Volatile.Write(ref *(ulong*)(_words + BlockedOffset), 1);

    private ulong Read(int offset) => Volatile.Read(ref *(ulong*)(_words + offset));
}
