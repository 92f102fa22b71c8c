using System.Runtime.Versioning;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>The demonstration is worth what it does when something is not as it tells; <c>./test bare</c> runs the other case.</summary>
[Collection(DaemonTests.Name)]
[UnsupportedOSPlatform("windows")]
public sealed class DemoTests(ITestOutputHelper output)
{
    [Fact]
    public async Task A_daemon_that_does_not_come_back_is_told_and_fails()
    {
        string folder = Directory.CreateTempSubdirectory("xenloop-demo-").FullName;
        string daemon = Path.Combine(folder, "daemon");
        // Dom0, alice, bob; and bob once more.
        await File.WriteAllTextAsync(daemon, $"""
            #!/bin/sh
            echo >>{folder}/starts
            [ $(wc -l <{folder}/starts) -le 3 ] || exec sleep 1000
            exec {DaemonLab.Daemon} "$@"

            """);
        File.SetUnixFileMode(daemon, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
        using StringWriter said = new();
        try
        {
            int exit = await Demo.RunAsync(daemon, TextWriter.Synchronized(said));

            output.WriteLine(said.ToString());
            Assert.Equal(1, exit);
            Assert.Contains("was not: the packets in a channel again, when bob had a daemon again.", said.ToString(), StringComparison.Ordinal);
        }
        finally
        {
            Directory.Delete(folder, recursive: true);
        }
    }
}
