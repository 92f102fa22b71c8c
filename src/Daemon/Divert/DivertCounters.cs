namespace XenLoop.Divert;

/// <summary>What the program counted for one destination since it is tracked. A super-packet counts as one packet.</summary>
/// <param name="Seen">Packets to this destination, diverted or not.</param>
/// <param name="Diverted">Packets handed to the TAP.</param>
internal readonly record struct DivertCounters(ulong Seen, ulong Diverted);
