using System.Globalization;

namespace XenLoop.Interop.Linux;

/// <summary>Which process holds a socket. It takes a look at the descriptors of every process: for messages only.</summary>
internal static class SocketOwner
{
    /// <summary>The first one found; null when this process may not look at its descriptors, or it lives in another PID namespace.</summary>
    /// <param name="inode">Of the socket.</param>
    public static (int Pid, string Name)? Find(uint inode)
    {
        string wanted = string.Create(CultureInfo.InvariantCulture, $"socket:[{inode}]");
        foreach (string process in Directory.EnumerateDirectories("/proc"))
        {
            if (!int.TryParse(Path.GetFileName(process.AsSpan()), NumberStyles.None, CultureInfo.InvariantCulture, out int pid))
            {
                continue;
            }

            try
            {
                foreach (string descriptor in Directory.EnumerateFiles($"{process}/fd"))
                {
                    if (new FileInfo(descriptor).LinkTarget == wanted)
                    {
                        return (pid, File.ReadAllText($"{process}/comm").Trim());
                    }
                }
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                // Gone meanwhile, or not to be looked at.
            }
        }

        return null;
    }
}
