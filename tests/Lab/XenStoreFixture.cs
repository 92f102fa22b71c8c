using System.Diagnostics;
using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Interop.Xen;
using XenLoop.Lab;
using Xunit;

namespace XenLoop.Tests.Lab;

/// <summary>The lab's XenStore with Dom0 and guests 1 and 2, each with a home as libxl makes it; clients use the real libxenstore.</summary>
public sealed partial class XenStoreFixture : IAsyncDisposable
{
    private static readonly Lock _environment = new();

    private readonly string _directory = Directory.CreateTempSubdirectory("xenstore-test-").FullName;

    internal XenStoreFixture()
    {
        Server.AddDomain(0, SocketOf(0));
        AddGuest(1);
        AddGuest(2);
    }

    internal XenStoreServer Server { get; } = new();

    public string SocketOf(ushort domid) => Path.Combine(_directory, $"{domid}");

    public void AddGuest(ushort domid)
    {
        Server.AddDomain(domid, SocketOf(domid));
        Server.Write($"/local/domain/{domid}", "", (0, XenStoreAccess.None), (domid, XenStoreAccess.Read));
        Server.Write($"/local/domain/{domid}/data", "", (domid, XenStoreAccess.None));
    }

    public async Task DestroyGuestAsync(ushort domid)
    {
        Server.Remove($"/local/domain/{domid}");
        await Server.RemoveDomainAsync(domid);
        File.Delete(SocketOf(domid));
    }

    /// <summary>A connection by libxenstore, as this domain.</summary>
    internal XenStore Connect(ushort domid) => Open(SocketOf(domid));

    /// <summary>A connection by libxenstore to the server at this socket.</summary>
    internal static XenStore Open(string socket)
    {
        // libxenstore asks C's environment, which .NET's does not change.
        lock (_environment)
        {
            Assert.Equal(0, setenv("XENSTORED_PATH", socket, 1));
            return XenStore.Open();
        }
    }

    /// <summary>Takes events until there have been so many.</summary>
    internal static List<(string Path, string Token)> TakeEvents(XenStore store, int count)
    {
        List<(string, string)> events = [];
        Stopwatch watch = Stopwatch.StartNew();
        while (events.Count < count)
        {
            Assert.True(watch.ElapsedMilliseconds < 5000, $"{count} events expected, these seen: {string.Join(", ", events)}");
            if (WaitReadable(store, 100))
            {
                while (store.TryTakeWatch(out string path, out string token))
                {
                    events.Add((path, token));
                }
            }
        }

        return events;
    }

    /// <summary>Shows that no event waits: one of our own, sent last, comes first.</summary>
    internal static void AssertNoEvents(XenStore store)
    {
        string token = Guid.NewGuid().ToString();
        store.Watch("nothing-here", token);
        Assert.Equal([("nothing-here", token)], TakeEvents(store, 1));
        store.Unwatch("nothing-here", token);
    }

    public async ValueTask DisposeAsync()
    {
        await Server.DisposeAsync();
        Directory.Delete(_directory, recursive: true);
    }

    private static unsafe bool WaitReadable(XenStore store, int milliseconds)
    {
        pollfd descriptor = new() { fd = store.FileDescriptor, events = LibC.POLLIN };
        return LibC.poll(&descriptor, 1, milliseconds) > 0;
    }

    // int setenv(const char *name, const char *value, int overwrite);
    [LibraryImport("libc", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int setenv(string name, string value, int overwrite);
}
