/* A read-write lock that works between threads and between processes, and in which
   nobody waits for long while its holders run.

     readers (one word a worker)   how many holders of the read lock that worker has.
                                   Written by that worker only.
     writer (one word a store)     0, or 1 + the index of the worker that holds or
                                   acquires the write lock.
     turn (beside it)              0, or 1 + the index of the worker that has waited
                                   for long: all others stay outside until it has
                                   been inside.
     turn_due_ns (one a worker)    while the worker waits: when it may have the turn.

   A reader adds 1 to its own word, then looks at `writer` and `turn`; a writer sets
   `writer`, then looks at every `readers`. All four are sequentially consistent,
   so of a reader and a writer that come at once at least one sees the other: a
   reader that sees a writer takes its 1 back and waits; a writer that sees
   readers keeps `writer` for some microseconds, which stops new ones while
   these leave, and frees it if they do not, to wait and try again.
   Both leave with a release store, which the next holder's look acquires.

   `turn` excludes nobody: it only says who goes first. A worker that waits takes the
   turn when it is due; and now and then a holder gives it to the worker that waits
   for longest, which need not have a CPU for that. A worker that is stopped or
   killed while it is its turn holds up the others for TURN_NS: then one of them that
   waits takes the turn over.

   When a holder dies: its parent, which knows by wait() that it is dead, sets
   its `readers` to 0 and frees `writer` and `turn` if they name the dead worker
   (Storage.recover). No slot needs mending; see slot_t. In one process there is
   nobody left to see the lock, so nothing is needed there. */

#ifndef IPROTO_LOCK_H
#define IPROTO_LOCK_H

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "layout.h"

/* Looks at the readers while acquiring the write lock: some us, as long as a
   reader holds it. */
#define SPINS_FOR_READERS 256
/* Holds of a worker after which it looks for workers that wait: a power of 2. At fewer
   the lock goes from worker to worker more often, and is idle while one wakes up. */
#define HOLDS_A_LOOK 256
/* Looks at the lock before a nap (a holder that runs is done within a few us), and how
   long that is. A nap leaves the CPU to the holder and to the worker whose turn it is;
   to yield instead leaves it to others that wait, for a slice of some ms each. */
#define SPINS_BEFORE_NAP 200
#define NAP_NS 50000
/* Yields of the worker whose turn it is before it naps once: it may not oversleep. */
#define YIELDS_A_NAP 15
/* Wait after which a worker asks for the turn. Shorter ones are more even, and cost
   more changes from worker to worker. */
#define PATIENCE_NS 500000u
/* The same of a worker whose other threads keep the GIL: others wait for these too. */
#define PATIENCE_WITHOUT_GIL_NS 5000000u
/* How long the others stay outside for a worker whose turn it is. It needs some us once
   all are outside, but the system may take it, or a reader inside, off its CPU. */
#define TURN_NS 8000000u
/* Longer than a worker needs to get the GIL back when no other thread of it runs. */
#define GIL_NS 1000000u
/* What one look at the lock adds to a wait, at most: a nap and being woken. Of a longer
   time between two looks the system gave this worker's CPU to others, so that it says
   nothing about the holder. */
#define LOOK_NS 200000u

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

/* Gives the turn to the worker that waits for longest, if it is due. Here, for that worker
   may have no CPU: it gets one when those that have one stay outside. */
static inline void give_turn(const handle_t *h) {
    lock_t lock = look_at_lock(h);
    uint32_t first = 0;
    uint64_t due = clock_ns();
    if (lock.turn != 0) return;
    for (uint32_t i = 0; i < h->workers; i++) {
        uint64_t its_due = load_relaxed(&h->readers[i].turn_due_ns);
        if (its_due != 0 && its_due < due && 1 + i != h->mine) {
            due = its_due;
            first = 1 + i;
        }
    }
    if (first == 0 || !change_lock(h, lock, lock_of(lock.writer, first))) return;
    /* If it has stopped waiting meanwhile, it or we see that it has the turn. */
    if (load_seq_cst(&h->readers[first - 1].turn_due_ns) == 0)
        release_if_owner(&h->store->lock.turn, first);
}

