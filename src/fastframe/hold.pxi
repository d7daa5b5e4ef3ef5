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


cdef inline bint hold_for(Hold* hold, const handle_t* h, int row) noexcept:
    """Holds the lock that an operation of this counter row needs; False: in vain."""
    return hold_for_read(hold, h) if row == ROW_READ else hold_for_write(hold, h)


cdef inline bint hold_for_read(Hold* hold, const handle_t* h) noexcept:
    if hold.kind != HOLDS_READ or hold.frames == FRAMES_A_HOLD:
        if (hold.kind == HOLDS_WRITE and hold.frames < FRAMES_A_HOLD
                and hold.reads < READS_A_WRITE):
            hold.reads += 1
        else:
            let_go(hold, h)
            if not hold.in_vain and acquire_read(h):
                hold.kind = HOLDS_READ
            hold.in_vain = hold.kind == HOLDS_NOTHING
            hold.frames = 0
    hold.frames += 1
    return hold.kind != HOLDS_NOTHING


cdef inline bint hold_for_write(Hold* hold, const handle_t* h) noexcept:
    if hold.kind != HOLDS_WRITE or hold.frames == FRAMES_A_HOLD:
        let_go(hold, h)
        if not hold.in_vain and acquire_write(h):
            hold.kind = HOLDS_WRITE
        hold.in_vain = hold.kind == HOLDS_NOTHING
        hold.frames = 0
    hold.frames += 1
    hold.reads = 0
    return hold.kind != HOLDS_NOTHING


cdef inline void let_go(Hold* hold, const handle_t* h) noexcept nogil:
    if hold.kind == HOLDS_READ:
        release_read(h)
    elif hold.kind == HOLDS_WRITE:
        release_write(h)
    hold.kind = HOLDS_NOTHING
