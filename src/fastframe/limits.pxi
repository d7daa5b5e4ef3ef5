# Tunables, each with its unit and reason.
cdef enum:
    # Bytes of replies to user functions at which no further call starts, and which do
    # not wait for the end of the turn: bounds the memory behind a slow reader.
    OUTPUT_LIMIT = 256 * 1024
    # Bytes that one call reads from a socket, and of replies to built-ins that it makes of
    # them, in a turn that still has room or that the connection has waited for. Larger reads
    # cost fewer system calls and less of the processor's cache; at 256 KiB both are in balance.
    LARGE_SHARE = 256 * 1024
    # The same where the turn is over: 200 connections that are ready at once take 10 ms.
    SMALL_SHARE = 16 * 1024
    # Reads in one call while they bring nothing to answer; see receive().
    RECEIVE_TRIES = 8
    # Bytes of the longest reply of a built-in function: header, return_code,
    # MsgPack head, and a slot or an error text (ERROR_TEXT at most).
    REPLY_LIMIT = 512
    ERROR_TEXT = 240
    # Bytes of a server's error text that an exception carries: more is nothing to read,
    # and a reply may bring many MiB.
    PEER_TEXT = 4096
    # Frames executed under one hold of the lock. Taking it costs about half of
    # a slot read; 64 frames hold it for some 3 us, which is what a writer waits.
    FRAMES_A_HOLD = 64
    # Reads after a write that are made under its lock: to let go of it for each run of
    # reads costs more than they do, where writes come often.
    READS_A_WRITE = 16
    # Tries of the lock before the GIL is given up (about 1 us); lock.h has those
    # before the CPU is.
    SPINS_WITH_GIL = 64
    # Longest waits for the lock; then the request is answered OVERLOADED, and so are
    # the next ones, at once, until somebody has had the lock again. A holder needs
    # microseconds. One that is stopped is waited for as long as it takes to find that
    # out; one that may go on waits for its CPU, and a busy system was seen to let it
    # wait for some 0.1 s. The event loop stands still meanwhile: a fifth of a
    # heartbeat's period.
    LOCK_WAIT_NS = 100_000_000
    STOPPED_WAIT_NS = 10_000_000
    # Map keys in a body that are neither str nor bin. Python's hashes of numbers are
    # no secret: a dict of n keys that were chosen to collide costs n * n / 2
    # comparisons, half a million for these.
    MAX_NUMBER_KEYS = 1000
    # Arguments of a function: those of a call in one MsgPack array with a 16-bit head.
    MOST_ARGUMENTS = 255
    # Longest body of a reply, in bytes: with its return_code it fits into a uint32.
    MAX_REPLY_BODY = 0xFFFFFFFB
    # Bytes that a call in a connection's queue counts beside its body: its objects.
    CALL_OVERHEAD = 256
    # Of ServerFrames, where its caller names none: bytes of calls that wait, and of
    # replies. Config has the server's.
    DEFAULT_QUEUE = 256 * 1024
    DEFAULT_UNSENT = 64 * 1024 * 1024
    # Work of one turn of the event loop, in bytes received and built; see turn.pxi. What
    # is executed and sent for them takes a millisecond at most. Half as much would cost
    # some percent of throughput: a turn costs the loop itself some microseconds.
    TURN_WORK = 512 * 1024
    # Bytes that the work of a turn counts for each connection: system calls, the loop's own.
    SERVICE_WORK = 4 * 1024
    # Nanoseconds of a user function that count as one byte: a turn of them is 1 ms.
    NS_A_BYTE = 2
    # Bytes that count for a call which is a task: it runs later.
    TASK_WORK = 4 * 1024
    # Calls of one connection that start in one turn of the loop, and nanoseconds after
    # which no further one does: then other connections have their turn.
    CALLS_A_TURN = 64
    CALLS_NS = 1_000_000
    # The same where the turn is over.
    SMALL_CALLS = 16
    SMALL_CALLS_NS = 128_000
    # Calls that have left a queue's list before it is shortened: then that costs less
    # than a call.
    QUEUE_SLACK = 256
    # Requests taken from a client's rate at once, for the frames that may be in 12 KiB. What
    # is not needed is given back some 50 us later, and is missing to its other connections
    # until then.
    FRAMES_A_WINDOW = 1024
    # Requests over a client's rate that are answered so; later ones wait unread until the
    # rate permits one. Each answer costs about what a read costs.
    REFUSALS_IN_A_ROW = 64
