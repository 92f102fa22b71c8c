namespace XenLoop.DataPath;

/// <summary>
/// While much is received, gives the application that receives it its turn, where both have one processor. Otherwise the thread fills the application's queue until
/// it is full: datagrams are lost there, after all the work for them, or TCP's window closes, and sender and application wait for each other. Not where a
/// program computes, which would take a whole slice of time each time. (docs/performance.md)
/// </summary>
internal sealed class ApplicationTurn(IdleClock clock)
{
    /// <summary>Received between two turns. A socket takes some 90 datagrams by default.</summary>
    internal const int Packets = 64;

    /// <summary>Received between two turns while the sender runs. (While it cannot, there is no hurry, and fewer switches are better.)</summary>
    internal const uint Bytes = 256 * 1024;

    /// <summary>Microseconds. An application takes some hundred to empty its queue; who takes longer does something else, too.</summary>
    internal const int Longest = 2000;

    /// <summary>No turn for so many milliseconds after one that was longer.</summary>
    internal const int RestMilliseconds = 128;

    private int _packets;
    private uint _bytes;
    private long _restsUntil;

    /// <summary>So much was received, while the sender runs or cannot.</summary>
    public void Received(int packets, uint bytes, bool beside)
    {
        _packets += packets;
        _bytes += bytes;
        if (_packets < Packets && !(beside && _bytes >= Bytes))
        {
            return;
        }

        _packets = 0;
        _bytes = 0;
        if (clock.Milliseconds < _restsUntil)
        {
            return;
        }

        long begin = clock.Microseconds;
        clock.GiveWay();
        if (clock.Microseconds - begin > Longest)
        {
            _restsUntil = clock.Milliseconds + RestMilliseconds;
        }
    }
}
