using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Skipped where the kernel has no TCX.</summary>
[AttributeUsage(AttributeTargets.Method)]
internal sealed class FactWithTcxAttribute : FactAttribute
{
    public FactWithTcxAttribute()
    {
        if (!DivertTests.HasTcx)
        {
            Skip = "TCX came with Linux 6.6.";
        }
    }
}

/// <summary>The divert beside others at the egress of one interface: it comes last, and comes back. Needs root and iproute2.</summary>
public sealed class EgressHookTests : IDisposable
{
    private const int Drop = 2;
    private const int Next = -1;
    private const int Ok = 0;

    private static MacAddress Peer { get; } = MacAddress.Parse("00:16:3e:00:00:02");

    private readonly BpfRingBuffer _demands = new("test_demand", 4096);
    private readonly TestGuest _guest = new("00:16:3e:00:00:01", "10.0.0.1");
    private TapDevice? _tap;

    public static TheoryData<int> Rungs => DivertTests.Rungs;

    public void Dispose()
    {
        _tap?.Dispose();
        _guest.Dispose();
        _demands.Dispose();
    }

    [FactWithTcx]
    public void A_TCX_program_that_comes_behind_is_met_again_after_a_look()
    {
        using VifDivert divert = Attach(null);
        AssertDiverted();

        Assert.False(divert.HasOthers);
        using (Tcx(Drop))
        {
            Assert.Null(Secure(divert));
            Assert.True(divert.HasOthers);
            AssertDropped();
            Assert.Equal(DivertRung.Tcx, divert.Rung);
        }

        // A process that is being started at the same time has the link for a moment, too.
        Assert.True(SpinWait.SpinUntil(() => TcxPrograms().Length == 1, 1000));
        AssertDiverted();
        using SafeFd passing = Tcx(Next);
        Assert.Null(Secure(divert));
        AssertDiverted();
        Assert.Equal(2, TcxPrograms().Length);
    }

    [FactWithTcx]
    public void A_filter_is_met_though_the_kernel_has_TCX()
    {
        using VifDivert divert = Attach(null);
        AssertDiverted();
        Tc("qdisc add dev eth0 clsact");
        AddFilter(1, Next);

        Assert.Null(Secure(divert));

        Assert.Equal(DivertRung.ClsBpf, divert.Rung);
        Assert.Empty(TcxPrograms());
        AssertDiverted();
        AddFilter(2, Drop);
        AssertDropped();
        Tc("filter del dev eth0 egress prio 2");
        AssertDiverted();
    }

    [Fact]
    public void A_filter_that_was_there_before_is_met_and_one_that_ends_with_ok_keeps_its_packets_on_the_interface()
    {
        Tc("qdisc add dev eth0 clsact");
        AddFilter(1, Ok);

        using VifDivert divert = Attach(null);

        Assert.Equal(DivertRung.ClsBpf, divert.Rung);
        AssertKept();
        Tc("filter del dev eth0 egress prio 1");
        AssertDiverted();
        Tc("filter add dev eth0 egress prio 65534 protocol all u32 match u32 0 0 action mirred egress mirror dev lo");
        Assert.Null(Secure(divert));
        AssertKept();
    }

    [Fact]
    public void What_has_the_last_place_already_is_in_the_way_until_it_goes()
    {
        Tc("qdisc add dev eth0 clsact");
        AddFilter(EgressHook.FilterPriority, Next);
        using VifDivert divert = Attach(null);

        Assert.Contains("the bpf filter test of priority 65535", Secure(divert), StringComparison.Ordinal);
        AssertKept();

        Tc("filter del dev eth0 egress prio 65535");
        Assert.Null(Secure(divert));
        AssertDiverted();
    }

