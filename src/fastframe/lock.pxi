# lock.h: the read-write lock between threads and between processes.
#
# A note on the GIL: all slot code is ``nogil``-clean, but is called holding the
# GIL, and the lock is first *tried*; the GIL is released only when the lock is
# contended. (A release around each operation halves the throughput, and beside
# one busy Python thread divides it by 300: each re-acquire can wait a switch
# interval of 5 ms.)

cdef extern from "lock.h" nogil:
    bint release_if_owner(uint32_t* word, uint32_t owner) noexcept
    bint try_read(store_t* store, worker_t* me) noexcept
    void release_read(worker_t* me) noexcept
    bint try_write(store_t* store, worker_t* workers, uint32_t mine) noexcept
    void release_write(store_t* store) noexcept
    void wait_for_writer(store_t* store, uint64_t deadline) noexcept
    void spin_hint() noexcept
    uint64_t clock_ns() noexcept
