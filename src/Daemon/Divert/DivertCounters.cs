namespace XenLoop.Divert;

/// <summary>What the program counted for one destination since it is tracked. A super-packet counts as one packet.</summary>
/// <param name="Seen">Packets to this destination, diverted or not: the trigger for building a channel, and for dropping one.</param>
/// <param name="Diverted">Packets handed to the TAP.</param>
/// <param name="DivertedBytes">Bytes of these, with their Ethernet headers.</param>
internal readonly record struct DivertCounters(ulong Seen, ulong Diverted, ulong DivertedBytes);
