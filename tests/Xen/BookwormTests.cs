using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

// All tests run on Debian 13. These run again on a host of Debian 12, where cls_bpf diverts and not TCX, and the kernel, xl and systemd
// suspend guests in their own ways; SystemdTests has the unprepared suspend. One host for all: the others' take longer.

/// <summary>A host of Debian 12, for the classes below.</summary>
[CollectionDefinition(Name)]
public sealed class BookwormHost : ICollectionFixture<BookwormFixture>
{
    public const string Name = "Bookworm";
}

/// <summary>As <see cref="ChannelFixture"/>, on Debian 12.</summary>
public sealed class BookwormFixture() : ChannelFixture(DebianRelease.Bookworm);

/// <inheritdoc/>
[Collection(BookwormHost.Name)]
public sealed class BookwormChannelTests(BookwormFixture xen) : ChannelTests(xen);

/// <inheritdoc/>
[Collection(BookwormHost.Name)]
public sealed class BookwormSuspendTests(BookwormFixture xen) : SuspendTests(xen);

/// <inheritdoc/>
[Collection(BookwormHost.Name)]
public sealed class BookwormSystemdTests(BookwormFixture xen) : SystemdTests(xen);