/* The worker is inside, and it was not its turn. */
static inline void count_hold(const handle_t *h) {
    if (unlikely_so(++h->my_reader->holds % HOLDS_A_LOOK == 0)) give_turn(h);
}

static inline int try_read(const handle_t *h) {
    add_seq_cst(&h->my_reader->readers, 1);
    lock_t lock = look_at_lock(h);
    if (lock.both == 0) {
        count_hold(h);
        return 1;
    }
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
            store_relaxed(&h->store->acquired, h->store->acquired + 1);
            if (turn)
                end_turn(h);
            else
                count_hold(h);
            return 1;
        }
        spin_hint();
    }
    release_write(h);
    return 0;
}

/* How long a wait may be, in ns of looks at the lock (LOOK_NS). */
typedef struct {
    uint64_t whole;
    /* While nobody takes the write lock and a process is stopped that is waited for. */
    uint64_t for_stopped;
} patience_t;

/* One wait for the lock, from the first try to the last. */
typedef struct {
    uint64_t began; /* CLOCK_MONOTONIC, ns; 0: not yet */
    uint64_t turn_due; /* when this worker may have the turn */
    uint64_t looked; /* the last time */
    uint64_t ended; /* the last wait_for_lock */
    uint64_t waited; /* ns of looks, */
    uint64_t unmoved; /* and of those since somebody took the write lock */
    uint64_t turn_began; /* since when `turn` and `acquired` are as they are, and nobody inside */
    uint32_t turn;
    uint32_t acquired;
} wait_t;

static inline void pause_a_little(uint32_t *spins, int my_turn) {
    *spins += 1;
    if (*spins < SPINS_BEFORE_NAP)
        spin_hint();
    else if (my_turn && *spins % (YIELDS_A_NAP + 1))
        sched_yield();
    else
        nap_ns(NAP_NS);
}

/* Whether a process is stopped, by SIGSTOP or a debugger: it does not go on by itself. One
   that is dead counts as one that may: its parent frees what it held, in some 10 ms. */
static inline int is_suspended(uint32_t pid) {
    char text[256];
    int file;
    ssize_t size;
    snprintf(text, sizeof(text), "/proc/%u/stat", pid);
    file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    size = read(file, text, sizeof(text) - 1);
    close(file);
    if (size <= 0) return 0;
    text[size] = 0;
    /* "pid (name) state ...": the name may hold anything, brackets too. */
    const char *name_end = strrchr(text, ')');
    return name_end != NULL && name_end[1] == ' ' && (name_end[2] == 'T' || name_end[2] == 't');
}

/* Whether the worker that is waited for is stopped: the holder of the write lock, the
   one whose turn it is, or a reader. Damage may have left the number of no worker. */
static inline int is_stopped(const handle_t *h, lock_t lock) {
    uint32_t worker = lock.writer;
    if (worker == 0 && lock.turn != h->mine) worker = lock.turn;
    for (uint32_t i = 0; worker == 0 && i < h->workers; i++)
        if (load_relaxed(&h->readers[i].readers) != 0) worker = 1 + i;
    if (worker == 0) return 0; /* it has left just now */
    if (worker > h->workers) return 1;
    uint32_t pid = load_relaxed(&h->readers[worker - 1].pid);
    return pid == 0 || is_suspended(pid);
}

/* Counts a look; whether the wait was in vain. */
static inline int is_in_vain(const handle_t *h, wait_t *wait, lock_t lock, uint64_t now,
                             patience_t patience) {
    uint64_t looked = now - wait->looked < LOOK_NS ? now - wait->looked : LOOK_NS;
    uint32_t acquired = load_relaxed(&h->store->acquired);
    wait->looked = now;
    wait->waited += looked;
    wait->unmoved += looked;
    if (acquired != wait->acquired) {
        wait->acquired = acquired;
        wait->turn_began = now;
        wait->unmoved = 0;
    }
    if (wait->waited > patience.whole) return 1;
    if (wait->unmoved <= patience.for_stopped) return 0;
    wait->unmoved = 0;
    return is_stopped(h, lock);
}

