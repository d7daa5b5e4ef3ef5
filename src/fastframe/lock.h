/* A read-write lock that works between threads and between processes, and in which
   nobody waits for long while its holders run.

     readers (one word a worker)   how many holders of the read lock that worker has.
                                   Written by that worker only.
     writer (one word a store)     0, or 1 + the index of the worker that holds or
                                   acquires the write lock.
     turn (beside it)              0, or 1 + the index of the worker that has waited
                                   for long: all others stay outside until it has
                                   been inside.

   A reader adds 1 to its own word, then looks at `writer` and `turn`; a writer sets
   `writer`, then looks at every `readers`. All four are sequentially consistent,
   so of a reader and a writer that come at once at least one sees the other: a
   reader that sees a writer takes its 1 back and waits; a writer that sees
   readers keeps `writer` for some microseconds, which stops new ones while
   these leave, and frees it if they do not, to wait and try again.
   Both leave with a release store, which the next holder's look acquires.

   `turn` excludes nobody: it only says who goes first. A worker that is stopped or
   killed while it is its turn holds up the others for TURN_NS: then one of them that
   waits takes the turn over.

   When a holder dies: its parent, which knows by wait() that it is dead, sets
   its `readers` to 0 and frees `writer` and `turn` if they name the dead worker
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
/* Wait after which a worker asks for the turn. Shorter ones are more even, and cost
   more changes from worker to worker. */
#define PATIENCE_NS 500000u
/* How long the others stay outside for a worker whose turn it is. It needs some us once
   all are outside, but the system may take it, or a reader inside, off its CPU. */
#define TURN_NS 20000000u
/* Longer than a worker needs to get the GIL back when no other thread of it runs. */
#define GIL_NS 1000000u

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

static inline lock_t lock_of(uint32_t writer, uint32_t turn) {
    lock_t lock;
    lock.writer = writer;
    lock.turn = turn;
    return lock;
}

static inline lock_t look_at_lock(const handle_t *h) {
    lock_t lock;
    lock.both = load_seq_cst(&h->store->lock.both);
    return lock;
}

