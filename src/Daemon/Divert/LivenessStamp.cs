namespace XenLoop.Divert;

/// <summary>
/// One slot's cache line, shared with the kernel: how the program knows that somebody empties the TAP.
/// The program writes the time of the first packet that it diverts while the stamp is zero; the daemon writes zero
/// whenever it has drained the TAP; a stamp that stays for 200 ms means that nobody drains, and packets pass to
/// netfront. So the divert fails open with no timer anywhere, and an idle daemon sleeps.
/// Valid until the <see cref="VifDivert"/> is disposed. Any thread may call any method.
/// </summary>
internal readonly unsafe struct LivenessStamp
{
    /// <summary>A line of its own for each slot: the daemon's threads and the CPUs that transmit write to it.</summary>
    internal const int Size = 64;

    internal const int StampOffset = 0;
    internal const int BlockedOffset = 8;

    // The two words have one writer each (when the stamp is not zero): a drain that clears the stamp cannot
    // undo a Block of another thread, and the program cannot overwrite it either.
    private readonly ulong* _stamp;
    private readonly ulong* _blocked;

    internal LivenessStamp(byte* line)
    {
        _stamp = (ulong*)(line + StampOffset);
        _blocked = (ulong*)(line + BlockedOffset);
    }

    /// <summary>CLOCK_MONOTONIC in nanoseconds of the first packet that was diverted and not drained yet; 0 when there is none.</summary>
    public ulong Value => Volatile.Read(ref *_stamp);

    public bool IsBlocked => Volatile.Read(ref *_blocked) != 0;

    /// <summary>
    /// "The TAP is drained." To be called after <c>read</c> has said EAGAIN, not before the drain: a packet
    /// that is diverted in between would leave a stamp behind and nothing to read, so nobody would ever clear it.
    /// Does not open a blocked slot.
    /// </summary>
    public void Clear() => Volatile.Write(ref *_stamp, 0);

    /// <summary>Lets packets in: from here on the program diverts. A slot is blocked at first.</summary>
    public void Open()
    {
        Clear();
        Volatile.Write(ref *_blocked, 0);
    }

    /// <summary>Every packet passes to netfront from now on. A program that runs in this moment on another CPU may still
    /// divert its packet: see <see cref="VifDivert.WaitForPackets"/>.</summary>
    public void Block() => Volatile.Write(ref *_blocked, 1);
}