    [Fact]
    public void A_filter_of_another_kind_in_the_last_place_is_in_the_way_and_is_left_alone()
    {
        Tc("qdisc add dev eth0 clsact");
        Tc("filter add dev eth0 egress prio 65535 protocol ip u32 match u32 0 0");
        using VifDivert divert = Attach(null);

        Assert.Contains("u32", Secure(divert), StringComparison.Ordinal);
        Assert.All(_guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Egress), f => Assert.Equal("u32", f.Kind));
    }

    [Fact]
    public void A_filter_whose_clsact_is_deleted_comes_back_and_leaves_nothing_in_the_end()
    {
        using (VifDivert divert = Attach(DivertRung.ClsBpf))
        {
            AssertDiverted();
            Tc("qdisc del dev eth0 clsact");
            AssertKept();

            Assert.Null(Secure(divert));
            AssertDiverted();
            Tc("filter del dev eth0 egress");
            AssertKept();
            Assert.Null(Secure(divert));
            AssertDiverted();
        }

        Assert.False(_guest.TrafficControl.HasClsact(_guest.Eth0.Index));
    }

    [FactWithTcx]
    public void A_link_that_is_detached_comes_back()
    {
        using VifDivert divert = Attach(null);
        _guest.Namespace.Run(DetachLinks);
        Assert.Empty(TcxPrograms());
        AssertKept();

        Assert.Null(Secure(divert));
        AssertDiverted();
    }

    [Fact]
    public void An_ingress_qdisc_in_the_place_of_clsact_is_named()
    {
        Tc("qdisc add dev eth0 ingress");

        Interop.NativeException error = Assert.Throws<Interop.NativeException>(() => Attach(DivertRung.ClsBpf));

        Assert.Contains("clsact", error.Message, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Rungs))]
    public void The_filter_of_a_former_daemon_goes(int rung)
    {
        _ = _guest.TrafficControl.AddClsact(_guest.Eth0.Index);
        using (SafeFd program = Load(Next))
        {
            _guest.TrafficControl.AddBpfFilter(
                _guest.Eth0.Index, TcHook.Egress, 0x584C, EgressHook.FilterHandle, program.Number, EgressHook.FilterNameWithClsact);
        }

        using (VifDivert divert = Attach((DivertRung)rung))
        {
            Assert.DoesNotContain(_guest.TrafficControl.ListFilters(_guest.Eth0.Index, TcHook.Egress), f => f.Priority == 0x584C);
            AssertDiverted();
        }

        Assert.False(_guest.TrafficControl.HasClsact(_guest.Eth0.Index));
    }

    private VifDivert Attach(DivertRung? rung)
    {
        VifDivert divert = _guest.Namespace.Run(() => VifDivert.Attach("eth0", _guest.Mac, 4, 0, _demands, rung));
        _tap ??= _guest.OpenChannelTap();
        divert.Connect(Peer, _tap.Index, 0);
        divert.AttachFilter(_tap, _guest.Mac, Peer, 0);
        divert.Slot(0).Open();
        _drained = () => divert.Slot(0).Drain(divert.Slot(0).Queued);
        return divert;
    }

    // bpf(2) takes interfaces of the thread's namespace.
    private string? Secure(VifDivert divert) => _guest.Namespace.Run(divert.Secure);

    private Action _drained = () => { };

    private void AssertDiverted()
    {
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_tap!));
        _drained();
        Assert.Null(Frame.Read(_guest.Eth0, 10));
    }

    private void AssertKept()
    {
        _guest.Send(Peer, _guest.Mac);
        Assert.NotNull(Frame.Read(_guest.Eth0));
        Assert.Null(Frame.Read(_tap!, 10));
    }

    private void AssertDropped()
    {
        // The sender is told that its frame was dropped.
        Assert.Contains("ENOBUFS", Assert.Throws<Interop.NativeException>(() => _guest.Send(Peer, _guest.Mac)).Message, StringComparison.Ordinal);
        Assert.Null(Frame.Read(_tap!, 10));
        Assert.Null(Frame.Read(_guest.Eth0, 10));
    }

    private void Tc(string command) => _guest.Namespace.Command("tc", command.Split(' '));

    private void AddFilter(ushort priority, int verdict)
    {
        using SafeFd program = Load(verdict);
        _guest.TrafficControl.AddBpfFilter(_guest.Eth0.Index, TcHook.Egress, priority, 1, program.Number, "test");
    }

    private SafeFd Tcx(int verdict)
    {
        using SafeFd program = Load(verdict);
        return _guest.Namespace.Run(() => Bpf.CreateTcxLink(program, _guest.Eth0.Index, BpfAttachType.BPF_TCX_EGRESS));
    }

    private static SafeFd Load(int verdict) => Bpf.LoadClassifier("test", new BpfProgram().Move(BpfRegister.R0, verdict).Exit().ToArray());

    private uint[] TcxPrograms() => _guest.Namespace.Run(() => Bpf.ListTcxPrograms(_guest.Eth0.Index, BpfAttachType.BPF_TCX_EGRESS));

    /// <summary>As <c>bpftool link detach</c>.</summary>
    private unsafe void DetachLinks()
    {
        const int BPF_LINK_GET_FD_BY_ID = 30, BPF_LINK_DETACH = 34, BPF_PROG_QUERY = 16;
        int SYS_bpf = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 280 : 321;
        uint* programs = stackalloc uint[8];
        uint* links = stackalloc uint[8];
        Bpf.prog_query_attr query = new()
        {
            target_ifindex = (uint)_guest.Eth0.Index,
            attach_type = (uint)BpfAttachType.BPF_TCX_EGRESS,
            prog_ids = (ulong)programs,
            link_ids = (ulong)links,
            prog_cnt = 8,
        };
        Assert.Equal(0, (int)LibC.syscall(SYS_bpf, BPF_PROG_QUERY, &query, sizeof(Bpf.prog_query_attr)));
        for (int i = 0; i < query.prog_cnt; i++)
        {
            Bpf.get_fd_by_id_attr id = new() { prog_id = links[i] };
            using SafeFd link = new((int)LibC.syscall(SYS_bpf, BPF_LINK_GET_FD_BY_ID, &id, sizeof(Bpf.get_fd_by_id_attr)));
            int number = link.Number;
            Assert.Equal(0, (int)LibC.syscall(SYS_bpf, BPF_LINK_DETACH, &number, 4));
        }
    }
}
