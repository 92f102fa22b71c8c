/*
 * A channel's wake-up protocol, for Spin: two sides, each with its data loop (src/Daemon/DataPath) and its control thread
 * (src/Daemon/Guest/Channels), two rings (src/Daemon/Ring), an event channel. Names are those of the code; what bears the name of a
 * method there does what that method does. tests/model/check runs it.
 *
 * Memory is x86-TSO's: a store waits in its processor's buffer, first in, first out, for as long as the checker likes, while later loads go
 * ahead; a fence waits until the buffer is empty. Events and words in XenStore leave in order with the stores, and fence nothing. A step
 * has one look at the peer's words at most; what else a side does in it, with its own words and into its buffer, nobody sees meanwhile.
 *
 * Records have no content: that they are whole when their index is seen is the order of stores (RingLitmusTests). Indices count records,
 * and come round soon. Time is not counted: a sleep that is bounded may end at any moment, and a peer that leaves something in its
 * ring may at any look have done so for too long. Packets come as they like and may stop coming at any point: what is wrong
 * shows when nothing can move any more, in Monitor, for then nothing else wakes who should have been woken.
 *
 * -DN=        records that fit into a ring: 1, 2 or 4
 * -DBURST=    records that one Pump moves in each direction
 * -DONE_WAY=  the side that sends, while the other receives; else both do both
 * -DCOARSE    nobody spins, and an event that is owed is paid when there is nothing more to do
 * -DPACKETS=  so many packets of each side; without it there may be any number
 * -DSTALLS    sleeps are bounded while a peer has not taken everything, and a peer may be given up; without it no sleep is bounded
 * -DCLOSE     a close may be ordered on either side at any time
 * -DCRASH     the daemon of side 1 may die at any time
 * -DSTUCK     it may stand still for ever at any time
 * -DHOSTILE   side 1 is an enemy: each look at its words, in memory or in XenStore, may find anything, and its events come at will
 * -DENDS      what is claimed is that a close that is ordered ends
 * The mutants, each with something that is missing or in the wrong place, are named where they are made.
 */
#ifndef N
#define N 2
#endif
#ifndef BURST
#define BURST N
#endif
#define MASK (4 * N - 1)
#define MINUS(a, b) (((a) - (b)) & MASK)
#define PLUS(a, b) (((a) + (b)) & MASK)
#define NOWHERE (4 * N)
#define HALF (N == 1 -> 1 : N / 2)
#define PEER (1 - s)

#define LISTENER 0
#define CONNECTOR 1

#if defined(HOSTILE) || defined(STUCK)
#define STALLS
#define TIMERS
#endif

#ifdef ONE_WAY
#define SENDS (s == ONE_WAY)
#define RECEIVES (s != ONE_WAY)
#else
#define SENDS true
#define RECEIVES true
#endif

/* What waits in the store buffers, CAPACITY each, and what it carries. */
#define CAPACITY 3
mtype = { P_INDEX, P_WAKE, P_STALE, C_INDEX, C_WAKE, EVENT, SAY, DONE, UNMAP };
mtype what[2 * CAPACITY];
byte value[2 * CAPACITY];
byte held[2];

/* The control page, each word by the side that writes it. */
byte pIndex[2], pWake[2], pStale[2], cIndex[2], cWake[2];
bit alive[2] = 1;

/* The event channel: pending, until acknowledged. The connector's bind raises one at once. */
bit pending[2];

/* XenStore: what each side's node says. */
#define CONNECTED 0
#define CLOSING 1
#define CLOSED 2
byte said[2];

/* A TAP: frames in its queue, the edge that epoll reports, and whether the divert lets more in. */
byte queued[2];
bit edge[2], open[2] = 1;

/* RingProducer, RingConsumer, and what of ChannelPath is looked at by others. */
byte tIndex[2], tConsumed[2];
byte rIndex[2], rPublished[2], rProduced[2];
byte rOld[2] = NOWHERE, rEnd[2] = NOWHERE;
bit owes[2], stalled[2];

