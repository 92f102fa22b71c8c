namespace XenLoop.Rig;

/// <summary>A wire between two hosts: a unix socket between their QEMUs. Its speed says nothing of real networks.</summary>
internal sealed class HostNetwork
{
    private readonly TaskCompletionSource<string> _listening = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>QEMU's arguments for one end. Host 1 listens, so host 2's are known only when host 1's QEMU runs.</summary>
    public async Task<string[]> ArgumentsAsync(int host, string scratch)
    {
        string end = host == 1
            ? $"server=on,addr.path={SocketPath(scratch)}"
            : $"server=off,addr.path={await _listening.Task.WaitAsync(TimeSpan.FromMinutes(1))}";
        return
        [
            "-netdev", $"stream,id=wire,addr.type=unix,{end}",
            "-device", $"virtio-net-pci,netdev=wire,mac=52:54:00:77:00:{host:x2},romfile=",
        ];
    }

    /// <summary>Lets host 2 connect, as soon as the QEMU of host 1, which is running, listens.</summary>
    public async Task ListeningAsync(string scratch)
    {
        using CancellationTokenSource limit = new(TimeSpan.FromSeconds(30));
        // QEMU connects its serial ports, which the caller has seen, shortly before it makes this socket.
        while (!File.Exists(SocketPath(scratch)))
        {
            await Task.Delay(10, limit.Token);
        }

        _listening.TrySetResult(SocketPath(scratch));
    }

    private static string SocketPath(string scratch) => Path.Combine(scratch, "wire");
}