/* Looks after whose turn it is, for a worker that waits. */
static inline void see_to_the_turn(const handle_t *h, wait_t *wait, lock_t lock, uint64_t now) {
    if (load_relaxed(&h->my_reader->turn_due_ns) == 0)
        store_seq_cst(&h->my_reader->turn_due_ns, wait->turn_due);
    if (lock.turn == 0) {
        if (now > wait->turn_due) change_lock(h, lock, lock_of(lock.writer, h->mine));
        return;
    }
    int is_held = lock.writer != 0 && lock.writer != lock.turn;
    if (lock.turn != wait->turn || is_held) {
        wait->turn = lock.turn;
        wait->turn_began = now;
    } else if (lock.turn != h->mine && lock.writer == 0 && now - wait->turn_began > TURN_NS) {
        /* Whoever stands still is given no further turn: it says anew when it waits. */
        if (lock.turn <= h->workers) store_relaxed(&h->readers[lock.turn - 1].turn_due_ns, 0);
        change_lock(h, lock, lock_of(0, h->mine));
    }
}

/* The worker waits no more. */
static inline void end_wait(const handle_t *h) {
    store_seq_cst(&h->my_reader->turn_due_ns, 0);
    end_turn(h);
}

/* Waits until the lock can be tried again; takes nothing. False: in vain.

   The caller has given up the GIL. To take the lock in here would be to
   hold it while waiting for the GIL, which another thread of this process may
   keep for as long as it likes, and all workers would wait for that thread. */
static inline int wait_for_lock(const handle_t *h, int for_write, wait_t *wait,
                                patience_t patience) {
    uint32_t spins = 0;
    if (wait->began == 0) {
        memset(wait, 0, sizeof(*wait));
        wait->began = wait->looked = wait->turn_began = clock_ns();
        wait->turn_due = wait->began + (h->my_reader->gil_is_busy ? PATIENCE_WITHOUT_GIL_NS
                                                                   : PATIENCE_NS);
        wait->acquired = load_relaxed(&h->store->acquired);
    }
    for (;;) {
        uint64_t now = clock_ns();
        lock_t lock = look_at_lock(h);
        if (is_in_vain(h, wait, lock, now, patience)) {
            end_wait(h);
            return 0;
        }
        see_to_the_turn(h, wait, lock, now);
        pause_a_little(&spins, lock.turn == h->mine);
        lock = look_at_lock(h);
        if (lock.writer == 0 && (lock.turn == 0 || lock.turn == h->mine) &&
            (!for_write || readers_gone(h))) {
            wait->ended = wait->looked = clock_ns();
            return 1;
        }
    }
}

/* The GIL is back. A worker that waits for it for long, since another thread of its own
   keeps it, asks for the turn later the next time: the others wait for that thread too. */
static inline void got_gil_back(const handle_t *h, const wait_t *wait) {
    h->my_reader->gil_is_busy = clock_ns() - wait->ended > GIL_NS;
}

/* A wait in vain is remembered: until somebody has had the write lock again, this worker
   tries it once and does not wait for it. Else a holder that is stopped costs each of
   its connections a wait of their own. */
static inline void give_up(const handle_t *h) {
    h->my_reader->acquired_then = load_relaxed(&h->store->acquired);
    h->my_reader->gave_up = 1;
}

static inline int may_wait(const handle_t *h) {
    if (!h->my_reader->gave_up) return 1;
    if (load_relaxed(&h->store->acquired) == h->my_reader->acquired_then) return 0;
    h->my_reader->gave_up = 0;
    return 1;
}

#endif
