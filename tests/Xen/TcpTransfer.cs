using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>
/// One TCP connection from a guest to another, which carries random bytes slowly until it is told to end; then all of them must
/// have arrived. A guest can be the sender of one and the receiver of one.
/// </summary>
public sealed class TcpTransfer
{
    private const int Port = 5006;
    private const string NothingAtAll = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  -\n";

    private readonly Node _from;
    private readonly Node _to;

    private TcpTransfer(Node from, Node to) => (_from, _to) = (from, to);

    public static async Task<TcpTransfer> StartAsync(Node from, Node to)
    {
        (await to.RunAsync($$"""
            { socat -u TCP-LISTEN:{{Port}},reuseaddr - | sha256sum >/tmp/received; } &
            echo $! >/tmp/receiver
            {{Listening(Port)}}
            """)).Check();
        // A piece every half a second of the sender's time, hashed on the way: nothing is kept.
        (await from.RunAsync($$"""
            rm -f /tmp/enough /tmp/copy
            mkfifo /tmp/copy
            sha256sum </tmp/copy >/tmp/sent &
            echo $! >/tmp/hashing
            {
              until [ -e /tmp/enough ]; do
                head -c 50000 /dev/urandom
                sleep 0.5
              done | tee /tmp/copy
            } | socat -u - TCP:{{to.Guest.Ipv4}}:{{Port}} >/tmp/sender 2>&1 &
            echo $! >/tmp/sending
            """)).Check();
        return new TcpTransfer(from, to);
    }

    /// <summary>Script: waits until somebody listens at the port.</summary>
    public static string Listening(int port) => $"until ss -tlnH sport = :{port} | grep -q .; do sleep 0.05; done";

    /// <summary>Fails when the connection has ended.</summary>
    public async Task GoesOnAsync() => (await _from.RunAsync("kill -0 $(cat /tmp/sending) || { cat /tmp/sender; exit 1; }")).Check();

    /// <summary>Ends it, and makes sure that what arrived is what was sent, over the one connection.</summary>
    public async Task FinishAsync()
    {
        static string Await(string process) => $"while kill -0 $(cat /tmp/{process}) 2>/dev/null; do sleep 0.1; done; ";
        string sent = (await _from.RunAsync($"touch /tmp/enough; {Await("sending")}{Await("hashing")}cat /tmp/sender /tmp/sent")).Check().Output;
        string received = (await _to.RunAsync($"{Await("receiver")}cat /tmp/received")).Check().Output;
        Assert.Equal(sent, received);
        Assert.NotEqual(NothingAtAll, sent);
    }
}
