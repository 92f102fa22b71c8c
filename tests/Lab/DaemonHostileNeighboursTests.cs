using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using XenLoop.Lab;
using Xunit;
using Xunit.Abstractions;

namespace XenLoop.Tests.Lab;

/// <summary>A guest all of whose neighbours are hostile is suspended in time: what they do not take is lost, and nothing else.</summary>
[Collection(DaemonTests.Name)]
public sealed class DaemonHostileNeighboursTests(ITestOutputHelper output) : IDisposable
{
    private const int Neighbours = 64;
    private const int MostMilliseconds = 1500;

    // The flood is made by this process, which is XenStore and the hypervisor as well, on the same few processors.
    private const int MostMillisecondsFlooded = 2500;

    private readonly string _file = Path.GetTempFileName();

    public void Dispose() => File.Delete(_file);

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task Sixty_four_hostile_neighbours_delay_a_quiesce_by_a_second_and_a_half_at_most(bool flood)
    {
        await File.WriteAllTextAsync(_file, "[guest]\nmax-channels = 100\n");
        await using DaemonLab lab = await DaemonLab.StartAsync();
        LabGuest honest = await lab.Host.AddGuestAsync("honest");
        lab.Start(honest, "--ring-kib", "128", "--config", _file);
        List<HandPeer> peers = [];
        try
        {
            byte[] datagram = new byte[1400];
            using Socket socket = Namespaces.Run(honest, () => new Socket(AddressFamily.InterNetwork, SocketType.Dgram, ProtocolType.Udp));
            for (int i = 0; i < Neighbours; i++)
            {
                LabGuest guest = await lab.Host.AddGuestAsync($"n{i}");
                peers.Add(await HandPeer.StartAsync(lab, guest, honest));
                await peers[i].ConnectAsync();
                // More than the ring holds.
                for (int sent = 0; sent < 150; sent++)
                {
                    socket.SendTo(datagram, new IPEndPoint(guest.IPv4, 9));
                }
            }

            using CancellationTokenSource end = new();
            Task flooding = Task.Factory.StartNew(() => Flood(end.Token), CancellationToken.None, TaskCreationOptions.LongRunning, TaskScheduler.Default);
            Stopwatch watch = Stopwatch.StartNew();
            (int exit, string answer) = await lab.Dom0.RunAsync($"{DaemonLab.Command} quiesce {DaemonLab.Socket} {honest.Name}");
            long milliseconds = watch.ElapsedMilliseconds;
            output.WriteLine($"quiesced in {milliseconds} ms{(flood ? ", while all rings were kept full" : "")}");
            await end.CancelAsync();
            await flooding;
            Assert.Equal((0, "quiesced\n"), (exit, answer));
            Assert.True(milliseconds <= (flood ? MostMillisecondsFlooded : MostMilliseconds), $"{milliseconds} ms\n{lab.Messages()}");
            BrokerUsage usage = lab.Host.Broker.Count(honest.Domid);
            Assert.Equal((0, 0, 0), (usage.PagesGranted, usage.PagesMapped, usage.Ports));
        }
        finally
        {
            peers.ForEach(p => p.Dispose());
        }

        void Flood(CancellationToken end)
        {
            while (flood && !end.IsCancellationRequested)
            {
                foreach (HandPeer peer in peers)
                {
                    try
                    {
                        peer.Fill(peer.Datagram());
                        peer.Notify();
                    }
                    catch (Ring.PeerViolationException)
                    {
                        // The pages are wiped already.
                    }
                }

                // XenStore is a part of this process, and has a right to a processor.
                Thread.Sleep(3);
            }
        }
    }
}
