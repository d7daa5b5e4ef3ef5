/* Layout of the store in memory, and the atomics with which it is read and written. */

#ifndef IPROTO_LAYOUT_H
#define IPROTO_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define SLOTS 1000
#define SLOT_BYTES 256

/* Room in a worker's counters: rows of functions (8 of the built-in ones, the rest
   of user functions), return codes, histogram buckets, reasons of closed connections. */
#define FUNCTIONS 256
#define CODES 32
#define BUCKETS 32
#define REASONS 32

#define WORKERS_LIMIT 1024

#define STORE_MAGIC 0x31304f544f525049ull /* "IPROTO01" in memory */
#define STORE_VERSION 2u

/* What the system writes to a disk, or loses in a crash, in one piece. */
#define PAGE_BYTES 4096

/* The states are far from each other, from all zeros and from all ones (14
   bits at least), and all in one word: damage does not make one of another,
   and no crash can tear the word from a check beside it. */
#define STATE_READ_WRITE 0x57530d65
#define STATE_READ_ONLY 0x2c0ebf8c
#define STATE_MAINTENANCE 0x0978703b

/* A slot keeps two copies. A writer fills the one that is not current and
   then stores `current` with release, so that a writer that dies at any
   instruction leaves the slot whole: the old value before that store, the
   new one after it. `current` and the copies are written only under the
   write lock. `current` is one of the two words of this slot: see
   current_word() in slots.h. `check` of a copy is its slot_hash, in stores
   that keep one.

   The size is the largest multiple of a cache line of which seven fit into a page. */
typedef struct {
    _Alignas(64) uint32_t current;
    uint32_t length[2];
    uint32_t check[2];
    uint32_t unused;
    unsigned char bytes[2][SLOT_BYTES];
} slot_t;

#define SLOTS_A_PAGE 7
#define SLOT_PAGES ((SLOTS + SLOTS_A_PAGE - 1) / SLOTS_A_PAGE)

/* One worker's side of the lock (lock.h), apart from the lines of others. Only that
   worker writes it, but for `turn_due_ns`, and when it is dead its parent, which
   recovers it. */
typedef struct {
    /* How many holders of the read lock the worker has. */
    _Alignas(128) uint32_t readers;
    /* Whether the lock was waited for in vain, and `acquired` at that time. */
    uint32_t gave_up;
    uint32_t acquired_then;
    /* Whether another thread of this process kept the GIL for long after a wait. */
    uint32_t gil_is_busy;
    /* The worker's process; 0: there is none. */
    uint32_t pid;
    /* How often it had the lock, less what wrapped around. */
    uint32_t holds;
    /* While it waits: when it may have the turn (CLOCK_MONOTONIC, ns). 0: it does not
       wait, or another has taken its turn over, for it stood still. */
    uint64_t turn_due_ns;
    uint32_t spare[24];
} reader_t;

/* One worker's own area. Only that worker writes it (its threads hold the
   GIL when they do), and when it is dead its parent, which recovers it;
   anybody may read it. The words are independent of each other, so a death
   between any two of them leaves no more than one count behind. A scrape may
   read these plain 64-bit words at any time. */
typedef struct {
    _Alignas(64) uint64_t opened;
    uint64_t bytes_in;
    uint64_t bytes_out;
    uint64_t closed[REASONS];
    uint64_t requests[FUNCTIONS][CODES];
    uint64_t buckets[FUNCTIONS][BUCKETS];
    uint64_t nanoseconds[FUNCTIONS];
    /* The worker's event loop: lateness of its timers, tasks that run now,
       and when it last ran at all (CLOCK_MONOTONIC, ns). */
    uint64_t lag_buckets[BUCKETS];
    uint64_t lag_nanoseconds;
    uint64_t tasks;
    uint64_t alive_ns;
    /* Log lines that had no room. */
    uint64_t dropped_lines;
    uint64_t spare[65];
} worker_t;

/* The write side of the lock, and whose turn it is; see lock.h. Both are 0 or 1 + the
   index of a worker. One access takes both in. */
