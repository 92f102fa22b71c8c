using System.Runtime.InteropServices;
using Tmds.Linux;
using XenLoop.Divert;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>What stands behind the divert on netfront's way. Needs root and iproute2.</summary>
public sealed class EgressObstaclesTests : IDisposable
{
    private readonly TestGuest _guest = new("00:16:3e:00:00:01", "10.0.0.1");

    public void Dispose() => _guest.Dispose();

    [Theory]
    [InlineData("noqueue", null)]
    [InlineData("pfifo limit 100", null)]
    [InlineData("bfifo", null)]
    [InlineData("pfifo_fast", null)]
    [InlineData("tbf rate 20mbit burst 32k latency 50ms", "tbf")]
    [InlineData("htb default 1", "htb")]
    public void A_qdisc_that_does_more_than_queue_is_one(string qdisc, string? named)
    {
        Assert.Null(Find());
        Tc($"qdisc replace dev eth0 root {qdisc}");
        Tc("qdisc add dev eth0 clsact");
        if (named is null)
        {
            Assert.Null(Find());
        }
        else
        {
            Assert.Contains($"the qdisc {named}", Find(), StringComparison.Ordinal);
            Tc("qdisc del dev eth0 root");
            Assert.Null(Find());
        }
    }

    [Fact]
    public void A_capture_on_another_interface_and_one_of_a_single_protocol_are_none()
    {
        _guest.Namespace.Command("ip", "link", "set", "lo", "up");
        using (Capture(0x0300, 1))
        using (Capture(0x0008, _guest.Eth0.Index))
        {
            Assert.Null(Find());
        }

        using (Capture(0x0300, _guest.Eth0.Index))
        {
            Assert.Contains("captures on it", Find(), StringComparison.Ordinal);
            Assert.Contains($"process {Environment.ProcessId}", Find(), StringComparison.Ordinal);
        }

        using (Capture(0x0300, 0))
        {
            Assert.Contains("captures on all interfaces", Find(), StringComparison.Ordinal);
        }

        Assert.Null(Find());
    }

    [Theory]
    // XDP_FLAGS_SKB_MODE runs in the network layer, where what arrives by a TAP comes by; XDP_FLAGS_DRV_MODE does not.
    [InlineData(2, false)]
    [InlineData(4, true)]
    public void An_XDP_program_in_the_driver_is_one(uint mode, bool found)
    {
        using (_guest.Namespace.Run(() => AttachXdp(_guest.Eth0.Index, mode)))
        {
            Assert.Equal(found, Find()?.Contains("(test) in the driver of eth0", StringComparison.Ordinal) ?? false);
        }

        Assert.Null(Find());
    }

    private string? Find() => _guest.Namespace.Run(() => new EgressObstacles(_guest.TrafficControl).Find(_guest.Links.FindLink("eth0")!));

    private void Tc(string command) => _guest.Namespace.Command("tc", command.Split(' '));

    private unsafe SafeFd Capture(ushort protocol, int index) => _guest.Namespace.Run(() =>
    {
        const int AF_PACKET = 17;
        SafeFd fd = new(LibC.socket(AF_PACKET, LibC.SOCK_RAW | LibC.SOCK_CLOEXEC, 0));
        // struct sockaddr_ll: family, protocol, index.
        byte* address = stackalloc byte[20];
        new Span<byte>(address, 20).Clear();
        *(ushort*)address = AF_PACKET;
        *(ushort*)(address + 2) = protocol;
        *(int*)(address + 4) = index;
        Assert.Equal(0, LibC.bind(fd.Number, (sockaddr*)address, 20));
        return fd;
    });

    private static unsafe SafeFd AttachXdp(int index, uint mode)
    {
        const int BPF_PROG_LOAD = 5, BPF_LINK_CREATE = 28, BPF_PROG_TYPE_XDP = 6, BPF_XDP = 37, XDP_PASS = 2;
        int SYS_bpf = RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 280 : 321;
        BpfInstruction[] code = new BpfProgram().Move(BpfRegister.R0, XDP_PASS).Exit().ToArray();
        fixed (BpfInstruction* instructions = code)
        fixed (byte* license = "GPL\0"u8)
        {
            Bpf.prog_load_attr load = new() { prog_type = BPF_PROG_TYPE_XDP, insn_cnt = (uint)code.Length, insns = (ulong)instructions, license = (ulong)license };
            "test"u8.CopyTo(new Span<byte>(load.prog_name, 16));
            using SafeFd program = new(Check((int)LibC.syscall(SYS_bpf, BPF_PROG_LOAD, &load, sizeof(Bpf.prog_load_attr))));
            Bpf.link_create_attr create = new() { prog_fd = (uint)program.Number, target_ifindex = (uint)index, attach_type = BPF_XDP, flags = mode };
            return new SafeFd(Check((int)LibC.syscall(SYS_bpf, BPF_LINK_CREATE, &create, sizeof(Bpf.link_create_attr))));
        }
    }

    private static int Check(int result) => result >= 0 ? result : throw new NativeException("bpf", "XDP", LibC.errno);
}