/* DataLoop.Invoke. */
#define NOTHING 0
#define DRAIN 1
#define REMOVE 2
byte command[2];
bit wake[2], done[2], drained[2];

#define NONE 0
#define DEAD 1
#define VIOLATION 2
byte fault[2];

bit ordered[2], closes[2], released[2], gone[2];

/* Which records were marked as stale when they were in the ring, from the newest on. */
byte marked[2];

/* What a data loop does next. */
#define TURN 0
#define PUBLISHED_SPACE 1
#define TRANSMIT 2
#define PUBLISHED_DATA 3
#define GLANCE 4
#define ARM 5
#define ARMED_SPACE 6
#define ARMED_EMPTY 7
#define ARMED_DATA 8
#define FALLS_ASLEEP 9
#define ASLEEP 10
#define DETACHED 11
byte next[2];

#if defined(CRASH) || defined(STUCK)
#define RUNS provided (!gone[s])
#else
#define RUNS
#endif

/* One look at a word of the peer. */
#ifdef HOSTILE
#define LOOK(word) do :: tmp < MASK -> tmp++ :: break od
#else
#define LOOK(word) tmp = word
#endif

#define FENCE (held[s] == 0)
#ifdef NO_FENCE_PUBLISH_DATA
#define FENCE_PUBLISH_DATA true
#else
#define FENCE_PUBLISH_DATA FENCE
#endif
#ifdef NO_FENCE_PUBLISH_SPACE
#define FENCE_PUBLISH_SPACE true
#else
#define FENCE_PUBLISH_SPACE FENCE
#endif
#ifdef NO_FENCE_ARM_DATA
#define FENCE_ARM_DATA true
#else
#define FENCE_ARM_DATA FENCE
#endif
#ifdef NO_FENCE_ARM_SPACE
#define FENCE_ARM_SPACE true
#else
#define FENCE_ARM_SPACE FENCE
#endif
#ifdef NO_FENCE_ARM_EMPTY
#define FENCE_ARM_EMPTY true
#else
#define FENCE_ARM_EMPTY FENCE
#endif

#define OLDEST (CAPACITY * s)
#define NEWEST (CAPACITY * s + held[s])

inline Store(to, word)
{
    held[s] < CAPACITY;
    what[NEWEST] = to;
    value[NEWEST] = word;
    held[s]++
}

/*
 * Only differences of indices mean anything. So that states that differ in nothing else are one, all indices of a ring are counted
 * from what its producer published last, and are set back with it.
 */
#define PUBLISHED 0
#define SET_BACK(index) index = MINUS(index, tmp)
/* Who is further behind than a ring is passed: it cannot be told from any other that is. */
#define SET_BACK_WAKE(index) \
    SET_BACK(index); \
    if \
    :: MINUS(PUBLISHED, index) >= N && MINUS(PUBLISHED, index) < 3 * N -> index = MINUS(PUBLISHED, N) \
    :: else \
    fi
#define HELD(side, place) value[CAPACITY * side + place]
#define SET_BACK_HELD(side, place, asIndex, asWake) \
    if \
    :: what[CAPACITY * side + place] == asIndex -> SET_BACK(HELD(side, place)) \
    :: what[CAPACITY * side + place] == asWake -> SET_BACK_WAKE(HELD(side, place)) \
    :: else \
    fi

inline Shift()
{
    tmp = tIndex[s];
    tIndex[s] = PUBLISHED;
    old = MINUS(PUBLISHED, tmp);
    SET_BACK(tConsumed[s]); SET_BACK(pIndex[s]); SET_BACK_WAKE(pWake[s]);
    SET_BACK(cIndex[PEER]); SET_BACK_WAKE(cWake[PEER]);
    SET_BACK(rIndex[PEER]); SET_BACK(rPublished[PEER]); SET_BACK(rProduced[PEER]);
    if
    :: rOld[PEER] != NOWHERE -> SET_BACK(rOld[PEER])
    :: else
    fi;
    if
    :: rEnd[PEER] != NOWHERE -> SET_BACK(rEnd[PEER])
    :: else
    fi;
    SET_BACK_HELD(s, 0, P_INDEX, P_WAKE); SET_BACK_HELD(s, 1, P_INDEX, P_WAKE); SET_BACK_HELD(s, 2, P_INDEX, P_WAKE);
    SET_BACK_HELD(PEER, 0, C_INDEX, C_WAKE); SET_BACK_HELD(PEER, 1, C_INDEX, C_WAKE); SET_BACK_HELD(PEER, 2, C_INDEX, C_WAKE);
    ShiftStale();
    tmp = 0
}