typedef union {
    struct {
        uint32_t writer;
        uint32_t turn;
    };
    uint64_t both;
} lock_t;

/* First page of the store. The slots follow, then the workers' sides of the lock, then
   their areas, so that slots stay in their places when the number of workers changes.
   Everything above `lock` is written once, before the store is used, and then only
   read, and only by a process that attaches. `spare` is zeros. */
typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t slots;
    uint32_t slot_bytes;
    uint32_t workers;
    uint64_t size;
    /* 1 if the slots' copies have their hashes: the store is in a file. */
    uint32_t checked;
    _Alignas(64) lock_t lock;
    /* How often the write lock was taken; its holder adds 1. */
    uint32_t acquired;
    /* State of the storage; written only under the write lock. */
    _Alignas(64) uint32_t state;
    /* How far a storage engine outside has come; 0 without one. Written only under the
       write lock. */
    uint64_t applied_revision;
    uint64_t applied_version;
    _Alignas(64) unsigned char spare[PAGE_BYTES - 192];
} store_t;

_Static_assert(sizeof(store_t) == PAGE_BYTES, "the slots begin at the second page");
_Static_assert(sizeof(slot_t) * SLOTS_A_PAGE <= PAGE_BYTES, "no slot is on two pages");
_Static_assert(sizeof(reader_t) == 128, "two lines each, for processors fetch lines in pairs");
/* So that the same counters of many workers are not in the same set of a cache. */
_Static_assert(sizeof(worker_t) / 64 % 2 == 1, "areas are an odd number of cache lines");

#define SLOTS_SIZE ((size_t)SLOT_PAGES * PAGE_BYTES)

/* Of a store's memory: no part of it wants more. */
#define STORE_ALIGNMENT 128
_Static_assert(_Alignof(store_t) <= STORE_ALIGNMENT && _Alignof(reader_t) == STORE_ALIGNMENT &&
                   (sizeof(store_t) + SLOTS_SIZE) % STORE_ALIGNMENT == 0,
               "every part is aligned");

static inline size_t store_size(uint32_t workers) {
    return sizeof(store_t) + SLOTS_SIZE + workers * (sizeof(reader_t) + sizeof(worker_t));
}

/* Where a slot is, in bytes behind the first one: index * PAGE_BYTES / SLOTS_A_PAGE, down
   to a cache line. Right for all of SLOTS; tests look at each. */
static inline uint32_t slot_place(uint32_t index) {
    return (index * ((PAGE_BYTES * 1024u + SLOTS_A_PAGE - 1) / SLOTS_A_PAGE) >> 10) & ~63u;
}

/* A store as one process uses it: where its parts are, and what is fixed since
   it was attached. None of it is read from shared memory again. */
typedef struct {
    store_t *store;
    char *slots;
    reader_t *readers;
    worker_t *areas;
    reader_t *my_reader; /* this worker's side of the lock */
    worker_t *me; /* this worker's area */
    uint32_t mine; /* 1 + its index: what `lock` says while it holds it */
    uint32_t workers;
    size_t size;
    uint32_t checked;
} handle_t;

/* The caller has checked that the store is one for this many workers. */
static inline handle_t attach(store_t *store, uint32_t workers, uint32_t worker, int checked) {
    handle_t handle;
    handle.store = store;
    handle.slots = (char *)store + sizeof(store_t);
    handle.readers = (reader_t *)(handle.slots + SLOTS_SIZE);
    handle.areas = (worker_t *)(handle.readers + workers);
    handle.my_reader = handle.readers + worker;
    handle.me = handle.areas + worker;
    handle.mine = 1 + worker;
    handle.workers = workers;
    handle.size = store_size(workers);
    handle.checked = checked != 0;
    return handle;
}

static inline slot_t *slot_at(const handle_t *h, uint32_t index) {
    return (slot_t *)(h->slots + slot_place(index));
}

#define unlikely_so(x) __builtin_expect(!!(x), 0)

#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_seq_cst(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store_seq_cst(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define add_seq_cst(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define sub_release(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELEASE)

#endif
