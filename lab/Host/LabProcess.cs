using System.Collections.Concurrent;
using System.ComponentModel;
using System.Diagnostics;
using System.Text;
using static Tmds.Linux.LibC;

namespace XenLoop.Lab;

/// <summary>A program that runs in a domain of the lab, and dies with the lab. Its output is kept.</summary>
internal sealed class LabProcess : IDisposable
{
    // The kernel ends a child when the *thread* that started it ends, so one thread that lives on starts them all.
    private static readonly BlockingCollection<Action> _starts = [];

    private readonly Process _process;
    private readonly StringBuilder _output = new();
    private int _disposed;

    static LabProcess() => new Thread(StartAll) { IsBackground = true, Name = "lab processes" }.Start();

    private LabProcess(Process process, Action<string>? onLine)
    {
        _process = process;
        Pid = process.Id;
        process.OutputDataReceived += (_, e) => Keep(e.Data, onLine);
        process.ErrorDataReceived += (_, e) => Keep(e.Data, onLine);
        process.BeginOutputReadLine();
        process.BeginErrorReadLine();
    }

    public int Pid { get; }

    public bool HasExited => _process.HasExited;

    /// <summary>After the end; 128 and the signal's number if a signal ended it.</summary>
    public int ExitCode => _process.ExitCode;

    /// <summary>What it has written to stdout and stderr so far.</summary>
    public string Output
    {
        get
        {
            lock (_output)
            {
                return _output.ToString();
            }
        }
    }

    /// <summary>Starts a program.</summary>
    /// <param name="onLine">Called with each line of output, if given.</param>
    /// <param name="environment">Variables to set.</param>
    /// <param name="command">The program and its arguments.</param>
    public static LabProcess Start(
        Action<string>? onLine, IEnumerable<KeyValuePair<string, string>> environment, params IEnumerable<string> command)
    {
        ProcessStartInfo info = new("setpriv", ["--pdeathsig", "KILL", .. command])
        {
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        foreach ((string name, string value) in environment)
        {
            info.Environment[name] = value;
        }

        TaskCompletionSource<LabProcess> started = new();
        _starts.Add(() =>
        {
            try
            {
                started.SetResult(new(Process.Start(info)!, onLine));
            }
            catch (Win32Exception e)
            {
                started.SetException(new InvalidOperationException($"Cannot start setpriv (package util-linux): {e.Message}"));
            }
        });
        return started.Task.GetAwaiter().GetResult();
    }

    /// <summary>Sends a signal: SIGKILL, SIGSTOP, SIGCONT, SIGTERM of Tmds.Linux.LibC. No error if it has ended.</summary>
    public void Signal(int signal)
    {
        if (!_process.HasExited)
        {
            _ = kill(Pid, signal);
        }
    }

    /// <summary>Waits for the end, and for all output.</summary>
    public Task WaitForExitAsync(CancellationToken cancellation = default) => _process.WaitForExitAsync(cancellation);

    /// <summary>Ends it at once.</summary>
    public void Dispose()
    {
        if (Interlocked.Exchange(ref _disposed, 1) == 0)
        {
            Signal(SIGKILL);

            // Not for ever: a grandchild may still hold the pipe of its output.
            _process.WaitForExit(TimeSpan.FromSeconds(5));
            _process.Dispose();
        }
    }

    private static void StartAll()
    {
        foreach (Action start in _starts.GetConsumingEnumerable())
        {
            start();
        }
    }

    private void Keep(string? line, Action<string>? onLine)
    {
        if (line is null)
        {
            return;
        }

        lock (_output)
        {
            _output.AppendLine(line);
        }

        onLine?.Invoke(line);
    }
}