/* A mark is one more than its index; without it zero. */
#define SET_BACK_STALE(mark) \
    if \
    :: mark != 0 -> mark = MINUS(mark - 1, tmp) + 1 \
    :: else \
    fi
#define SET_BACK_HELD_STALE(place) \
    if \
    :: what[CAPACITY * s + place] == P_STALE -> SET_BACK_STALE(value[CAPACITY * s + place]) \
    :: else \
    fi

inline ShiftStale()
{
#ifdef STUCK
    SET_BACK_STALE(pStale[s]);
    SET_BACK_STALE(stale);
    SET_BACK_HELD_STALE(0); SET_BACK_HELD_STALE(1); SET_BACK_HELD_STALE(2);
    marked[s] = (marked[s] << tmp) & ((1 << N) - 1)
#else
    skip
#endif
}

/* No honest peer can be taken for one that is not. */
inline Violation()
{
#ifndef HOSTILE
    assert(false);
#endif
    goto violated
}

inline ReadProduced()
{
    LOOK(pIndex[PEER]);
    if
    :: MINUS(tmp, rIndex[s]) > N - MINUS(rIndex[s], rPublished[s]) -> tmp = 0; Violation()
    :: else -> rProduced[s] = tmp; tmp = 0
    fi
}

inline ReadConsumed()
{
    LOOK(cIndex[PEER]);
    if
    :: MINUS(tmp, tConsumed[s]) > MINUS(PUBLISHED, tConsumed[s]) -> tmp = 0; Violation()
    :: else ->
#ifdef STALLS
        moves = moves || tmp != tConsumed[s];
#endif
        tConsumed[s] = tmp; tmp = 0
    fi
}

inline PayEvent()
{
    if
    :: owes[s] -> owes[s] = 0; Store(EVENT, 0)
    :: else
    fi
}

/* notify if crossed: the event is paid when there is nothing more to do, or after so many bytes. */
inline Owe(wakeAt, index, before)
{
    LOOK(wakeAt);
#ifdef CROSSED_AT_THE_INDEX_ALONE
    owes[s] = owes[s] || tmp == index;
#else
    owes[s] = owes[s] || MINUS(index, tmp) < MINUS(index, before);
#endif
    tmp = 0;
#ifndef COARSE
    if
    :: owes[s] -> PayEvent()
    :: true
    fi
#endif
}

/* Takes a record, or throws it away: what the producer has marked as stale. */
inline TakeRecord()
{
#ifdef STUCK
    if
    :: pStale[PEER] != 0 ->
        ReadProduced();
        if
        :: MINUS(pStale[PEER] - 1, rIndex[s] + 1) < MINUS(rProduced[s], rIndex[s]) ->
            assert((marked[PEER] >> MINUS(PUBLISHED - 1, rIndex[s])) & 1)
        :: else
        fi
    :: else
    fi;
#endif
    rIndex[s] = PLUS(rIndex[s], 1);
    moved++
}

inline Receive()
{
    do
    :: moved < BURST && rIndex[s] != rProduced[s] -> TakeRecord()
    :: else -> break
    od;
    if
    :: moved < BURST -> ReadProduced()
    :: else
    fi;
    do
    :: moved < BURST && rIndex[s] != rProduced[s] -> TakeRecord()
    :: else -> break
    od
}

inline Take()
{
    do
    :: sent < BURST && queued[s] != 0 && MINUS(tIndex[s], tConsumed[s]) != N ->
        queued[s]--;
        tIndex[s] = PLUS(tIndex[s], 1);
        sent++
    :: else -> break
    od
}

