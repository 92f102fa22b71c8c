namespace XenLoop.Command;

/// <summary>What this machine is, whether or not a daemon runs on it.</summary>
internal static class Machine
{
    private const string Type = "/sys/hypervisor/type";
    private const string Capabilities = "/proc/xen/capabilities";

    /// <summary>A domain of Xen's, Dom0 included.</summary>
    public static bool IsXenDomain => ReadOrEmpty(Type).Trim() == "xen" || Directory.Exists("/proc/xen") || File.Exists("/dev/xen/xenbus");

    /// <summary>The domain that runs the toolstack.</summary>
    public static bool IsControlDomain => ReadOrEmpty(Capabilities).Contains("control_d", StringComparison.Ordinal);

    /// <summary>Empty where there is no such file, or none that may be read.</summary>
    public static string ReadOrEmpty(string path)
    {
        try
        {
            return File.ReadAllText(path);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return "";
        }
    }
}
