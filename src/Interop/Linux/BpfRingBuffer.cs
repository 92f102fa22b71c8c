using System.Runtime.CompilerServices;
using Tmds.Linux;

namespace XenLoop.Interop.Linux;

/// <summary>
/// A queue from BPF programs to this process (BPF_MAP_TYPE_RINGBUF, Linux 5.8): the descriptor wakes an epoll when the
/// first record comes. A full queue refuses records; programs see that. One reader.
/// </summary>
internal sealed unsafe class BpfRingBuffer : IDisposable
{
    // The two highest bits of a record's length word (linux/bpf.h).
    private const uint BPF_RINGBUF_BUSY_BIT = 1u << 31;
    private const uint BPF_RINGBUF_DISCARD_BIT = 1u << 30;
    private const int RecordHeader = 8;

    private readonly int _bytes;
    private readonly MappedMemory _consumer;
    private readonly MappedMemory _producer;

    /// <param name="name">At most 15 characters; shown by bpftool.</param>
    /// <param name="bytes">Room for records, each with a header of eight bytes; a power of two, at least a page.</param>
    /// <exception cref="NativeException">The kernel is older than 5.8, or the process may not use bpf(2).</exception>
    public BpfRingBuffer(string name, int bytes)
    {
        _bytes = bytes;
        Map = Bpf.CreateRingBuffer(name, bytes);
        try
        {
            // The kernel lays out: the consumer's position, the producer's, the records twice in a row, so that none is split.
            int page = Environment.SystemPageSize;
            _consumer = MappedMemory.Map(Map.Number, page, name);
            _producer = MappedMemory.MapReadOnly(Map.Number, page + (2 * bytes), name, offset: page);
        }
        catch
        {
            Dispose();
            throw;
        }
    }

    /// <summary>For programs that write to it.</summary>
    public SafeFd Map { get; }

    /// <summary>Readable while records wait; then call <see cref="TryTake"/> until it returns false.</summary>
    public int FileDescriptor => Map.Number;

    /// <summary>Takes the oldest record. False when none waits.</summary>
    /// <typeparam name="T">What the programs write; other lengths are skipped.</typeparam>
    public bool TryTake<T>(out T record)
        where T : unmanaged
    {
        ulong* position = (ulong*)_consumer.Address;
        while (true)
        {
            // Acquire: the producer's position is written after the record's header.
            ulong produced = Volatile.Read(ref *(ulong*)_producer.Address);
            ulong consumed = *position;
            if (consumed == produced)
            {
                record = default;
                return false;
            }

            byte* header = _producer.Address + Environment.SystemPageSize + (consumed & (ulong)(_bytes - 1));
            // Acquire: the kernel clears the busy bit after it has written the record.
            uint word = Volatile.Read(ref *(uint*)header);
            if ((word & BPF_RINGBUF_BUSY_BIT) != 0)
            {
                record = default;
                return false;
            }

            int length = (int)(word & ~BPF_RINGBUF_DISCARD_BIT);
            bool taken = (word & BPF_RINGBUF_DISCARD_BIT) == 0 && length == sizeof(T);
            record = taken ? Unsafe.ReadUnaligned<T>(header + RecordHeader) : default;
            // Release: the kernel may overwrite what lies before this position. Records are padded to eight bytes.
            Volatile.Write(ref *position, consumed + (ulong)((RecordHeader + length + 7) & ~7));
            if (taken)
            {
                return true;
            }
        }
    }

    public void Dispose()
    {
        _consumer?.Dispose();
        _producer?.Dispose();
        Map.Dispose();
    }
}