/* Whether the lock was as expected, and is as wanted now. */
static inline int change_lock(const handle_t *h, lock_t expected, lock_t wanted) {
    return __atomic_compare_exchange_n(&h->store->lock.both, &expected.both, wanted.both, 0,
                                       __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
}

/* For Storage.recover: sets `writer` or `turn` to 0 if it names this worker. */
static inline int release_if_owner(uint32_t *word, uint32_t owner) {
    return __atomic_compare_exchange_n(word, &owner, 0, 0, __ATOMIC_SEQ_CST,
                                       __ATOMIC_RELAXED);
}

/* The turn has been used, or is not wanted any more. */
static inline void end_turn(const handle_t *h) {
    if (load_relaxed(&h->store->lock.turn) == h->mine)
        release_if_owner(&h->store->lock.turn, h->mine);
}

static inline int try_read(const handle_t *h) {
    add_seq_cst(&h->my_reader->readers, 1);
    lock_t lock = look_at_lock(h);
    if (lock.both == 0) return 1;
    if (lock.writer == 0 && lock.turn == h->mine) {
        end_turn(h);
        return 1;
    }
    sub_release(&h->my_reader->readers, 1);
    return 0;
}

static inline void release_read(const handle_t *h) { sub_release(&h->my_reader->readers, 1); }

static inline int readers_gone(const handle_t *h) {
    for (uint32_t i = 0; i < h->workers; i++)
        if (load_seq_cst(&h->readers[i].readers) != 0) return 0;
    return 1;
}

static inline void release_write(const handle_t *h) {
    store_release(&h->store->lock.writer, 0);
}

static inline int try_write(const handle_t *h) {
    uint32_t turn = 0;
    if (!change_lock(h, lock_of(0, 0), lock_of(h->mine, 0))) {
        turn = h->mine;
        if (!change_lock(h, lock_of(0, turn), lock_of(h->mine, turn))) return 0;
    }
    /* This stops new readers, and those that are inside leave within
       microseconds, unless the system has stopped one of them just there. */
    for (int spin = 0; spin < SPINS_FOR_READERS; spin++) {
        if (readers_gone(h)) {
            store_relaxed(&h->store->claims, h->store->claims + 1);
            if (turn) end_turn(h);
            return 1;
        }
        spin_hint();
    }
    release_write(h);
    return 0;
}

/* One wait for the lock, from the first try to the last. */
typedef struct {
    uint64_t began; /* CLOCK_MONOTONIC, ns; 0: not yet */
    uint64_t ended; /* the last wait_for_lock */
    uint64_t turn_began; /* when `turn` and `claims` were seen to be so first */
    uint32_t turn;
    uint32_t claims;
} wait_t;

static inline void pause_a_little(uint32_t *spins, int may_nap) {
    *spins += 1;
    if (*spins < SPINS_BEFORE_NAP)
        spin_hint();
    else if (*spins % 16 || !may_nap)
        sched_yield();
    else
        nap_ns(NAP_NS);
}

/* Looks after whose turn it is, for a worker that waits. */
static inline void see_to_the_turn(const handle_t *h, wait_t *wait, lock_t lock, uint64_t now) {
    if (lock.turn == 0) {
        if (now - wait->began > PATIENCE_NS && !h->my_reader->gil_is_busy)
            change_lock(h, lock, lock_of(lock.writer, h->mine));
        return;
    }
    uint32_t claims = load_relaxed(&h->store->claims);
    int is_held = lock.writer != 0 && lock.writer != lock.turn;
    if (lock.turn != wait->turn || claims != wait->claims || is_held) {
        wait->turn = lock.turn;
        wait->claims = claims;
        wait->turn_began = now;
    } else if (lock.turn != h->mine && lock.writer == 0 && now - wait->turn_began > TURN_NS) {
        change_lock(h, lock, lock_of(0, h->mine));
    }
}

/* Waits until the lock can be tried again; takes nothing. False when so many ns are over
   since the wait began.

   The caller has given up the GIL. To take the lock in here would be to
   hold it while waiting for the GIL, which another thread of this process may
   keep for as long as it likes, and all workers would wait for that thread. */
static inline int wait_for_lock(const handle_t *h, int for_write, wait_t *wait,
                                uint64_t limit_ns) {
    uint32_t spins = 0;
    if (wait->began == 0) {
        wait->began = wait->turn_began = clock_ns();
        wait->turn = wait->claims = 0;
    }
    for (;;) {
        uint64_t now = clock_ns();
        lock_t lock = look_at_lock(h);
        if (now - wait->began > limit_ns) {
            end_turn(h);
            return 0;
        }
        see_to_the_turn(h, wait, lock, now);
        pause_a_little(&spins, lock.turn != h->mine);
        lock = look_at_lock(h);
        if (lock.writer == 0 && (lock.turn == 0 || lock.turn == h->mine) &&
            (!for_write || readers_gone(h))) {
            wait->ended = clock_ns();
            return 1;
        }
    }
}

/* The GIL is back. A worker that waits for it for long, since another thread of its own
   keeps it, asks for no turn the next time: the others would wait for that thread too. */
static inline void got_gil_back(const handle_t *h, const wait_t *wait) {
    h->my_reader->gil_is_busy = clock_ns() - wait->ended > GIL_NS;
}

/* A wait in vain is remembered: until somebody has had the write lock again, this worker
   tries it once and does not wait for it. Else a holder that is stopped costs each of
   its connections a wait of their own. */
static inline void give_up(const handle_t *h) {
    h->my_reader->claims_then = load_relaxed(&h->store->claims);
    h->my_reader->gave_up = 1;
}

static inline int may_wait(const handle_t *h) {
    if (!h->my_reader->gave_up) return 1;
    if (load_relaxed(&h->store->claims) == h->my_reader->claims_then) return 0;
    h->my_reader->gave_up = 0;
    return 1;
}

#endif
