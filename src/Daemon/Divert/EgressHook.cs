using XenLoop.Interop;
using XenLoop.Interop.Linux;

namespace XenLoop.Divert;

/// <summary>
/// The program's place at the egress of one interface: the last of all programs and filters there. What another one drops, marks,
/// redirects or copies, it has dealt with before the program sees the packet, and whatever it keeps for itself or ends with
/// "ok" stays on its way. Programs of TCX run before the filters of clsact, so where there is a filter, the program is one, too.
/// </summary>
internal sealed class EgressHook : IDisposable
{
    /// <summary>The highest there is: every other filter runs first.</summary>
    internal const ushort FilterPriority = 0xFFFF;

    internal const uint FilterHandle = 0x584C0001;
    internal const string FilterName = "xenloopd";

    // The successor of a killed daemon learns from the name that clsact was not there before.
    internal const string FilterNameWithClsact = "xenloopd+clsact";

    // Of daemons before this one, which may have been killed.
    private const ushort FormerPriority = 0x584C;

    private readonly int _interfaceIndex;
    private readonly SafeFd _program;
    private readonly uint _programId;
    private readonly TrafficControl _trafficControl;
    private readonly DivertRung? _only;
    private SafeFd? _link;
    private bool _filterAdded;
    private bool _ownsClsact;

    /// <summary>Attaches nothing yet.</summary>
    /// <param name="interfaceIndex">Of the interface.</param>
    /// <param name="program">To be attached; it stays the caller's.</param>
    /// <param name="trafficControl">Of the interface's namespace.</param>
    /// <param name="only">Try this rung alone.</param>
    public EgressHook(int interfaceIndex, SafeFd program, TrafficControl trafficControl, DivertRung? only)
    {
        (_interfaceIndex, _program, _trafficControl, _only) = (interfaceIndex, program, trafficControl, only);
        _programId = Bpf.IdOf(program);
        Rung = only ?? DivertRung.Tcx;
        // What a killed predecessor left passes every packet, but would count as somebody's use of clsact.
        _ownsClsact = RemoveFilter();
    }

    /// <summary>How the program is attached, or would be.</summary>
    public DivertRung Rung { get; private set; }

    /// <summary>Whether others have programs or filters there, which see each packet before and may keep it from the program: as of the last
    /// <see cref="Secure"/>.</summary>
    public bool HasOthers { get; private set; }

    /// <summary>Whether what rtnetlink does not tell of is as it was: nothing has come behind the program's TCX link, and it is attached.
    /// Allocates nothing.</summary>
    public bool IsUnchanged =>
        Rung != DivertRung.Tcx || (_link is not null && Bpf.IsLastTcxProgram(_interfaceIndex, BpfAttachType.BPF_TCX_EGRESS, _programId));

    /// <summary>
    /// Sees to it that the program is attached, behind all others: somebody may have taken it away, or come behind it. Packets that
    /// pass in a moment when it is not attached keep to the interface.
    /// </summary>
    /// <returns>Who runs behind the program all the same, or has its place; null when nobody does.</returns>
    /// <exception cref="NativeException">The kernel has neither rung, or the interface is gone.</exception>
    public string? Secure()
    {
        if (Rung == DivertRung.Tcx)
        {
            if (Last(Others()) is not { } filter)
            {
                try
                {
                    return SecureLink();
                }
                catch (NativeException) when (_only is null && _link is null)
                {
                    // An older kernel: the next rung, whose error counts if it fails, too.
                }
            }
            else if (_only is not null)
            {
                return Describe(filter);
            }

            Detach();
            Rung = DivertRung.ClsBpf;
        }

        return SecureFilter();
    }

    /// <summary>Detaches the program, and leaves nothing behind.</summary>
    public void Dispose()
    {
        try
        {
            Detach();
            ReleaseClsact();
        }
        catch (NativeException)
        {
            // The interface may be gone, and its filters with it. What stays lets every packet pass, and the next daemon removes it.
        }
    }

