using System.Diagnostics;
using System.Globalization;
using Tmds.Linux;
using XenLoop.Ring;

namespace XenLoop.Tests.RingStress;

/// <summary>
/// One ring between two processes, as between two guests: memory that both map, an event each way, both sides asleep
/// whenever there is nothing to do and pausing at random. Every byte is compared. Waits are bounded: a wait that runs
/// out although the other side is alive is a lost wake-up, and the run fails with the words of the ring.
/// <code>XenLoop.Tests.RingStress [--records N] [--ring-kib N] [--seed N]</code>
/// </summary>
internal static unsafe class Program
{
    // The longest pause of the other side is some milliseconds; what remains is for a busy machine.
    private const int LostAfterMilliseconds = 10_000;

    private static int Main(string[] args)
    {
        Dictionary<string, uint> options = new() { ["--records"] = 1_000_000, ["--ring-kib"] = 128, ["--seed"] = 1 };
        if (args.Length == 7 && args[0] == "receive")
        {
            uint[] values = [.. args[1..].Select(arg => uint.Parse(arg, CultureInfo.InvariantCulture))];
            return Guard(() => Receive(new Side((int)values[0], (int)values[1], (int)values[2], values[3]), values[4], (int)values[5]));
        }

        for (int i = 0; i < args.Length; i += 2)
        {
            if (!options.ContainsKey(args[i]) || i + 1 == args.Length)
            {
                Console.Error.WriteLine("usage: XenLoop.Tests.RingStress [--records N] [--ring-kib N] [--seed N]");
                return 2;
            }

            options[args[i]] = uint.Parse(args[i + 1], CultureInfo.InvariantCulture);
        }

        return Guard(() => Run(options["--records"], options["--ring-kib"] * 1024, options["--seed"]));
    }

    private static int Guard(Func<string> body)
    {
        try
        {
            Console.WriteLine(body());
            return 0;
        }
        catch (Exception e) when (e is StressException or PeerViolationException)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }

    private static string Run(uint records, uint ringBytes, uint seed)
    {
        // No close-on-exec on any of the three: the receiver inherits them, and nothing is left behind in a file system.
        int memory;
        fixed (byte* name = "ring"u8)
        {
            memory = LibC.memfd_create(name, 0);
        }

        int toReceiver = LibC.eventfd(0, LibC.EFD_NONBLOCK);
        int toSender = LibC.eventfd(0, LibC.EFD_NONBLOCK);
        if (memory < 0 || toReceiver < 0 || toSender < 0 || LibC.ftruncate(memory, ControlPage.Size + ringBytes) != 0)
        {
            throw new StressException("no memory or events to share");
        }

        string[] arguments = ["receive", .. new uint[] { (uint)memory, (uint)toReceiver, (uint)toSender, ringBytes, records, seed }
            .Select(value => value.ToString(CultureInfo.InvariantCulture))];
        using Process receiver = Process.Start(Environment.ProcessPath!,
            Path.GetFileNameWithoutExtension(Environment.ProcessPath) == "dotnet" ? [typeof(Program).Assembly.Location, .. arguments] : arguments);
        try
        {
            string report = Send(new Side(memory, toSender, toReceiver, ringBytes), records, (int)seed);
            if (!receiver.WaitForExit(LostAfterMilliseconds) || receiver.ExitCode != 0)
            {
                throw new StressException("the receiver failed");
            }

            return report;
        }
        finally
        {
            receiver.Kill();
        }
    }

    private static string Send(Side side, uint records, int seed)
    {
        RingProducer producer = new(side.Data, side.RingBytes, &side.Control->Producer0, &side.Control->Consumer0);
        Random lengths = new(seed);
        Random random = new(seed + 1);
        ulong bytes = 0;
        for (uint number = 0; number < records;)
        {
            for (int burst = random.Next(1, 40); burst > 0 && number < records; burst--)
            {
                if (!producer.TryReserve(out RingSegments room))
                {
                    break;
                }

                uint length = RandomLength(lengths);
                RingContent.Fill(room, number, length);
                producer.Commit(length);
                bytes += length;
                number++;
            }

            side.NotifyIf(producer.Publish());
            side.PauseAtRandom(random);
            // Now and then the ring is left to run empty: the receiver goes to sleep, and this side with it.
            if (random.Next(64) == 0)
            {
                while (producer.ArmEmpty())
                {
                    side.Wait("an empty ring");
                }
            }

            while (!producer.TryReserve(out _) && producer.ArmSpace())
            {
                side.Wait("space");
            }
        }

        while (producer.ArmEmpty())
        {
            side.Wait("an empty ring");
        }

        return $"sent {records} records, {bytes} bytes; {side.Report}";
    }