inline Transmit()
{
    TryClearStale();
    Take();
    if
    :: sent < BURST && MINUS(tIndex[s], tConsumed[s]) == N -> ReadConsumed(); Take()
    :: else
    fi;
    if
    :: sent < BURST ->
        noRoom = MINUS(tIndex[s], tConsumed[s]) == N;
        tapReady = noRoom
    :: else -> noRoom = 0
    fi;
    moved = (sent != 0 -> 1 : moved);
    sent = 0
}

inline TryClearStale()
{
#if defined(STUCK) && !defined(NEVER_CLEAR_STALE)
    if
    :: stale != 0 && (MINUS(stale - 1, tConsumed[s]) == 0 || MINUS(stale - 1, tConsumed[s]) > N) -> stale = 0; Store(P_STALE, 0)
    :: else
    fi
#else
    skip
#endif
}

/* Both directions are pumped. */
inline Pumped()
{
    if
    :: draining && moved != 0 -> moved = 0; next[s] = TRANSMIT
    :: draining && moved == 0 ->
        PayEvent();
        draining = 0;
        drained[s] = !tapReady;
        tapReady = 1;
        command[s] = NOTHING;
        Store(DONE, 0);
        next[s] = TURN
    :: !draining && moved != 0 ->
        moved = 0;
        if
        :: next[s] = TURN
#ifndef COARSE
        :: next[s] = GLANCE
#endif
        fi
    :: else ->
        PayEvent();
        /* spin */
        if
        :: next[s] = ARM
#ifndef COARSE
        :: next[s] = GLANCE
#endif
        fi
    fi
}

inline Acknowledge()
{
    if
    :: taken ->
        taken = 0;
        pending[s] = 0;
#ifndef NO_LOOK_AT_DEATH
        if
        :: !alive[PEER] -> goto died
        :: else
        fi
#endif
    :: else
    fi
}

/* A store, then the look, the re-check, in the step of its name. */
inline Arm()
{
#ifndef ACK_LATE
    Acknowledge();
#endif
    if
    :: noRoom -> Store(P_WAKE, PLUS(tIndex[s], HALF - N)); next[s] = ARMED_SPACE
    :: !noRoom && tapReady -> next[s] = TURN
#ifndef NO_ARM_EMPTY
    :: !noRoom && !tapReady && stalled[s] -> Store(P_WAKE, PUBLISHED); next[s] = ARMED_EMPTY
#endif
    :: else -> ArmData()
    fi
}

inline ArmData()
{
    if
    :: RECEIVES -> Store(C_WAKE, PLUS(rIndex[s], 1)); next[s] = ARMED_DATA
    :: else -> next[s] = FALLS_ASLEEP
    fi
}

inline AwaitsPeer()
{
#ifdef STALLS
    if
    :: SENDS -> ReadConsumed()
    :: else
    fi;
    if
    :: tConsumed[s] == PUBLISHED -> bounded = 0; Resume()
    :: tConsumed[s] != PUBLISHED && moves -> bounded = 1; Resume()
    :: tConsumed[s] != PUBLISHED && !moves && !stalled[s] ->
        bounded = 1;
        if
        :: true
        :: open[s] = 0; stalled[s] = 1
        fi
    /* The code bounds this sleep, too, until it has marked: not for the wake-up, which must come without. */
    :: tConsumed[s] != PUBLISHED && !moves && stalled[s] -> bounded = 0; MarkStale()
    fi;
    moves = tConsumed[s] == PUBLISHED
#else
    skip
#endif
}

/* A close that has begun opens the slot again where its peer moves on; it is blocked once more when the path is removed. */
inline Resume()
{
    if
    :: stalled[s] -> stalled[s] = 0; open[s] = !closes[s]
    :: else
    fi
}

