using System.Runtime.InteropServices;

namespace XenLoop.Interop.Linux;

/// <summary>The registers of a BPF program: R0 returns, R1 to R5 are arguments and lost in calls, R6 to R9 survive, R10 is the frame.</summary>
internal enum BpfRegister : byte
{
    R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10,
}

/// <summary>Width of a load or store, as encoded in the opcode.</summary>
internal enum BpfSize : byte
{
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

/// <summary>Functions of the kernel that a program can call (linux/bpf.h), those that are used here.</summary>
internal enum BpfHelper
{
    map_lookup_elem = 1,
    ktime_get_ns = 5,
    redirect = 23,
    skb_load_bytes = 26,
    skb_change_type = 32,
    ringbuf_output = 130,
}

/// <summary>struct bpf_insn of linux/bpf.h.</summary>
[StructLayout(LayoutKind.Sequential)]
internal readonly record struct BpfInstruction(byte Code, byte Registers, short Offset, int Immediate);

/// <summary>
/// Writes a BPF program, one method per instruction, with names for the places that are jumped to.
/// All jumps go forward, as the verifier of every kernel allows.
/// </summary>
internal sealed class BpfProgram
{
    private const byte BPF_LDX = 0x01, BPF_ST = 0x02, BPF_STX = 0x03, BPF_JMP = 0x05, BPF_JMP32 = 0x06, BPF_ALU64 = 0x07;
    private const byte BPF_MEM = 0x60, BPF_ATOMIC = 0xc0, BPF_LD_IMM64 = 0x18;
    private const byte BPF_K = 0x00, BPF_X = 0x08;
    private const byte BPF_JA = 0x00, BPF_ADD = 0x00, BPF_SUB = 0x10, BPF_AND = 0x50, BPF_MOV = 0xb0, BPF_ARSH = 0xc0;
    private const byte BPF_JEQ = 0x10, BPF_JGT = 0x20, BPF_JNE = 0x50, BPF_JSGT = 0x60, BPF_CALL = 0x80, BPF_EXIT = 0x90;
    private const byte BPF_PSEUDO_MAP_FD = 1;

    private readonly List<BpfInstruction> _instructions = [];
    private readonly Dictionary<string, int> _labels = [];
    private readonly List<(int Instruction, string Label)> _jumps = [];

    public int Count => _instructions.Count;

    /// <summary>to = *(size*)(from + offset)</summary>
    public BpfProgram Load(BpfSize size, BpfRegister to, BpfRegister from, int offset) =>
        Add((byte)(BPF_LDX | BPF_MEM | (byte)size), to, from, offset, 0);

    /// <summary>*(size*)(to + offset) = from</summary>
    public BpfProgram Store(BpfSize size, BpfRegister to, int offset, BpfRegister from) =>
        Add((byte)(BPF_STX | BPF_MEM | (byte)size), to, from, offset, 0);

    /// <summary>*(size*)(to + offset) = value</summary>
    public BpfProgram Store(BpfSize size, BpfRegister to, int offset, int value) =>
        Add((byte)(BPF_ST | BPF_MEM | (byte)size), to, 0, offset, value);

    /// <summary>lock *(u64*)(to + offset) += from</summary>
    public BpfProgram AtomicAdd(BpfRegister to, int offset, BpfRegister from) =>
        Add(BPF_STX | BPF_ATOMIC | (byte)BpfSize.Double, to, from, offset, BPF_ADD);

    public BpfProgram Move(BpfRegister to, BpfRegister from) => Add(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);

    public BpfProgram Move(BpfRegister to, int value) => Add(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);

    public BpfProgram Add(BpfRegister to, int value) => Add(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value);

    public BpfProgram Subtract(BpfRegister to, BpfRegister from) => Add(BPF_ALU64 | BPF_SUB | BPF_X, to, from, 0, 0);

    public BpfProgram And(BpfRegister to, int value) => Add(BPF_ALU64 | BPF_AND | BPF_K, to, 0, 0, value);

    /// <summary>Signed.</summary>
    public BpfProgram ShiftRight(BpfRegister to, int bits) => Add(BPF_ALU64 | BPF_ARSH | BPF_K, to, 0, 0, bits);

    /// <summary>to = the map behind a descriptor. Takes the room of two instructions.</summary>
    public BpfProgram LoadMap(BpfRegister to, int descriptor)
    {
        Add(BPF_LD_IMM64, to, (BpfRegister)BPF_PSEUDO_MAP_FD, 0, descriptor);
        return Add(0, 0, 0, 0, 0);
    }

    public BpfProgram Jump(string label) => Jump(BPF_JMP | BPF_JA | BPF_K, 0, 0, 0, label);

    public BpfProgram JumpIfEqual(BpfRegister left, int right, string label) => Jump(BPF_JMP | BPF_JEQ | BPF_K, left, 0, right, label);

    public BpfProgram JumpIfEqual(BpfRegister left, BpfRegister right, string label) => Jump(BPF_JMP | BPF_JEQ | BPF_X, left, right, 0, label);

    public BpfProgram JumpIfNotEqual(BpfRegister left, int right, string label) => Jump(BPF_JMP | BPF_JNE | BPF_K, left, 0, right, label);

    public BpfProgram JumpIfNotEqual(BpfRegister left, BpfRegister right, string label) => Jump(BPF_JMP | BPF_JNE | BPF_X, left, right, 0, label);

    /// <summary>Compares the lower 32 bits only.</summary>
    public BpfProgram JumpIfNotEqual32(BpfRegister left, int right, string label) => Jump(BPF_JMP32 | BPF_JNE | BPF_K, left, 0, right, label);

    public BpfProgram JumpIfGreaterSigned(BpfRegister left, int right, string label) => Jump(BPF_JMP | BPF_JSGT | BPF_K, left, 0, right, label);

    /// <summary>Unsigned.</summary>
    public BpfProgram JumpIfGreater(BpfRegister left, BpfRegister right, string label) => Jump(BPF_JMP | BPF_JGT | BPF_X, left, right, 0, label);

    public BpfProgram Call(BpfHelper helper) => Add(BPF_JMP | BPF_CALL, 0, 0, 0, (int)helper);

    public BpfProgram Exit() => Add(BPF_JMP | BPF_EXIT, 0, 0, 0, 0);

    /// <summary>The next instruction is the one that jumps to <paramref name="name"/> reach.</summary>
    public BpfProgram Label(string name)
    {
        _labels.Add(name, _instructions.Count);
        return this;
    }

    /// <summary>The finished program, jumps resolved.</summary>
    public BpfInstruction[] ToArray()
    {
        BpfInstruction[] instructions = [.. _instructions];
        foreach ((int instruction, string label) in _jumps)
        {
            short distance = checked((short)(_labels[label] - instruction - 1));
            instructions[instruction] = instructions[instruction] with { Offset = distance };
        }
        return instructions;
    }

    private BpfProgram Jump(byte code, BpfRegister left, BpfRegister right, int immediate, string label)
    {
        _jumps.Add((_instructions.Count, label));
        return Add(code, left, right, 0, immediate);
    }

    private BpfProgram Add(byte code, BpfRegister destination, BpfRegister source, int offset, int immediate)
    {
        // Destination in the lower half of the byte: so on every little-endian machine.
        byte registers = (byte)((byte)destination | ((byte)source << 4));
        _instructions.Add(new BpfInstruction(code, registers, checked((short)offset), immediate));
        return this;
    }
}
