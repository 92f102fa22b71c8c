using System.Runtime.InteropServices;
using XenLoop.Guest.Channels;
using XenLoop.Hypervisor;
using XenLoop.Interop.Xen;
using XenLoop.Ring;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>When pages that peers had are given back, and when not.</summary>
public sealed class KeptMemoryTests : IDisposable
{
    private const ushort Peer = 7;
    private const uint RingBytes = 1024 * 1024;
    private const int OneSet = 513;

    private static readonly TimeSpan _begin = TimeSpan.FromDays(1);
    private static readonly TimeSpan _later = _begin + KeptMemory.Unused + KeptMemory.LongestLook;

    private readonly FakeHypervisor _hypervisor = new();
    private readonly KeptMemory _kept;

    public KeptMemoryTests() => _kept = new KeptMemory(_hypervisor);

    public void Dispose() => _kept.Clear();

    [Fact]
    public void What_a_peer_says_it_has_unmapped_is_for_its_next_channel_and_given_back_when_there_is_none()
    {
        GrantedPages pages = Share();
        _kept.Return(Peer, pages, isLetGo: true, _begin);
        LookUntil(_begin + KeptMemory.Unused - TimeSpan.FromMilliseconds(1));
        Assert.Equal((OneSet, OneSet, 2L * RingBytes), (_hypervisor.Granted, _kept.Grants, _kept.Bytes));

        Assert.Null(_kept.Take(Peer + 1));
        Assert.Same(pages, _kept.Take(Peer));
        _kept.Return(Peer, pages, isLetGo: true, _begin);
        LookUntil(_later);
        Assert.Equal((0, 0), (_hypervisor.Granted, _kept.Grants));
        Assert.True(_kept.Due.IsNever);
    }

    [Fact]
    public void What_a_peer_says_nothing_of_is_kept_until_its_kernel_does_or_it_is_gone()
    {
        _kept.Return(Peer, Share(), isLetGo: false, _begin);
        _kept.Return(Peer, Share(kernelSaysSo: true), isLetGo: false, _begin);
        LookUntil(_later);
        Assert.Equal(OneSet, _hypervisor.Granted);
        _hypervisor.Dead = Peer;
        LookUntil(_later + KeptMemory.LongestLook);
        Assert.Equal(0, _hypervisor.Granted);

        _kept.Return(Peer, Share(), isLetGo: false, _begin);
        Assert.Equal(0, _hypervisor.Granted);
    }

    [Fact]
    public void A_peer_is_believed_a_few_times_and_all_together_for_half_of_the_grants()
    {
        for (int i = 0; i < 5; i++)
        {
            _kept.Return(Peer, Share(), isLetGo: true, _begin);
        }

        LookUntil(_later);
        Assert.Equal(OneSet, _hypervisor.Granted);

        for (ushort peer = Peer + 1; peer < Peer + 20; peer++)
        {
            _kept.Return(peer, Share(), isLetGo: true, _begin);
            _kept.Return(peer, Share(), isLetGo: true, _begin);
        }

        LookUntil(_later);
        // In half an hour some come back: a set each 23 minutes.
        Assert.InRange(_hypervisor.Granted, (43 * OneSet) - KeptMemory.PagesOnAnyonesWord - (2 * OneSet), (43 * OneSet) - KeptMemory.PagesOnAnyonesWord + OneSet);
    }

    [Fact]
    public void Room_is_made_at_once_of_what_peers_have_let_go_by_their_word()
    {
        _kept.Return(Peer, Share(), isLetGo: true, _begin);
        _kept.Return(Peer + 1, Share(), isLetGo: false, _begin);
        int told = 0;
        Assert.True(_kept.MakeRoom(_begin, () => told++));
        Assert.Equal((1, OneSet), (told, _kept.Grants));
        Assert.False(_kept.MakeRoom(_begin, () => told++));
        Assert.Equal((1, OneSet), (told, _hypervisor.Granted));
    }

    /// <summary>Looks whenever it is due.</summary>
    private void LookUntil(TimeSpan end)
    {
        for (TimeSpan now = _begin; now <= end; now += TimeSpan.FromMilliseconds(100))
        {
            _kept.Look(now, () => { });
        }

        _kept.Look(end, () => { });
    }

    private unsafe GrantedPages Share(bool kernelSaysSo = false)
    {
        GrantedPages pages = GrantedPages.Share(_hypervisor, Peer, RingBytes);
        ((ControlPage*)pages.Control.Address)->ConnectorAlive = kernelSaysSo ? (byte)0 : (byte)1;
        return pages;
    }

    /// <summary>Grants that nobody maps.</summary>
    private sealed class FakeHypervisor : IHypervisor, IGrantTable, IEventChannels
    {
        public int Granted { get; private set; }

        public ushort Dead { get; set; }

        public bool IsControlDomain => false;

        public IGrantTable Grants => this;

        public IEventChannels EventChannels => this;

        public SharedMemory Share(ushort peer, int pages, DeathNotice? onDeath = null)
        {
            Granted += pages;
            return new Memory(pages, () => Granted -= pages);
        }

        public bool IsDomainAlive(ushort domid) => domid != Dead;

        public SharedMemory Map(ushort peer, ReadOnlySpan<uint> references, DeathNotice? onDeath = null) => throw new NotSupportedException();

        public EventChannel AllocateUnbound(ushort remote) => throw new NotSupportedException();

        public EventChannel BindInterdomain(ushort remote, uint remotePort) => throw new NotSupportedException();

        public XenStore OpenXenStore() => throw new NotSupportedException();

        public string? FindVifInterface(int vif) => throw new NotSupportedException();

        public void Dispose()
        {
        }

        private sealed unsafe class Memory : SharedMemory
        {
            private readonly Action _end;

            public Memory(int pages, Action end)
            {
                Address = (byte*)NativeMemory.AllocZeroed((nuint)pages * 4096);
                (Length, References, _end) = (pages * 4096, new uint[pages], end);
            }

            public override void SetDeathNotice(DeathNotice? notice)
            {
            }

            public override void Dispose()
            {
                NativeMemory.Free(Address);
                _end();
            }
        }
    }
}