/* When the first packet has gone by netfront. */
inline MarkStale()
{
#ifdef STUCK
    if
    :: stale != PUBLISHED + 1 && held[s] < CAPACITY ->
        stale = PUBLISHED + 1;
        Store(P_STALE, stale);
        marked[s] = (1 << MINUS(PUBLISHED, tConsumed[s])) - 1
    :: true
    fi
#else
    skip
#endif
}

/* What epoll has to tell. An event is acknowledged before the next sleep, not here. */
inline Wait()
{
    tapReady = tapReady || edge[s];
    edge[s] = 0;
    wake[s] = 0;
    if
    :: pending[s] && !taken ->
        taken = 1;
        if
        :: !alive[PEER] -> goto died
#ifdef HOSTILE
        /* Too many with nothing behind them. */
        :: goto violated
#endif
        :: else
        fi
    :: else
    fi
}

proctype Loop(byte s) RUNS
{
    byte tmp, old, moved, sent, stale;
    bit moves = 1, tapReady, noRoom, taken, bounded, draining;

    tapReady = SENDS;
serve:
    do
    :: atomic { next[s] == TURN && command[s] == REMOVE -> next[s] = DETACHED }
    :: atomic { next[s] == TURN && command[s] == DRAIN -> draining = 1; tapReady = 1; next[s] = TRANSMIT }
    :: atomic { next[s] == TURN && command[s] == NOTHING ->
            if
            :: RECEIVES -> Receive()
            :: else
            fi;
            if
            :: rIndex[s] != rPublished[s] ->
                /* publish */
                Store(C_INDEX, rIndex[s]); rOld[s] = rPublished[s]; rPublished[s] = rIndex[s]; next[s] = PUBLISHED_SPACE
            :: rIndex[s] == rPublished[s] && (tapReady || queued[s] != 0) -> next[s] = TRANSMIT
            :: else -> Pumped()
            fi
        }
    :: atomic { next[s] == PUBLISHED_SPACE && FENCE_PUBLISH_SPACE -> Owe(pWake[PEER], rIndex[s], rOld[s]); rOld[s] = NOWHERE; next[s] = TRANSMIT }
    :: atomic { next[s] == TRANSMIT ->
            tapReady = tapReady || queued[s] != 0;
            if
            :: tapReady -> Transmit()
            :: else
            fi;
            if
            :: tIndex[s] != PUBLISHED ->
                #ifdef NOTIFY_BEFORE_PUBLISH
                Owe(cWake[PEER], tIndex[s], PUBLISHED); next[s] = PUBLISHED_DATA
#else
                Store(P_INDEX, tIndex[s]); Shift(); next[s] = PUBLISHED_DATA
#endif
            :: else -> Pumped()
            fi
        }
#ifdef NOTIFY_BEFORE_PUBLISH
    :: atomic { next[s] == PUBLISHED_DATA -> Store(P_INDEX, tIndex[s]); Shift(); Pumped() }
#else
    :: atomic { next[s] == PUBLISHED_DATA && FENCE_PUBLISH_DATA -> Owe(cWake[PEER], PUBLISHED, old); old = 0; Pumped() }
#endif
    :: atomic { next[s] == GLANCE ->
AwaitsPeer(); bounded = 0; Wait(); next[s] = TURN }
    :: atomic { next[s] == ARM -> Arm() }
    :: atomic { next[s] == ARMED_SPACE && FENCE_ARM_SPACE ->
            ReadConsumed();
            if
            :: MINUS(tIndex[s], tConsumed[s]) == N -> ArmData()
            :: MINUS(tIndex[s], tConsumed[s]) != N && tapReady -> noRoom = 0; next[s] = TURN
            :: else -> noRoom = 0; ArmData()
            fi
        }
    :: atomic { next[s] == ARMED_EMPTY && FENCE_ARM_EMPTY -> ReadConsumed(); ArmData() }
#ifdef NO_RECHECK
    :: atomic { next[s] == ARMED_DATA && FENCE -> next[s] = FALLS_ASLEEP }
#else
    :: atomic { next[s] == ARMED_DATA && FENCE_ARM_DATA ->
            if
            :: rIndex[s] == rProduced[s] -> ReadProduced()
            :: else
            fi;
            next[s] = (rIndex[s] == rProduced[s] -> FALLS_ASLEEP : TURN)
        }
#endif
    :: atomic { next[s] == FALLS_ASLEEP ->
#ifdef ACK_LATE
            Acknowledge();
#endif
            AwaitsPeer(); next[s] = ASLEEP }
    :: atomic { next[s] == ASLEEP && (pending[s] || edge[s] || wake[s] || bounded) ->
bounded = 0; Wait();
            if
            :: RECEIVES -> Store(C_WAKE, rIndex[s]) /* Disarm */
            :: else
            fi;
            next[s] = TURN
        }
    :: atomic { next[s] == DETACHED && command[s] != NOTHING -> drained[s] = 0; command[s] = NOTHING; Store(DONE, 0) }
    od;
died:
    atomic { fault[s] = DEAD; goto givesUp };
violated:
    atomic { fault[s] = VIOLATION; goto givesUp };
givesUp:
    atomic { open[s] = 0; moved = 0; sent = 0; old = 0; draining = 0; bounded = 0; next[s] = DETACHED; goto serve }
}

