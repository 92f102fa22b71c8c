using XenLoop.Interop;
using XenLoop.Service;

namespace XenLoop.Guest.Channels;

/// <summary>
/// Removes the TAPs of channels that are over, one after the other, on a thread that is there only while there are some. The kernel
/// takes 10 to 30 ms for each, and whoever ends sixty channels before a suspend has not that time: nothing of a TAP is shared with anyone.
/// </summary>
internal sealed class TapReaper
{
    private readonly object _lock = new();
    private readonly List<ChannelTap> _taps = [];
    private bool _runs;

    /// <summary>All are gone.</summary>
    public bool IsIdle
    {
        get
        {
            lock (_lock)
            {
                return _taps.Count == 0;
            }
        }
    }

    /// <summary>Nobody else uses it any more. It goes after <see cref="Start"/>.</summary>
    public void Add(ChannelTap tap)
    {
        lock (_lock)
        {
            _taps.Add(tap);
        }
    }

    /// <summary>Begins, if there is anything to do. From then on whoever asks the kernel about interfaces waits for each.</summary>
    public void Start()
    {
        lock (_lock)
        {
            if (!_runs && _taps.Count > 0)
            {
                _runs = true;
                new Thread(Run, 128 * 1024) { Name = "taps", IsBackground = true }.Start();
            }
        }
    }

    /// <summary>Returns when there is no TAP of this name any more; null for all of them. Some milliseconds for each that was added before.</summary>
    public void Wait(string? name)
    {
        Start();
        lock (_lock)
        {
            while (_taps.Exists(t => name is null || t.Device.Name == name))
            {
                Monitor.Wait(_lock);
            }
        }
    }

    private void Run()
    {
        while (true)
        {
            ChannelTap tap;
            lock (_lock)
            {
                tap = _taps[0];
            }

            try
            {
                tap.Dispose();
            }
            catch (NativeException e)
            {
                Log.Warning($"{tap.Device.Name}: {e.Message}");
            }

            lock (_lock)
            {
                _taps.RemoveAt(0);
                Monitor.PulseAll(_lock);
                if (_taps.Count == 0)
                {
                    _runs = false;
                    return;
                }
            }
        }
    }
}
