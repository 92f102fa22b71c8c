namespace XenLoop.Divert;

/// <summary>How frames that were written to a TAP get to the ingress of the vif, the better way first (see docs/measurements.md).</summary>
internal enum Reinjection
{
    /// <summary>act_mirred behind cls_bpf: a function call to the vif's receive path, in the thread that writes.</summary>
    Mirred,

    /// <summary>bpf_redirect: by way of the CPU's backlog, which costs time and may overflow. For kernels that lack a module.</summary>
    BpfRedirect,
}