inline Invoke(task)
{
#ifdef WAKE_BEFORE_COMMAND
    wake[s] = 1;
    command[s] = task;
#else
    atomic { command[s] = task; wake[s] = 1 };
#endif
    atomic { done[s] -> done[s] = 0 }
}

#ifdef HOSTILE
bit silent;
#define PEER_SAYS(what) (!silent)
#else
#define PEER_SAYS(what) (said[PEER] == (what))
#endif

proctype Control(byte s) RUNS
{
    byte tmp, moved, tries;

    if
    :: ordered[s]
    :: PEER_SAYS(CLOSING) || PEER_SAYS(CLOSED)
    :: fault[s] != NONE -> goto release
    fi;
    atomic { closes[s] = 1; open[s] = 0 };
    do
    :: fault[s] != NONE -> break
    :: else ->
        Invoke(DRAIN);
        if
        :: drained[s] -> break
        :: else
        fi;
        /* Every 5 ms; another time is of use only when something has changed. */
        if
#ifdef TIMERS
        :: tries < 2 -> tries++
        :: break
#else
        :: fault[s] != NONE || queued[s] == 0 || cIndex[PEER] != tConsumed[s]
#endif
        fi
    od;
    atomic { Store(SAY, CLOSING) };
    if
    :: PEER_SAYS(CLOSED)
#ifdef LISTENER_GOES_FIRST
    :: PEER_SAYS(CLOSING)
#else
    :: s == CONNECTOR && PEER_SAYS(CLOSING)
#endif
    :: fault[s] != NONE
#if defined(TIMERS) && !defined(NO_CLOSE_TIME)
    :: true
#endif
    fi;

release:
    Invoke(REMOVE);
    open[s] = 0;
#ifndef NO_DRAIN_RING
    if
    :: fault[s] != VIOLATION && RECEIVES ->
        /* DrainRing: what is there now, or, as it is no harm, a little more. */
        atomic { ReadProduced(); rEnd[s] = rProduced[s] };
        do
        :: atomic { MINUS(rEnd[s], rIndex[s]) != 0 && MINUS(rEnd[s], rIndex[s]) <= N -> moved = 0; Receive() };
            atomic { Store(C_INDEX, rIndex[s]); rOld[s] = rPublished[s]; rPublished[s] = rIndex[s] };
            atomic { FENCE_PUBLISH_SPACE -> Owe(pWake[PEER], rIndex[s], rOld[s]); rOld[s] = NOWHERE };
#ifdef DRAIN_WHAT_COMES
            atomic { ReadProduced(); rEnd[s] = rProduced[s] }
#endif
        :: else -> break
        od;
        PayEvent()
    :: else
    fi;
#endif
violated:
#ifndef TIMERS
    /* Access is ended when the connector has let go. */
    assert(s == CONNECTOR || !alive[CONNECTOR]);
#endif
    atomic { Store(UNMAP, 0) };
    atomic { Store(SAY, CLOSED) };
    released[s] = 1
}

