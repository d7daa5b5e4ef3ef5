# lock.h: the read-write lock between threads and between processes.
#
# A note on the GIL: all slot code is ``nogil``-clean, but is called holding the
# GIL, and the lock is first *tried*; the GIL is released only when the lock is
# contended. (A release around each operation halves the throughput, and beside
# one busy Python thread divides it by 300: each re-acquire can wait a switch
# interval of 5 ms.)

cdef extern from "lock.h" nogil:
    bint release_if_owner(uint32_t* word, uint32_t owner) noexcept
    bint try_read(const handle_t* h) noexcept
    void release_read(const handle_t* h) noexcept
    bint try_write(const handle_t* h) noexcept
    void release_write(const handle_t* h) noexcept
    void spin_hint() noexcept
    uint64_t clock_ns() noexcept
    bint may_wait(const handle_t* h) noexcept
    void give_up(const handle_t* h) noexcept

    ctypedef struct wait_t:
        uint64_t began

    ctypedef struct patience_t:
        uint64_t whole
        uint64_t for_stopped

    bint wait_for_lock(const handle_t* h, bint for_write, wait_t* wait,
                       patience_t patience) noexcept
    void end_wait(const handle_t* h) noexcept
    void got_gil_back(const handle_t* h, const wait_t* wait) noexcept


cdef inline bint acquire_read(const handle_t* h) noexcept:
    """False: it was waited for in vain, now or not long ago."""
    return try_read(h) or acquire_after_a_wait(h, False)


cdef inline bint acquire_write(const handle_t* h) noexcept:
    """False: it was waited for in vain, now or not long ago."""
    return try_write(h) or acquire_after_a_wait(h, True)


cdef bint acquire_after_a_wait(const handle_t* h, bint for_write) noexcept:
    cdef wait_t wait
    cdef patience_t patience
    cdef bint in_time
    cdef int _spin
    if not may_wait(h):
        return False
    wait.began = 0
    patience.whole = LOCK_WAIT_NS
    patience.for_stopped = STOPPED_WAIT_NS
    while True:
        for _spin in range(SPINS_WITH_GIL):
            spin_hint()
            if try_write(h) if for_write else try_read(h):
                if wait.began:
                    end_wait(h)
                return True
        with nogil:
            in_time = wait_for_lock(h, for_write, &wait, patience)
        if not in_time:
            give_up(h)
            return False
        got_gil_back(h, &wait)
