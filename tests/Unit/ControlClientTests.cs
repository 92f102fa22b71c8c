using System.Net.Sockets;
using System.Runtime.InteropServices;
using XenLoop.Service;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>A guest is saved on the word of who answers on the control socket: only root's is taken.</summary>
public sealed partial class ControlClientTests : IDisposable
{
    private const int Nobody = 65534;

    private readonly string _folder = Directory.CreateTempSubdirectory("xenloop-control-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData(0)]
    [InlineData(Nobody)]
    public async Task Only_root_is_believed(int user)
    {
        string path = Path.Combine(_folder, "control.sock");
        using Socket listener = new(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        Thread thread = new(() =>
        {
            listener.Bind(new UnixDomainSocketEndPoint(path));
            // Of this thread alone; the kernel notes who listens.
            Assert.Equal(0, syscall(SYS_setresuid, -1, user, -1));
            listener.Listen(1);
        });
        thread.Start();
        thread.Join();
        Task answering = Task.Run(() =>
        {
            using Socket client = listener.Accept();
            client.Receive(new byte[100]);
            client.Send("{}"u8);
        });
        if (user == 0)
        {
            Assert.Equal("{}", ControlClient.Ask(path, "status"));
            await answering;
        }
        else
        {
            Assert.Contains($"is of user {Nobody}", Assert.Throws<IOException>(() => ControlClient.Ask(path, "status")).Message, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void The_command_asks_in_one_place_whatever_its_environment_says() =>
        Assert.Equal("/run/xenloop/control.sock", ControlSocket.DefaultPath);

    private static nint SYS_setresuid => RuntimeInformation.ProcessArchitecture == Architecture.Arm64 ? 147 : 117;

    // long syscall(long number, ...);
    [LibraryImport("libc")]
    private static partial nint syscall(nint number, nint first, nint second, nint third);
}