/* The processor lets stores go. */
proctype Processor(byte s)
{
    do
    :: atomic { held[s] != 0 ->
            if
            :: what[OLDEST] == P_INDEX -> pIndex[s] = value[OLDEST]
            :: what[OLDEST] == P_WAKE -> pWake[s] = value[OLDEST]
            :: what[OLDEST] == P_STALE -> pStale[s] = value[OLDEST]
            :: what[OLDEST] == C_INDEX -> cIndex[s] = value[OLDEST]
            :: what[OLDEST] == C_WAKE -> cWake[s] = value[OLDEST]
            :: what[OLDEST] == EVENT -> pending[PEER] = 1
            :: what[OLDEST] == SAY -> said[s] = value[OLDEST]
            :: what[OLDEST] == DONE -> done[s] = 1
            :: what[OLDEST] == UNMAP -> alive[s] = 0; pending[PEER] = 1
            fi;
            what[OLDEST] = what[OLDEST + 1]; value[OLDEST] = value[OLDEST + 1];
            what[OLDEST + 1] = what[OLDEST + 2]; value[OLDEST + 1] = value[OLDEST + 2];
            what[OLDEST + 2] = 0; value[OLDEST + 2] = 0;
            held[s]--
        }
    od
}

/* Packets for the peer. */
proctype Traffic(byte s)
{
#ifdef PACKETS
    byte come;
#define COME(count) come count
#else
#define COME(count) true
#endif

    do
    :: atomic { open[s] && queued[s] == 0 && COME(< PACKETS) -> queued[s]++; edge[s] = 1; COME(++) }
    :: break
    od
}

proctype Order()
{
    if
    :: ordered[0] = 1
    :: ordered[1] = 1
    :: true
    fi
}

#if defined(CRASH) || defined(STUCK) || defined(HOSTILE)
proctype Fate()
{
#ifdef CRASH
    /* The kernel clears the byte, and sends the event then. */
    atomic { gone[1] = 1; alive[1] = 0 };
    pending[0] = 1
#elif defined(STUCK)
    if
    :: gone[1] = 1
    :: true
    fi
#elif defined(HOSTILE)
    do
    :: pending[0] = 1
    :: silent = 1
    :: break
    od
#endif
}
#endif

/* Nothing can move any more. */
proctype Monitor()
{
    byte s;

    timeout ->
#if defined(HOSTILE)
    assert(released[0] || (next[0] == ASLEEP && !ordered[0]));
#elif defined(CRASH)
    assert(released[0]);
#else
    if
    :: gone[1] ->
        /* Whatever it has left in the ring: its packets go by netfront, nobody looks again and again, and a close ends. */
        assert(released[0] || (!ordered[0] && next[0] == ASLEEP));
        assert(tIndex[0] == cIndex[1] || !open[0])
    :: else ->
        do
        :: s < 2 ->
            assert(queued[s] == 0);
            assert(rIndex[s] == tIndex[PEER] || !RECEIVES);
            if
            :: ordered[0] || ordered[1] -> assert(released[s])
            :: else -> assert(next[s] == ASLEEP && open[s] && !stalled[s] && !released[s])
            fi;
            s++
        :: else -> break
        od
    fi
#endif
}

#ifdef ENDS
/* However busy the enemy keeps this side. */
ltl ends { [] (ordered[0] -> <> released[0]) }
#endif

init
{
    atomic {
        pending[CONNECTOR] = 1;
        run Processor(0);
        run Loop(0);
        run Traffic(0);
#ifndef HOSTILE
        run Processor(1);
        run Loop(1);
#ifndef ONE_WAY
        run Traffic(1);
#endif
#endif
#if defined(CLOSE) || defined(CRASH)
        run Control(0);
#ifndef HOSTILE
        run Control(1);
#endif
#endif
#ifdef CLOSE
        run Order();
#endif
#if defined(CRASH) || defined(STUCK) || defined(HOSTILE)
        run Fate();
#endif
        run Monitor()
    }
}
