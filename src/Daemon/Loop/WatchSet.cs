using XenLoop.Interop.Xen;

namespace XenLoop.Loop;

/// <summary>
/// Watches in XenStore, each with what is to be done when it fires. Handlers only note what has changed: all that fired is
/// taken first, and then the role compares once what should be with what is.
/// </summary>
/// <param name="store">One connection; all its watches are of this set.</param>
internal sealed class WatchSet(IWatchSource store)
{
    private readonly Dictionary<string, Action<string>> _handlers = [];

    /// <summary>Sets a watch; it fires once at once.</summary>
    /// <param name="path">The node, watched with all below it. Not watched yet by this set.</param>
    /// <param name="fired">Gets the path that changed. May add and remove watches.</param>
    public void Add(string path, Action<string> fired)
    {
        _handlers.Add(path, fired);
        try
        {
            // Path and token together name a watch; so the path serves as both.
            store.Watch(path, path);
        }
        catch
        {
            _handlers.Remove(path);
            throw;
        }
    }

    /// <summary>Ends a watch; what fired of it and was not taken yet is discarded.</summary>
    public void Remove(string path)
    {
        if (_handlers.Remove(path))
        {
            store.Unwatch(path, path);
        }
    }

    /// <summary>Takes what fired.</summary>
    /// <param name="most">So many at most: what is left keeps the connection's descriptor readable.</param>
    public void Drain(int most = int.MaxValue)
    {
        for (int i = 0; i < most && store.TryTakeWatch(out string path, out string token); i++)
        {
            // None: it was removed by another's handler.
            _handlers.GetValueOrDefault(token)?.Invoke(path);
        }
    }
}
