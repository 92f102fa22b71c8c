using System.Runtime.CompilerServices;
using System.Text;
using Tmds.Linux;
using XenLoop.Interop;
using XenLoop.Interop.Linux;
using static Tmds.Linux.LibC;

namespace XenLoop.Lab;

/// <summary>
/// A unix(7) socket of type SOCK_SEQPACKET: whole messages, in order, which can carry descriptors (SCM_RIGHTS). Calls block.
/// </summary>
internal sealed unsafe class UnixSocket : IDisposable
{
    /// <summary>Descriptors that one message can carry here.</summary>
    public const int DescriptorsMax = 2;

    private readonly SafeFd _handle;
    private readonly string _name;

    private UnixSocket(SafeFd handle, string name)
    {
        _handle = handle;
        _name = name;
    }

    public static UnixSocket Connect(string path) => Create("connect", path, connect);

    public static UnixSocket Listen(string path)
    {
        UnixSocket socket = Create("bind", path, bind);
        if (listen(socket.FileDescriptor, 16) < 0)
        {
            int error = errno;
            socket.Dispose();
            throw new NativeException("listen", path, error);
        }

        return socket;
    }

    /// <summary>Waits for a client; null after <see cref="Shutdown"/>.</summary>
    public UnixSocket? Accept()
    {
        int fd;
        do
        {
            fd = accept4(FileDescriptor, null, null, SOCK_CLOEXEC);
        }
        while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));

        return fd >= 0 ? new UnixSocket(new SafeFd(fd), _name)
            : errno == EINVAL ? null
            : throw new NativeException("accept4", _name, errno);
    }

    /// <summary>Sends one message, and with it the right to use some descriptors.</summary>
    public void Send(ReadOnlySpan<byte> message, params ReadOnlySpan<SafeFd> descriptors)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan(descriptors.Length, DescriptorsMax);
        byte* control = stackalloc byte[CMSG_SPACE(DescriptorsMax * sizeof(int))];
        fixed (byte* data = message)
        {
            iovec part = new() { iov_base = data, iov_len = message.Length };
            msghdr header = new() { msg_iov = &part, msg_iovlen = 1 };
            if (descriptors.Length > 0)
            {
                header.msg_control = control;
                header.msg_controllen = CMSG_SPACE(descriptors.Length * sizeof(int));
                cmsghdr* rights = CMSG_FIRSTHDR(&header);
                rights->cmsg_level = SOL_SOCKET;
                rights->cmsg_type = SCM_RIGHTS;
                // Not Tmds.LibC's CMSG_LEN of the length: it rounds up, and the padding after an odd descriptor would be another one, 0.
                rights->cmsg_len = CMSG_LEN(0) + (descriptors.Length * sizeof(int));
                for (int i = 0; i < descriptors.Length; i++)
                {
                    ((int*)CMSG_DATA(rights))[i] = descriptors[i].Number;
                }
            }

            while ((long)sendmsg(FileDescriptor, &header, MSG_NOSIGNAL) < 0)
            {
                if (errno != EINTR)
                {
                    throw new NativeException("sendmsg", _name, errno);
                }
            }
        }
    }

    /// <summary>Waits for one message and returns its length; 0 when the other side has closed.</summary>
    /// <param name="buffer">Where the message goes; a longer one is an error.</param>
    /// <param name="descriptors">Room for <see cref="DescriptorsMax"/>; the caller closes what arrives.</param>
    /// <param name="descriptorCount">How many descriptors arrived.</param>
    public int Receive(Span<byte> buffer, Span<SafeFd> descriptors, out int descriptorCount)
    {
        int space = CMSG_SPACE(DescriptorsMax * sizeof(int));
        byte* control = stackalloc byte[space];
        descriptorCount = 0;
        fixed (byte* data = buffer)
        {
            iovec part = new() { iov_base = data, iov_len = buffer.Length };
            msghdr header = new() { msg_iov = &part, msg_iovlen = 1, msg_control = control, msg_controllen = space };
            long length;
            while ((length = recvmsg(FileDescriptor, &header, MSG_CMSG_CLOEXEC)) < 0)
            {
                if (errno == ECONNRESET)
                {
                    return 0;
                }

                if (errno != EINTR)
                {
                    throw new NativeException("recvmsg", _name, errno);
                }
            }

            for (cmsghdr* rights = CMSG_FIRSTHDR(&header); rights is not null; rights = CMSG_NXTHDR(&header, rights))
            {
                if (rights->cmsg_level != SOL_SOCKET || rights->cmsg_type != SCM_RIGHTS)
                {
                    continue;
                }

                int count = ((int)rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (int i = 0; i < count; i++)
                {
                    SafeFd handle = new(((int*)CMSG_DATA(rights))[i]);
                    descriptors[descriptorCount++] = handle;
                }
            }

            return (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) == 0
                ? (int)length
                : throw new NativeException("recvmsg", _name, EMSGSIZE);
        }
    }

    /// <summary>Wakes whoever waits in <see cref="Accept"/> or <see cref="Receive"/>, here and at the other side, for good.</summary>
    public void Shutdown()
    {
        // ENOTCONN (the other side was faster) leaves nothing to be done.
        _ = shutdown(FileDescriptor, SHUT_RDWR);
    }

    public void Dispose() => _handle.Dispose();

    private int FileDescriptor => _handle.Number;

    private static UnixSocket Create(string call, string path, AddressCall use)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(path);
        sockaddr_un address = new() { sun_family = AF_UNIX };
        if (bytes.Length >= sockaddr_un.sun_path_length)
        {
            throw new NativeException(call, path, ENAMETOOLONG);
        }

        bytes.CopyTo(new Span<byte>(address.sun_path, sockaddr_un.sun_path_length));
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
        {
            throw new NativeException("socket", path, errno);
        }

        UnixSocket result = new(new SafeFd(fd), path);
        if (use(fd, (sockaddr*)&address, (socklen_t)Unsafe.SizeOf<sockaddr_un>()) < 0)
        {
            int error = errno;
            result.Dispose();
            throw new NativeException(call, path, error);
        }

        return result;
    }

    private delegate int AddressCall(int fd, sockaddr* address, socklen_t length);
}
