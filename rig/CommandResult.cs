using System.Text;

namespace XenLoop.Rig;

/// <summary>What became of a script that ran in Dom0 or a guest.</summary>
public sealed class CommandResult
{
    internal CommandResult(int exitCode, byte[] outputBytes, byte[] errorBytes)
    {
        ExitCode = exitCode;
        OutputBytes = outputBytes;
        Error = Encoding.UTF8.GetString(errorBytes);
    }

    /// <summary>The exit code; 128 and the signal's number if the script was killed.</summary>
    public int ExitCode { get; }

    /// <summary>Standard output, byte for byte.</summary>
    public ReadOnlyMemory<byte> OutputBytes { get; }

    /// <summary>Standard output as text.</summary>
    public string Output => Encoding.UTF8.GetString(OutputBytes.Span);

    /// <summary>Standard error as text.</summary>
    public string Error { get; }

    /// <summary>This result if the exit code is zero.</summary>
    /// <exception cref="CommandFailedException">The exit code is not zero.</exception>
    public CommandResult Check() => ExitCode == 0 ? this : throw new CommandFailedException(this);

    /// <inheritdoc/>
    public override string ToString() => $"exit code {ExitCode}\n{Output}{Error}";
}

/// <summary>A script in Dom0 or a guest ended with an exit code other than zero.</summary>
public sealed class CommandFailedException : Exception
{
    internal CommandFailedException(CommandResult result)
        : base($"A script failed: {result}") => Result = result;

    /// <summary>What the script left.</summary>
    public CommandResult Result { get; }
}
