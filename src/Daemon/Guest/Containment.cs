using System.Text;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using XenLoop.Service;

namespace XenLoop.Guest;

/// <summary>
/// After a suspend that nobody had prepared (save, migration), the ports and mappings of the channels that were open then are
/// stale: to close such a port is a kernel BUG, and to unmap such a page makes the kernel unbind a port of that number, which may be
/// somebody else's by now. So neither is done: a copy of this process, which does nothing, holds descriptors and mappings until the
/// guest ends, and the daemon begins anew. docs/measurements.md tells why it is not systemd that holds them.
/// </summary>
internal static class Containment
{
    private const string HolderName = "xenloop-holder";

    private static readonly byte[] _holderLine = Encoding.ASCII.GetBytes(HolderName + "\n");

    private const string Remedy = "Have xenloop installed and running in Dom0 of the host, where it prepares each save and migration";

    private const int RetryMilliseconds = 5000;

    // Of predecessors: found by their name, for they outlive who left them. Looked for once: only the end of a daemon adds one.
    private static readonly Lazy<string[]> _holders = new(() => [.. Directory.EnumerateDirectories("/proc").Where(IsHolder).Select(p => Path.GetFileName(p))]);

    /// <summary>Leaves what is stale to a holder and begins anew. Does not return.</summary>
    public static void Run()
    {
        string parked = "";
        while (true)
        {
            try
            {
                int[] devices = OwnProcess.Descriptors("/dev/xen/evtchn", "/dev/xen/gntalloc", "/dev/xen/gntdev");
                if (devices.Length > 0 && parked.Length == 0)
                {
                    int holder = OwnProcess.LeaveCopy(HolderName, devices);
                    parked = $" What is stale of them is parked in process {holder} until the guest ends: do not kill that, the kernel would suffer.";
                }

                Log.Error($"this guest was suspended while it had channels, because Dom0 did not tell it before.{parked} The daemon begins anew. {Remedy}");
                OwnProcess.Replace();
            }
            catch (NativeException e)
            {
                // To give up would be to close them.
                Log.Error($"cannot park what a suspend left: {e.Message}; trying again");
                Thread.Sleep(RetryMilliseconds);
            }
        }
    }

    /// <summary>Says so, if there was a suspend that nobody had prepared.</summary>
    public static void WriteStatus(Utf8JsonWriter json)
    {
        if (_holders.Value is { Length: > 0 } holders)
        {
            json.WriteStartObject("unprepared_suspends");
            json.WriteNumber("count", holders.Length);
            json.WriteString("holders", string.Join(' ', holders));
            json.WriteString("remedy", Remedy);
            json.WriteEndObject();
        }
    }

    private static bool IsHolder(string process)
    {
        try
        {
            // Of hundreds of processes: without a reader and its buffers for each.
            using SafeFileHandle comm = File.OpenHandle($"{process}/comm");
            Span<byte> line = stackalloc byte[HolderName.Length + 1];
            return line[..RandomAccess.Read(comm, line, 0)].SequenceEqual(_holderLine);
        }
        catch (IOException)
        {
            return false; // no process, or gone by now
        }
    }
}
