using XenLoop.DataPath;

namespace XenLoop.Tests.Unit;

/// <summary>Made by hand: goes on when somebody gives way, and when it is told to.</summary>
internal sealed class FakeClock : IdleClock
{
    public long Now { get; private set; } = 5_000_000_000;

    public int Turn { get; set; } = 1;

    public int Turns { get; private set; }

    public int Reads { get; set; }

    public int CoarseReads { get; set; }

    public override long Microseconds
    {
        get
        {
            Reads++;
            return Now;
        }
    }

    /// <summary>In steps of 4 ms, as the kernel's.</summary>
    public override long Milliseconds
    {
        get
        {
            CoarseReads++;
            return Now / 4000 * 4;
        }
    }

    public bool Crowded { get; set; }

    public override bool IsCrowded => Crowded;

    public void Advance(long microseconds) => Now += microseconds;

    public override void GiveWay()
    {
        Turns++;
        Now += Turn;
    }
}
