namespace XenLoop.Divert;

/// <summary>How the programs are attached to interfaces, the better one first.</summary>
internal enum DivertRung
{
    /// <summary>A TCX link (Linux 6.6 and later): detaches itself when the process ends, however it ends.</summary>
    Tcx,

    /// <summary>A cls_bpf filter of a clsact qdisc (Linux 4.5 and later): stays when the process is killed, and lets every
    /// packet pass from then on, because the stamp goes stale.</summary>
    ClsBpf,
}
