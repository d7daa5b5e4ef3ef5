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
    void wait_for_writer(const handle_t* h, uint64_t deadline) noexcept
    void spin_hint() noexcept
    uint64_t clock_ns() noexcept


cdef bint acquire_read(const handle_t* h) noexcept:
    """False: it was waited for in vain, for LOCK_WAIT_NS."""
    cdef int _spin
    cdef uint64_t deadline = 0
    while True:
        for _spin in range(SPINS_WITH_GIL):
            if try_read(h):
                return True
            spin_hint()
        if not wait_without_gil(h, &deadline):
            return False


cdef bint acquire_write(const handle_t* h) noexcept:
    """False: it was waited for in vain, for LOCK_WAIT_NS."""
    cdef int _spin
    cdef uint64_t deadline = 0
    while True:
        for _spin in range(SPINS_WITH_GIL):
            if try_write(h):
                return True
            spin_hint()
        if not wait_without_gil(h, &deadline):
            return False


cdef bint wait_without_gil(const handle_t* h, uint64_t* deadline) noexcept:
    """Waits for a while; False when the deadline, which the first call sets, is over."""
    cdef uint64_t now = clock_ns()
    if deadline[0] == 0:
        deadline[0] = now + LOCK_WAIT_NS
    elif now > deadline[0]:
        return False
    with nogil:
        wait_for_writer(h, deadline[0])
    return True
