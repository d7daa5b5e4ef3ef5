# One hold of the lock serves several frames of a chunk: taking it costs about half of
# a slot read. A hold is given up after FRAMES_A_HOLD frames, and before Python objects
# are made.

cdef enum:
    HOLDS_NOTHING = 0
    HOLDS_READ = 1
    HOLDS_WRITE = 2

cdef struct Hold:
    int kind
    int frames  # executed under it
    int reads  # since the last write, under the lock of that write
    # The lock was waited for in vain: the rest of the chunk is answered OVERLOADED at
    # once, not after a wait for each frame.
    bint in_vain
    # State of the storage: it does not change under the lock but by the holder's own
    # switch. NO_STATE without the lock, which then is the one thing left to look at.
    uint32_t state

cdef enum:
    NO_STATE = 0


cdef inline void begin_hold(Hold* hold) noexcept nogil:
    hold.kind = HOLDS_NOTHING
    hold.frames = hold.reads = hold.in_vain = 0
    hold.state = NO_STATE


cdef inline void hold_for(Hold* hold, const handle_t* h, int row) noexcept:
    """Holds the lock that an operation of this counter row needs, or nothing: in vain."""
    if row == ROW_READ:
        hold_for_read(hold, h)
    else:
        hold_for_write(hold, h)


cdef inline void hold_for_read(Hold* hold, const handle_t* h) noexcept:
    if hold.kind != HOLDS_READ or hold.frames == FRAMES_A_HOLD:
        if (hold.kind == HOLDS_WRITE and hold.frames < FRAMES_A_HOLD
                and hold.reads < READS_A_WRITE):
            hold.reads += 1
        else:
            let_go(hold, h)
            if not hold.in_vain and acquire_read(h):
                hold.kind = HOLDS_READ
                hold.state = load_relaxed(&h.store.state)
            hold.in_vain = hold.kind == HOLDS_NOTHING
            hold.frames = 0
    hold.frames += 1


cdef inline void hold_for_write(Hold* hold, const handle_t* h) noexcept:
    if hold.kind != HOLDS_WRITE or hold.frames == FRAMES_A_HOLD:
        let_go(hold, h)
        if not hold.in_vain and acquire_write(h):
            hold.kind = HOLDS_WRITE
            hold.state = load_relaxed(&h.store.state)
        hold.in_vain = hold.kind == HOLDS_NOTHING
        hold.frames = 0
    hold.frames += 1
    hold.reads = 0


cdef inline void let_go(Hold* hold, const handle_t* h) noexcept nogil:
    if hold.kind == HOLDS_READ:
        release_read(h)
    elif hold.kind == HOLDS_WRITE:
        release_write(h)
    hold.kind = HOLDS_NOTHING
    hold.state = NO_STATE
