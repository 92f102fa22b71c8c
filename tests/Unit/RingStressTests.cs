using System.Diagnostics;
using Xunit;

namespace XenLoop.Tests.Unit;

/// <summary>Two processes and millions of records. For a longer run, start tests/RingStress by hand with --records.</summary>
public sealed class RingStressTests
{
    [Theory]
    [InlineData(128)]
    [InlineData(1024)]
    public async Task TwoProcessesLoseNoByteAndNoWakeUp(int ringKib)
    {
        string program = Path.Combine(AppContext.BaseDirectory, "XenLoop.Tests.RingStress.dll");
        using Process process = new()
        {
            StartInfo = new ProcessStartInfo("dotnet", [program, "--records", "2000000", "--ring-kib", $"{ringKib}"])
            {
                RedirectStandardOutput = true,
                RedirectStandardError = true,
            },
        };
        Assert.True(process.Start());
        Task<string> output = process.StandardOutput.ReadToEndAsync();
        Task<string> errors = process.StandardError.ReadToEndAsync();
        using CancellationTokenSource limit = new(TimeSpan.FromMinutes(4));
        try
        {
            await process.WaitForExitAsync(limit.Token);
        }
        catch (OperationCanceledException)
        {
            process.Kill(entireProcessTree: true);
            throw;
        }

        Assert.True(process.ExitCode == 0, await errors);
        Assert.Contains("sent 2000000 records", await output, StringComparison.Ordinal);
        Assert.Contains("received 2000000 records", await output, StringComparison.Ordinal);
    }
}
