/* A read-write lock that works between threads and between processes.

     readers (one word a worker)   how many holders of the read lock that worker has.
                                   Written by that worker only.
     writer (one word a store)     0, or 1 + the index of the worker that holds or
                                   acquires the write lock.

   A reader adds 1 to its own word, then looks at `writer`; a writer sets
   `writer`, then looks at every `readers`. All four are sequentially consistent,
   so of a reader and a writer that come at once at least one sees the other: a
   reader that sees a writer takes its 1 back and waits; a writer that sees
   readers keeps `writer` for some microseconds, which stops new ones while
   these leave, and frees it if they do not, to wait and try again.
   Both leave with a release store, which the next holder's look acquires.

   When a holder dies: its parent, which knows by wait() that it is dead, sets
   its `readers` to 0 and frees `writer` if it names the dead worker
   (Storage.recover). No slot needs mending; see slot_t. In one process there is
   nobody left to see the lock, so nothing is needed there. */

#ifndef IPROTO_LOCK_H
#define IPROTO_LOCK_H

#include <sched.h>
#include <time.h>

#include "layout.h"

/* Looks at the readers while acquiring the write lock: some us, as long as a
   reader holds it. */
#define SPINS_FOR_READERS 256
/* Looks at a writer before the CPU is given up (a holder that runs is done
   within a few us), and how long for, every 16th time. */
#define SPINS_BEFORE_NAP 200
#define NAP_NS 50000

static inline uint64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static inline void nap_ns(long ns) {
    struct timespec nap = {0, ns};
    nanosleep(&nap, 0);
}

static inline void spin_hint(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static inline int try_acquire(uint32_t *word, uint32_t mine) {
    uint32_t nobody = 0;
    return __atomic_compare_exchange_n(word, &nobody, mine, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

static inline int release_if_owner(uint32_t *word, uint32_t owner) {
    return __atomic_compare_exchange_n(word, &owner, 0, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

static inline int try_read(const handle_t *h) {
    add_seq_cst(&h->me->readers, 1);
    if (load_seq_cst(&h->store->writer) == 0) return 1;
    sub_release(&h->me->readers, 1);
    return 0;
}

static inline void release_read(const handle_t *h) { sub_release(&h->me->readers, 1); }

static inline int readers_gone(const handle_t *h) {
    for (uint32_t i = 0; i < h->workers; i++)
        if (load_seq_cst(&h->areas[i].readers) != 0) return 0;
    return 1;
}

static inline int try_write(const handle_t *h) {
    if (!try_acquire(&h->store->writer, h->mine)) return 0;
    /* This stops new readers, and those that are inside leave within
       microseconds, unless the system has stopped one of them just there. */
    for (int spin = 0; spin < SPINS_FOR_READERS; spin++) {
        if (readers_gone(h)) return 1;
        spin_hint();
    }
    store_release(&h->store->writer, 0);
    return 0;
}

static inline void release_write(const handle_t *h) { store_release(&h->store->writer, 0); }

static inline void pause_a_little(uint32_t *spins) {
    *spins += 1;
    if (*spins < SPINS_BEFORE_NAP)
        spin_hint();
    else if (*spins % 16)
        sched_yield();
    else
        nap_ns(NAP_NS);
}

/* Waits until no writer is seen; takes nothing.

   The caller has given up the GIL. To take the lock in here would be to
   hold it while waiting for the GIL, which another thread of this process may
   keep for as long as it likes, and all workers would wait for that thread. */
static inline void wait_for_writer(const handle_t *h, uint64_t deadline) {
    uint32_t spins = 0;
    pause_a_little(&spins);
    while (load_relaxed(&h->store->writer) != 0 && clock_ns() < deadline)
        pause_a_little(&spins);
}

#endif
