namespace XenLoop.Lab;

/// <summary>
/// Sees every request of a domain's programs to <see cref="XenStoreServer"/> or <see cref="Broker"/> twice: before it is
/// carried out, and when it has been, before it is answered. These are the steps of a daemon that others can see.
/// </summary>
/// <param name="domid">Who asks.</param>
/// <param name="request">Operation and arguments.</param>
/// <param name="done">It has been carried out, or refused.</param>
/// <returns>False when who asked is dead: nothing more is done for it, and what it holds ends.</returns>
internal delegate bool RequestObserver(ushort domid, string request, bool done);

/// <summary>An observer has ended the connection.</summary>
internal sealed class RequestLostException : Exception;
