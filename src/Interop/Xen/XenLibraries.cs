using System.Reflection;
using System.Runtime.InteropServices;
using static XenLoop.Interop.Errno;

namespace XenLoop.Interop.Xen;

/// <summary>
/// Finds Xen's shared libraries under the sonames of Xen 4.14 to 4.19. Each is loaded at its first call, so that a
/// program needs only those it uses: a guest of the lab does without libxengnttab and libxenevtchn.
/// </summary>
internal static class XenLibraries
{
    private static readonly bool Registered = Register();

    /// <summary>Called by the static constructor of each set of bindings: its imports resolve here from then on.</summary>
    public static void Use() => _ = Registered;

    private static bool Register()
    {
        // One resolver serves an assembly; libraries that are not Xen's fall through to the runtime's own search.
        NativeLibrary.SetDllImportResolver(typeof(XenLibraries).Assembly, Resolve);
        return true;
    }

    private static IntPtr Resolve(string name, Assembly assembly, DllImportSearchPath? searchPath)
    {
        (string[] sonames, string remedy) = name switch
        {
            LibXenStore.Library => (
                new[] { "libxenstore.so.4", "libxenstore.so.3.0" },
                "Install libxenstore4 (Debian, Ubuntu; libxenstore3.0 before Debian 11) or xen-libs (Fedora, openSUSE, Alpine)"),
            LibXenGntTab.Library => (
                new[] { "libxengnttab.so.1" },
                "Install libxengnttab1 (Debian, Ubuntu) or xen-libs (Fedora, openSUSE, Alpine)"),
            LibXenEvtchn.Library => (
                new[] { "libxenevtchn.so.1" },
                "Install libxenevtchn1 (Debian, Ubuntu) or xen-libs (Fedora, openSUSE, Alpine)"),
            _ => ([], ""),
        };
        foreach (string soname in sonames)
        {
            if (NativeLibrary.TryLoad(soname, out IntPtr library))
            {
                return library;
            }
        }

        return sonames.Length == 0 ? IntPtr.Zero : throw new NativeException("dlopen", sonames[0], ENOENT, remedy);
    }
}
