using System.Text.Json;
using XenLoop.Guest;
using XenLoop.Interop.Xen;
using XenLoop.Protocol;
using XenLoop.Service;
using static XenLoop.Tests.Fuzz.Target;

namespace XenLoop.Tests.Fuzz;

/// <summary>What a client says on the control socket: the answer is one JSON object, with an error or of the request's handler, which gets as many words as it takes.</summary>
internal sealed class ControlTarget : IStoreReader
{
    public static string[] Tokens { get; } =
        ["status", "reload", "quiesce", "resume", "disable", "enable", " ", "\n", "\r\n", "\t", "5", "0", "86400", "86401", "4294967296", "00:16:3e:00:00:02", "00:16:3e:00:00:03", "\"", "\\", "\0", "\u00ff"];

    private static readonly ControlSocket _socket = new(Path.Combine(Directory.CreateTempSubdirectory("xenloop-fuzz").FullName, "control.sock"));
    private readonly Introductions _introductions;
    private readonly DisabledPeers _disabled;
    private int _handled;

    public ControlTarget()
    {
        _introductions = new Introductions(this);
        _introductions.Note(StorePaths.OwnIntroductions);
        _ = _introductions.Read((_, _, _) => { });
        // A table without channels asks nothing of its context.
        _disabled = new DisabledPeers(_introductions, new ChannelTable(null!), [], TimeProvider.System);
        _disabled.Register(_socket);
        // Of the others, whose handlers take no words apart, what is at stake is that they get them.
        foreach (string usage in (string[])["status", "reload", "quiesce DOMID HOLDER", "resume DOMID"])
        {
            _socket.Register(usage, (json, arguments) =>
            {
                _handled++;
                Require(arguments.Length == usage.Split(' ').Length - 1, $"\"{usage}\" with {arguments.Length} words");
                foreach (string argument in arguments)
                {
                    Require(argument.Length > 0 && !argument.Contains(' ', StringComparison.Ordinal), $"the word \"{argument}\"");
                    json.WriteString($"argument{_handled++}", argument);
                }
            });
        }
    }

    public void Run(ReadOnlySpan<byte> input)
    {
        _handled = 0;
        using (JsonDocument answer = JsonDocument.Parse(_socket.Answer(input).ToArray()))
        {
            Require(answer.RootElement.ValueKind == JsonValueKind.Object, "no object");
            bool isError = answer.RootElement.TryGetProperty("error", out _);
            bool isDone = _handled > 0 || answer.RootElement.TryGetProperty("disabled", out _) || answer.RootElement.TryGetProperty("enabled", out _);
            Require(isError || isDone, "neither an error nor an answer");
        }

        if (_disabled.Contains(_introductions.Peers.First().Value.Mac))
        {
            _ = _socket.Answer("enable 5"u8);
        }
    }

    string? IStoreReader.Read(string path) => path switch
    {
        "xenloop/0" => "00:16:3e:00:00:01",
        "xenloop/0/5-0" => "00:16:3e:00:00:02 1 1",
        _ => null,
    };

    string[] IStoreReader.List(string path) => path switch
    {
        "xenloop" => ["0"],
        "xenloop/0" => ["5-0"],
        _ => [],
    };
}
