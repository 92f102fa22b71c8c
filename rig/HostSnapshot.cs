using System.Net.Sockets;
using System.Security.Cryptography;
using System.Text;
using System.Text.Json;

namespace XenLoop.Rig;

/// <summary>
/// The state of a host that has just booted, with its guests, in a file: the next host of the same image and options goes on from there, instead
/// of booting for minutes. Everything in it is as after a boot, and its clock goes on from that moment.
/// </summary>
/// <param name="image">What was booted; a snapshot ends with the image.</param>
/// <param name="key">Everything that makes one machine differ from another: of the same key, the same machine.</param>
internal sealed class HostSnapshot(RigImage image, string key)
{
    private static readonly TimeSpan _limit = TimeSpan.FromMinutes(5);

    // How guests are configured, and so on.
    private static readonly Guid _rig = typeof(HostSnapshot).Module.ModuleVersionId;

    private readonly string _path = Path.Combine(image.Snapshots, Hash($"{image.Identity}\n{_rig}"), Hash(key));

    /// <summary>True when there is one to go on from.</summary>
    public bool Exists => File.Exists(_path);

    /// <summary>QEMU's arguments for going on from it.</summary>
    public string[] Arguments => ["-incoming", $"exec:cat {_path}"];

    /// <summary>Saves the machine, which stands still meanwhile.</summary>
    /// <param name="monitor">QEMU's machine protocol (QMP), connected.</param>
    public async Task TakeAsync(Socket monitor)
    {
        using CancellationTokenSource limit = new(_limit);
        using NetworkStream stream = new(monitor, ownsSocket: false);
        using StreamReader answers = new(stream);
        string folder = Path.GetDirectoryName(_path)!;
        Directory.CreateDirectory(folder);
        // Nobody goes on from those of an image or a rig before.
        foreach (string stale in Directory.GetDirectories(image.Snapshots).Where(other => other != folder))
        {
            Directory.Delete(stale, recursive: true);
        }

        // Hosts that boot at the same time each save the same.
        string unfinished = $"{_path}.{Environment.ProcessId}.{Guid.NewGuid():N}";
        _ = await answers.ReadLineAsync(limit.Token); // the greeting
        await AskAsync("""{"execute":"qmp_capabilities"}""");
        // It may as well stand still for all of it. (Stopped before, it would be a snapshot of a stopped machine.)
        await AskAsync("""{"execute":"migrate-set-parameters","arguments":{"max-bandwidth":10000000000,"downtime-limit":600000}}""");
        await AskAsync($$$"""{"execute":"migrate","arguments":{"uri":"exec:cat >'{{{unfinished}}}'"}}""");
        string? status;
        while ((status = (await AskAsync("""{"execute":"query-migrate"}""")).GetProperty("status").GetString()) is not ("completed" or "failed"))
        {
            await Task.Delay(50, limit.Token);
        }

        await AskAsync("""{"execute":"cont"}""");
        if (status == "completed")
        {
            File.Move(unfinished, _path, overwrite: true);
        }
        else
        {
            // The disk is full, say: the next host boots as this one did.
            File.Delete(unfinished);
        }

        async Task<JsonElement> AskAsync(string command)
        {
            await stream.WriteAsync(Encoding.UTF8.GetBytes(command), limit.Token);
            while (true)
            {
                string line = await answers.ReadLineAsync(limit.Token) ?? throw new IOException("QEMU has closed its monitor.");
                JsonElement answer = JsonDocument.Parse(line).RootElement;
                if (answer.TryGetProperty("return", out JsonElement value))
                {
                    return value;
                }

                // Events come in between.
                if (answer.TryGetProperty("error", out JsonElement error))
                {
                    throw new InvalidOperationException($"QEMU refused {command}: {error}");
                }
            }
        }
    }

    private static string Hash(string text) => Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)))[..16];
}
