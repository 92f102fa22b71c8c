using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Text;

namespace XenLoop.Interop.Linux;

#pragma warning disable CS8981 // Structs keep their names of C.

/// <summary>struct nlmsghdr of linux/netlink.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct nlmsghdr
{
    public uint nlmsg_len;
    public ushort nlmsg_type;
    public ushort nlmsg_flags;
    public uint nlmsg_seq;
    public uint nlmsg_pid;
}

/// <summary>struct ifinfomsg of linux/rtnetlink.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct ifinfomsg
{
    public byte ifi_family;
    private readonly byte _pad;
    public ushort ifi_type;
    public int ifi_index;
    public uint ifi_flags;
    public uint ifi_change;
}

/// <summary>struct tcmsg of linux/rtnetlink.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct tcmsg
{
    public byte tcm_family;
    private readonly byte _pad1;
    private readonly ushort _pad2;
    public int tcm_ifindex;
    public uint tcm_handle;
    public uint tcm_parent;
    public uint tcm_info;
}

/// <summary>struct sockaddr_nl of linux/netlink.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal struct sockaddr_nl
{
    public ushort nl_family;
    private readonly ushort _pad;
    public uint nl_pid;
    public uint nl_groups;
}

/// <summary>Writes one netlink request into a buffer of the caller: a header, a fixed part, attributes.</summary>
internal ref struct NetlinkMessage
{
    private const int Alignment = 4;
    private const int AttributeHeader = 4;
    private const ushort NLA_F_NESTED = 0x8000;

    private readonly Span<byte> _buffer;
    private int _length;

    public NetlinkMessage(Span<byte> buffer, ushort type, ushort flags)
    {
        _buffer = buffer;
        _buffer.Clear();
        nlmsghdr header = new() { nlmsg_type = type, nlmsg_flags = flags };
        Append(in header);
    }

    public void Append<T>(in T value)
        where T : unmanaged
    {
        MemoryMarshal.Write(_buffer[_length..], in value);
        _length += Align(Unsafe.SizeOf<T>());
    }

    public void Attribute(ushort type, scoped ReadOnlySpan<byte> data)
    {
        BinaryPrimitives.WriteUInt16LittleEndian(_buffer[_length..], (ushort)(AttributeHeader + data.Length));
        BinaryPrimitives.WriteUInt16LittleEndian(_buffer[(_length + 2)..], type);
        data.CopyTo(_buffer[(_length + AttributeHeader)..]);
        _length += AttributeHeader + Align(data.Length);
    }

    public void Attribute<T>(ushort type, T value)
        where T : unmanaged =>
        Attribute(type, MemoryMarshal.AsBytes(new ReadOnlySpan<T>(in value)));

    /// <summary>A string with its closing zero.</summary>
    public void Attribute(ushort type, string text)
    {
        Span<byte> bytes = stackalloc byte[64];
        bytes.Clear();
        int length = Encoding.ASCII.GetBytes(text, bytes[..63]);
        Attribute(type, bytes[..(length + 1)]);
    }

    /// <summary>Opens an attribute that holds others.</summary>
    /// <returns>To be given to <see cref="End"/>.</returns>
    public int Begin(ushort type)
    {
        int start = _length;
        Attribute((ushort)(type | NLA_F_NESTED), []);
        return start;
    }

    public readonly void End(int start) =>
        BinaryPrimitives.WriteUInt16LittleEndian(_buffer[start..], (ushort)(_length - start));

    /// <summary>Fills in the length and the sequence number.</summary>
    public readonly ReadOnlySpan<byte> Finish(uint sequence)
    {
        ref nlmsghdr header = ref MemoryMarshal.AsRef<nlmsghdr>(_buffer);
        header.nlmsg_len = (uint)_length;
        header.nlmsg_seq = sequence;
        return _buffer[.._length];
    }

    internal static int Align(int length) => (length + Alignment - 1) & ~(Alignment - 1);
}

/// <summary>Walks the attributes of a message or of a nested attribute; stops at the first that does not fit.</summary>
internal ref struct NetlinkAttributes
{
    private const int AttributeHeader = 4;
    // NLA_F_NESTED and NLA_F_NET_BYTEORDER are no part of the type.
    private const ushort NLA_TYPE_MASK = 0x3fff;

    private ReadOnlySpan<byte> _rest;

    public NetlinkAttributes(ReadOnlySpan<byte> attributes)
    {
        _rest = attributes;
    }

    /// <summary>Of a message: its attributes, and what it has before them. Whatever a message or an attribute is too short for reads as zeros.</summary>
    /// <typeparam name="T">The message's fixed part.</typeparam>
    public static NetlinkAttributes Behind<T>(ReadOnlySpan<byte> message, out T head)
        where T : unmanaged
    {
        head = ReadPadded<T>(message);
        return new NetlinkAttributes(message[Math.Min(NetlinkMessage.Align(Unsafe.SizeOf<T>()), message.Length)..]);
    }

    public ushort Type { get; private set; }

    public ReadOnlySpan<byte> Data { get; private set; }

    /// <summary>The attribute as a number or as a struct.</summary>
    public readonly T Value<T>()
        where T : unmanaged => ReadPadded<T>(Data);

    /// <summary>The attribute as nftables writes numbers.</summary>
    public readonly uint BigEndian => BinaryPrimitives.ReverseEndianness(Value<uint>());

    public bool MoveNext()
    {
        if (_rest.Length < AttributeHeader)
        {
            return false;
        }
        int length = BinaryPrimitives.ReadUInt16LittleEndian(_rest);
        if (length < AttributeHeader || length > _rest.Length)
        {
            return false;
        }
        Type = (ushort)(BinaryPrimitives.ReadUInt16LittleEndian(_rest[2..]) & NLA_TYPE_MASK);
        Data = _rest[AttributeHeader..length];
        _rest = _rest[Math.Min(NetlinkMessage.Align(length), _rest.Length)..];
        return true;
    }

    /// <summary>The attribute as text, without the closing zero.</summary>
    public readonly string Text => Encoding.ASCII.GetString(Data.TrimEnd((byte)0));

    private static T ReadPadded<T>(ReadOnlySpan<byte> data)
        where T : unmanaged
    {
        T value = default;
        data[..Math.Min(Unsafe.SizeOf<T>(), data.Length)].CopyTo(MemoryMarshal.AsBytes(new Span<T>(ref value)));
        return value;
    }
}
