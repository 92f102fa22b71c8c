namespace XenLoop.Command;

/// <summary>With what the command ends (xenloop(1), "EXIT STATUS"). Scripts go by these: they stay what they are.</summary>
internal static class ExitCode
{
    public const int Fine = 0;

    /// <summary>Something is wrong that no other code is for; "doctor" has found something.</summary>
    public const int Failed = 1;

    /// <summary>The command line makes no sense.</summary>
    public const int Usage = 2;

    /// <summary>"quiesce": the guest has not answered, and can be saved all the same. The save helper and the hooks of XAPI go by this and the next.</summary>
    public const int NotAnswered = 3;

    /// <summary>"quiesce": the guest has not answered, and must not be saved.</summary>
    public const int MustNotBeSaved = 4;

    /// <summary>No daemon answers.</summary>
    public const int NoDaemon = 5;

    /// <summary>The daemon does not do what it is asked; it has said why.</summary>
    public const int Refused = 6;

    /// <summary>Only root may ask.</summary>
    public const int NotPermitted = 7;

    /// <summary>What is to be printed cannot be written.</summary>
    public const int Output = 8;
}

/// <summary>Ends the command.</summary>
/// <param name="exitCode">One of <see cref="ExitCode"/>.</param>
/// <param name="message">For standard error: what is wrong and what to do.</param>
internal sealed class CommandException(int exitCode, string message) : Exception(message)
{
    public int Code { get; } = exitCode;
}
