/* Layout of the store in memory, and the atomics with which it is read and written. */

#ifndef IPROTO_LAYOUT_H
#define IPROTO_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#define SLOTS 1000
#define SLOT_BYTES 256

/* Rows of the counters: 8 of the built-in functions, the rest of user functions. */
#define FUNCTIONS 64
#define CODES 12
#define BUCKETS 16
#define REASONS 12

#define STORE_MAGIC 0x31304f544f525049ull /* "IPROTO01" in memory */
#define STORE_VERSION 1u

/* The states are far from each other, from all zeros and from all ones (14
   bits at least), and all in one word: damage does not make one of another,
   and no crash can tear the word from a check beside it. */
#define STATE_READ_WRITE 0x57530d65
#define STATE_READ_ONLY 0x2c0ebf8c
#define STATE_MAINTENANCE 0x0978703b

/* A slot keeps two copies. A writer fills the one that is not current and
   then flips `current` with one release store, so that a writer that dies
   at any instruction leaves the slot whole: the old value before the flip,
   the new one after it. `current` and the copies are written only under
   the write lock. `current` is 0 or all ones, for the reason above.
   `check` of a copy is its slot_hash, in stores that keep one. */
typedef struct {
    uint32_t current;
    uint32_t length[2];
    uint32_t check[2];
    uint32_t unused;
    unsigned char bytes[2][SLOT_BYTES];
} slot_t;

/* One worker's own area. Only that worker writes it (its threads hold the
   GIL when they do, `readers` apart), and when it is dead its parent, which
   recovers it; anybody may read it. The words are independent of each other,
   so a death between any two of them leaves no more than one count behind. */
typedef struct {
    /* Read side of the lock; see lock.h. Alone on its cache line, so that
       readers on different workers do not write the same one. */
    _Alignas(64) uint32_t readers;
    /* Counters: plain 64-bit words, which a scrape may read at any time. */
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
} worker_t;

/* First page of the store; the slots follow, and then the workers' areas,
   so that slots stay in their places when the number of workers changes.
   Everything above `writer` is written once, before the store is used, and
   then only read. */
typedef struct {
    uint64_t magic;
    uint32_t version;
    uint32_t slots;
    uint32_t slot_bytes;
    uint32_t workers;
    uint64_t size;
    /* 1 if the slots' copies have their hashes: the store is in a file. */
    uint32_t checked;
    /* Write side of the lock: 0, or 1 + the index of the holding worker. */
    _Alignas(64) uint32_t writer;
    /* State of the storage; written only under the write lock. */
    _Alignas(64) uint32_t state;
    _Alignas(64) unsigned char rest_of_page[4096 - 192];
} store_t;

_Static_assert(sizeof(store_t) == 4096, "the slots begin at the second page");
_Static_assert(SLOTS * sizeof(slot_t) % 64 == 0, "the areas begin at a cache line");

static inline size_t store_size(uint32_t workers) {
    return sizeof(store_t) + SLOTS * sizeof(slot_t) + workers * sizeof(worker_t);
}

static inline slot_t *slots_of(store_t *store) {
    return (slot_t *)((char *)store + sizeof(store_t));
}

/* A store as one process uses it: where its parts are, and what is fixed since
   it was attached. None of it is read from shared memory again. */
typedef struct {
    store_t *store;
    slot_t *slots;
    worker_t *areas;
    worker_t *me; /* this worker's area */
    uint32_t mine; /* 1 + its index: what `writer` says while it holds the lock */
    uint32_t workers;
    size_t size;
    uint32_t checked;
} handle_t;

static inline handle_t attach(store_t *store, uint32_t worker) {
    handle_t handle;
    handle.store = store;
    handle.slots = slots_of(store);
    handle.areas = (worker_t *)(handle.slots + SLOTS);
    handle.me = handle.areas + worker;
    handle.mine = 1 + worker;
    handle.workers = store->workers;
    handle.size = store->size;
    handle.checked = store->checked;
    return handle;
}

#define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_seq_cst(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
#define add_seq_cst(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
#define sub_release(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELEASE)

#endif
