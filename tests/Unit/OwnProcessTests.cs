using System.Diagnostics;
using Tmds.Linux;
using XenLoop.Interop.Linux;
using Xunit;

namespace XenLoop.Tests.Unit;

public unsafe class OwnProcessTests
{
    [Fact]
    public void A_copy_keeps_what_it_is_told_to_and_nothing_else_and_ends_only_when_killed()
    {
        (int keptRead, int keptWrite) = Pipe();
        (int otherRead, int otherWrite) = Pipe();
        int pid = OwnProcess.LeaveCopy("left-behind", [keptWrite]);
        try
        {
            // Whoever reads a pipe learns when nobody can write to it any more.
            _ = LibC.close(otherWrite);
            Assert.True(HasEnded(otherRead, 5000));
            _ = LibC.close(keptWrite);
            Assert.False(HasEnded(keptRead, 200));
            Assert.Equal("left-behind\n", File.ReadAllText($"/proc/{pid}/comm"));
            Assert.Equal('@', File.ReadAllText($"/proc/{pid}/cmdline")[0]);
            Assert.Single(Directory.GetFileSystemEntries($"/proc/{pid}/fd"));
            // 32 and 33 are the C library's own, and between threads of a process.
            foreach (int signal in Enumerable.Range(1, 64).Except([LibC.SIGKILL, LibC.SIGSTOP, 32, 33]))
            {
                Assert.Equal(0, LibC.kill(pid, signal));
            }

            Assert.False(HasEnded(keptRead, 200));
        }
        finally
        {
            using Process copy = Process.GetProcessById(pid);
            copy.Kill();
        }

        Assert.True(HasEnded(keptRead, 5000));
        _ = LibC.close(keptRead);
        _ = LibC.close(otherRead);
    }

    [Fact]
    public void Descriptors_are_found_by_the_file_they_are_open_on()
    {
        using FileStream file = File.OpenRead("/dev/zero");
        int number = (int)file.SafeFileHandle.DangerousGetHandle();
        Assert.Contains(number, OwnProcess.Descriptors("/dev/zero", "/dev/full"));
        Assert.DoesNotContain(number, OwnProcess.Descriptors("/dev/full"));
    }

    private static (int Read, int Write) Pipe()
    {
        int* ends = stackalloc int[2];
        Assert.Equal(0, LibC.pipe2(ends, LibC.O_CLOEXEC));
        return (ends[0], ends[1]);
    }

    private static bool HasEnded(int read, int milliseconds)
    {
        pollfd wait = new() { fd = read, events = LibC.POLLIN };
        return LibC.poll(&wait, 1, milliseconds) > 0 && (wait.revents & LibC.POLLHUP) != 0;
    }
}