    private void Detach()
    {
        _link?.Dispose();
        _link = null;
        if (_filterAdded)
        {
            _filterAdded = false;
            _ = RemoveFilter();
        }
    }

    private string? SecureLink()
    {
        if (_link is not null)
        {
            if (Bpf.ListTcxPrograms(_interfaceIndex, BpfAttachType.BPF_TCX_EGRESS) is [.. uint[] before, uint last] && last == _programId)
            {
                HasOthers = before.Length > 0;
                return null;
            }

            // A link that somebody detached holds nothing any more, and one program cannot be attached twice.
            _link.Dispose();
            _link = null;
        }

        _link = Bpf.CreateTcxLink(_program, _interfaceIndex, BpfAttachType.BPF_TCX_EGRESS);
        ReleaseClsact();
        uint[] programs = Bpf.ListTcxPrograms(_interfaceIndex, BpfAttachType.BPF_TCX_EGRESS);
        HasOthers = programs.Length > 1;
        return programs is [.., uint behind] && behind != _programId
            ? $"the TCX program {behind} ({Bpf.NameOf(behind)})"
            : null;
    }

    private string? SecureFilter()
    {
        List<TcFilter> filters = List();
        HasOthers = filters.Exists(f => !IsOurs(f));
        if (!filters.Exists(IsOurs))
        {
            // A filter of this priority takes no other kind, or is put behind ours.
            if (Last(filters) is { Priority: FilterPriority } other)
            {
                return Describe(other);
            }

            _ownsClsact |= _trafficControl.AddClsact(_interfaceIndex);
            _trafficControl.AddBpfFilter(
                _interfaceIndex, TcHook.Egress, FilterPriority, FilterHandle, _program.Number, _ownsClsact ? FilterNameWithClsact : FilterName);
            _filterAdded = true;
            filters = List();
        }

        return Last(filters) is { } last && !IsOurs(last) ? Describe(last) : null;
    }

    private List<TcFilter> Others()
    {
        List<TcFilter> others = List();
        others.RemoveAll(IsOurs);
        return others;
    }

    private List<TcFilter> List() => _trafficControl.ListFilters(_interfaceIndex, TcHook.Egress);

    /// <summary>The one that runs last. A filter in another chain runs in the place of the one that sends packets there.</summary>
    private static TcFilter? Last(List<TcFilter> filters)
    {
        int last = filters.FindLastIndex(f => f.Chain == 0);
        return last < 0 ? null : filters[last];
    }

    private static string Describe(in TcFilter filter) =>
        $"the {filter.Kind} filter {(filter.Name.Length > 0 ? $"{filter.Name} " : "")}of priority {filter.Priority} at its egress";

    private static bool IsOurs(TcFilter filter) => filter is
    {
        Kind: "bpf", Priority: FilterPriority or FormerPriority, Handle: FilterHandle, Name: FilterName or FilterNameWithClsact,
    };

    /// <summary>Removes a filter that bears our priority, handle and name; another's is not touched.</summary>
    /// <returns>True when its owner had added clsact, too.</returns>
    private bool RemoveFilter()
    {
        foreach (TcFilter filter in List())
        {
            if (IsOurs(filter))
            {
                _ = _trafficControl.DeleteFilter(_interfaceIndex, TcHook.Egress, filter.Priority, FilterHandle);
                return filter.Name == FilterNameWithClsact;
            }
        }

        return false;
    }

    /// <summary>Removes clsact if it is ours and nobody else has put a filter there meanwhile.</summary>
    private void ReleaseClsact()
    {
        if (_ownsClsact && List().Count == 0 && _trafficControl.ListFilters(_interfaceIndex, TcHook.Ingress).Count == 0)
        {
            _trafficControl.DeleteClsact(_interfaceIndex);
        }

        _ownsClsact = false;
    }
}
