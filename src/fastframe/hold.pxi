# One hold of the lock serves several frames of a chunk: taking it costs about half of
# a slot read. A hold is given up after FRAMES_A_HOLD frames, and before Python objects
# are made.

cdef enum:
    HOLDS_NOTHING = 0
    HOLDS_READ = 1
    HOLDS_WRITE = 2
    # The write lock for one operation: the next one may be one that is forbidden.
    HOLDS_ONE_WRITE = 3

cdef struct Hold:
    int kind
    int frames_left  # of FRAMES_A_HOLD, under the write lock; counted down at each write
    int reads_left  # that may follow at once, whichever lock is held
    int reads_given  # what reads_left was after the last write
    # The lock was waited for in vain: the rest of the chunk is answered OVERLOADED at
    # once, not after a wait for each frame.
    bint in_vain
    # A bit for each row that this client may not call, and whether it did: REFUSED or 0.
    uint32_t forbidden
    int refused
    # State of the storage: it does not change under the lock but by the holder's own
    # switch. NO_STATE without the lock, which then is the one thing left to look at.
    uint32_t state

cdef enum:
    NO_STATE = 0


cdef inline void begin_hold(Hold* hold, uint32_t forbidden) noexcept nogil:
    hold.kind = HOLDS_NOTHING
    hold.forbidden = forbidden
    hold.refused = 0
    hold.reads_left = hold.in_vain = 0
    hold.state = NO_STATE


cdef inline void hold_for(Hold* hold, const handle_t* h, int row) noexcept:
    """Holds the lock that an operation of this counter row needs, or nothing: in vain."""
    if row == ROW_READ:
        if hold.reads_left == 0:
            hold_for_reads(hold, h)
        hold.reads_left -= 1
    else:
        if hold.kind != HOLDS_WRITE or hold.frames_left <= 0:
            hold_for_writes(hold, h, row)
        # This write, and the reads since the last one.
        hold.frames_left -= 1 + hold.reads_given - hold.reads_left
        if hold.kind == HOLDS_WRITE:
            hold.reads_given = hold.reads_left = READS_A_WRITE


cdef inline void hold_for_reads(Hold* hold, const handle_t* h) noexcept:
    let_go(hold, h)
    if unlikely_so(hold.forbidden >> ROW_READ & 1):
        hold.refused = REFUSED
        hold.reads_left = 1  # to be refused
        return
    if not hold.in_vain and acquire_read(h):
        hold.kind = HOLDS_READ
        hold.state = load_relaxed(&h.store.state)
        hold.reads_left = FRAMES_A_HOLD
    else:
        hold.in_vain = True
        hold.reads_left = 1  # to be refused


cdef inline void hold_for_writes(Hold* hold, const handle_t* h, int row) noexcept:
    let_go(hold, h)
    hold.frames_left = FRAMES_A_HOLD
    hold.reads_given = 0
    if unlikely_so(hold.forbidden >> row & 1):
        hold.refused = REFUSED
        return
    if not hold.in_vain and acquire_write(h):
        hold.kind = HOLDS_WRITE
        if unlikely_so(hold.forbidden & (1 << ROW_READ | 1 << ROW_REPLACE)):
            hold.kind = HOLDS_ONE_WRITE
        hold.state = load_relaxed(&h.store.state)
    else:
        hold.in_vain = True


cdef inline void let_go(Hold* hold, const handle_t* h) noexcept nogil:
    if hold.kind == HOLDS_READ:
        release_read(h)
    elif hold.kind != HOLDS_NOTHING:
        release_write(h)
    hold.kind = HOLDS_NOTHING
    hold.reads_left = 0
    hold.state = NO_STATE