    private static string Receive(Side side, uint records, int seed)
    {
        RingConsumer consumer = new(side.Data, side.RingBytes, &side.Control->Consumer0, &side.Control->Producer0);
        Random lengths = new(seed);
        Random random = new(seed + 2);
        for (uint number = 0; number < records;)
        {
            for (int burst = random.Next(1, 60); burst > 0 && consumer.TryPeek(out RingSegments payload); burst--)
            {
                if (!RingContent.Matches(payload, number, RandomLength(lengths)))
                {
                    throw new StressException($"record {number} of {payload.Length} bytes is not what was sent");
                }

                consumer.Advance();
                number++;
            }

            side.NotifyIf(consumer.Publish());
            side.PauseAtRandom(random);
            while (number < records && consumer.ArmData())
            {
                side.Wait("data");
            }

            consumer.Disarm();
        }

        if (consumer.TryPeek(out _))
        {
            throw new StressException("more records than were sent");
        }

        return $"received {records} records; {side.Report}";
    }

    /// <summary>Mostly small, now and then of any size: a run is to see many records and every kind of wrap.</summary>
    private static uint RandomLength(Random random) => random.Next(16) switch
    {
        0 => (uint)random.Next(1, (int)RingRecord.MaxPayload + 1),
        < 8 => (uint)random.Next(1, 1600),
        _ => (uint)random.Next(1, 100),
    };

    /// <summary>What one process has of the channel.</summary>
    private sealed class Side
    {
        private readonly int _own;
        private readonly int _peer;
        private int _sleeps;
        private int _notifications;

        public Side(int memory, int own, int peer, uint ringBytes)
        {
            void* mapped = LibC.mmap(null, ControlPage.Size + ringBytes, LibC.PROT_READ | LibC.PROT_WRITE, LibC.MAP_SHARED, memory, 0);
            if (mapped == (void*)-1)
            {
                throw new StressException("cannot map the ring");
            }

            Control = (ControlPage*)mapped;
            Data = (byte*)mapped + ControlPage.Size;
            RingBytes = ringBytes;
            _own = own;
            _peer = peer;
        }

        public ControlPage* Control { get; }

        public byte* Data { get; }

        public uint RingBytes { get; }

        public string Report => $"{_sleeps} sleeps, {_notifications} notifications";

        public void NotifyIf(bool due)
        {
            ulong one = 1;
            if (due && LibC.write(_peer, &one, sizeof(ulong)) != sizeof(ulong))
            {
                throw new StressException("cannot notify");
            }

            _notifications += due ? 1 : 0;
        }

        public void Wait(string what)
        {
            _sleeps++;
            pollfd poll = new() { fd = _own, events = LibC.POLLIN };
            if (LibC.poll(&poll, 1, LostAfterMilliseconds) == 0)
            {
                throw new StressException($"lost wake-up: waited {LostAfterMilliseconds} ms for {what}; "
                    + $"producer {Words(&Control->Producer0)}, consumer {Words(&Control->Consumer0)}");
            }

            ulong count;
            _ = LibC.read(_own, &count, sizeof(ulong));
        }

        /// <summary>Mostly none, else some microseconds, or a real sleep: what one side does falls on every moment of the other.</summary>
        public void PauseAtRandom(Random random)
        {
            int kind = random.Next(256);
            if (kind == 0)
            {
                Thread.Sleep(random.Next(3));
            }
            else if (kind < 128)
            {
                Thread.SpinWait(random.Next(kind));
            }
        }

        private static string Words(RingLine* line) => $"{line->Index:x} wakes at {line->WakeAt:x}";
    }

    private sealed class StressException(string message) : Exception(message);
}
