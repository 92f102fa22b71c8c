namespace XenLoop.Interop.Xen;

/// <summary>Where watches are set and fire: <see cref="XenStore"/>, or what stands in for it in a test.</summary>
internal interface IWatchSource
{
    /// <summary>Watches the node and all below it. Fires once at once.</summary>
    void Watch(string path, string token);

    /// <summary>Ends a watch; its events that are still queued are discarded.</summary>
    void Unwatch(string path, string token);

    /// <summary>Takes one event if one waits; never blocks.</summary>
    bool TryTakeWatch(out string path, out string token);
}

/// <summary>What can be read: <see cref="XenStore"/>, or what stands in for it in a test.</summary>
internal interface IStoreReader
{
    /// <summary>The node's value, or null when there is no such node.</summary>
    string? Read(string path);

    /// <summary>Names of the node's children, in no particular order; empty when there is no such node.</summary>
    string[] List(string path);
}
