using XenLoop.Rig;
using Xunit;

namespace XenLoop.Tests.Xen;

/// <summary>A guest that was quiesced is saved and restored while its connections go on, and gets its channel back by itself.</summary>
[Collection(ChannelHost.Name)]
public sealed class SuspendTests(ChannelFixture xen)
{
    /// <summary>The pair, which of them is suspended, and how.</summary>
    public static readonly TheoryData<string, string, int, string> Suspends = new()
    {
        { "pvh1", "pvh2", 1, "restore" },
        { "pv1", "pv2", 0, "restore" },
        { "pv1", "pv2", 1, "cancel" },
    };

    [Theory, MemberData(nameof(Suspends))]
    public async Task Connections_outlive_the_save_of_a_quiesced_guest(string a, string b, int suspended, string how)
    {
        (Node from, Node to) = (xen[a], xen[b]);
        Node victim = suspended == 0 ? from : to;
        await ChannelFixture.ChannelUpAsync(from, to);
        int before = victim.Domid;

        // 60 pieces, one every half a second.
        (await to.RunAsync("socat -u TCP-LISTEN:5006,reuseaddr CREATE:/tmp/stream & echo $! >/tmp/receiver; sleep 0.3")).Check();
        (await from.RunAsync("""
            head -c 3000000 /dev/urandom >/tmp/source
            { for i in $(seq 0 59); do dd if=/tmp/source bs=50000 skip=$i count=1 2>/dev/null; sleep 0.5; done; } | socat -u - TCP:ADDRESS:5006 >/tmp/sender 2>&1 &
            echo $! >/tmp/sending
            """.Replace("ADDRESS", to.Guest.Ipv4, StringComparison.Ordinal))).Check();

        // The process that asks for it is the one that saves, as the save helper will be.
        (await xen.Host.RunAsync($"""
            sh -c 'xenloop quiesce --holder $$ {victim.Name} && exec xl save {(how == "cancel" ? "-c" : "")} {victim.Name} /tmp/image' || exit 1
            {(how == "cancel" ? "true" : "xl restore /tmp/image")} || exit 1
            rm -f /tmp/image
            """, TimeSpan.FromMinutes(5))).Check();
        await victim.Guest.RefreshDomidAsync();
        Assert.Equal(how == "cancel", victim.Domid == before);
        await ChannelFixture.ChannelUpAsync(from, to);
        (long sent, long received) packets = await from.PacketsAsync(to);

        string digest = (await from.RunAsync("while kill -0 $(cat /tmp/sending) 2>/dev/null; do sleep 0.1; done; cat /tmp/sender; sha256sum </tmp/source")).Check().Output;
        Assert.Equal(digest, (await to.RunAsync("while kill -0 $(cat /tmp/receiver) 2>/dev/null; do sleep 0.1; done; sha256sum </tmp/stream")).Check().Output);
        (long sent, long received) after = await from.PacketsAsync(to);
        Assert.True(after.sent > packets.sent, $"{packets} to {after}: the stream was over before the channel was back");
        Assert.DoesNotMatch("BUG|Oops|Call Trace", await victim.Guest.ConsoleLogAsync());
    }
}
