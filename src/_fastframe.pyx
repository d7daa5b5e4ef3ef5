# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: cdivision=True, freethreading_compatible=False, auto_pickle=False
"""Frames, slots and replies: everything of iproto that must be C.

The way of the data, on the server: ``ServerFrames.receive`` takes what a socket
has received, executes every built-in frame in it against ``Storage`` and sends
all replies with one call; frames of users' own functions are left in ``calls``.
(``feed`` does the same from bytes to bytes.)
On the client: ``ClientFrames`` builds requests into one outgoing buffer and
matches a received chunk's replies to what waits for them.

Sections: constants and layout; the lock; the store; MsgPack; server; client.

A note on the GIL: all slot code is ``nogil``-clean, but is called holding the
GIL, and the lock is first *tried*; the GIL is released only when the lock is
contended. (A release around each operation halves the throughput, and beside
one busy Python thread divides it by 300: each re-acquire can wait a switch
interval of 5 ms.)
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport (
    PyBUF_SIMPLE,
    PyBUF_WRITABLE,
    PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.dict cimport PyDict_GetItem
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize, PyUnicode_DecodeUTF8
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

import mmap
import os

from iproto.errors import (
    DialectError,
    OutOfRangeError,
    OverloadedError,
    ProtocolError,
    LockedError,
    ReadOnlyError,
    TextError,
    error_from_reply,
)
from iproto.wire import CloseReason, FuncID, Header, Response, ReturnCode, State


# --- Constants and layout ------------------------------------------------------------------------

cdef extern from *:
    """
    #include <sched.h>
    #include <stdint.h>
    #include <sys/mman.h>
    #include <sys/socket.h>
    #include <string.h>
    #include <time.h>

    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* macOS; Python ignores SIGPIPE anyway */
    #endif

    #define SLOTS 1000
    #define SLOT_BYTES 256

    /* Rows of the counters: 8 of our own, the rest for users' functions. */
    #define FUNCTIONS 64
    #define CODES 12
    #define BUCKETS 16
    #define REASONS 12

    #define STORE_MAGIC 0x31304f544f525049ull  /* "IPROTO01" in memory */
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
       GIL when they do, `readers` apart), and when it is dead whoever recovers
       it; anybody may read it. The words are independent of each other, so a
       death between any two of them leaves no more than one count behind. */
    typedef struct {
        /* Read side of the lock; see "The lock". Alone on its cache line, so
           that readers on different workers do not write the same one. */
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

    #define load_relaxed(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define load_seq_cst(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define add_seq_cst(p, v) __atomic_fetch_add((p), (v), __ATOMIC_SEQ_CST)
    #define sub_release(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELEASE)

    static inline int claim_seq_cst(uint32_t *word, uint32_t mine) {
        uint32_t nobody = 0;
        return __atomic_compare_exchange_n(word, &nobody, mine, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }

    static inline int take_back(uint32_t *word, uint32_t whose) {
        return __atomic_compare_exchange_n(word, &whose, 0, 0, __ATOMIC_SEQ_CST,
                                           __ATOMIC_RELAXED);
    }

    static inline void spin_hint(void) {
    #if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
    #elif defined(__aarch64__)
        __asm__ __volatile__("yield");
    #endif
    }

    /* memcpy through libc: where the compiler knows that the size is at most a
       few hundred it may put "rep movs" in place, which takes long to begin. */
    static inline void copy(void *to, const void *from, size_t size) {
    #if defined(__GNUC__)
        __asm__("" : "+r"(size));
    #endif
        memcpy(to, from, size);
    }

    /* Hash of one copy of a slot: its place, its length, its bytes, 8 at a time.
       It has to notice damage (a page that was not written, bytes that flipped,
       a slot in another's place), not to resist somebody who wants to deceive
       it: who can write the file can write its hashes. Each step is a bijection
       of the state and of the word taken in, so that no change of one word is
       lost on the way; any other goes unnoticed once in 2^32. Zeros do not hash
       to zero, so that a slot that was wiped is noticed. */
    static inline uint32_t slot_hash(uint32_t index, const unsigned char *bytes,
                                     uint32_t length) {
        const uint64_t odd = 0x9e3779b97f4a7c15ull;
        uint64_t state = ((uint64_t)length << 32 | index) * odd + odd;
        uint64_t word;
        for (; length >= 8; length -= 8, bytes += 8) {
            __builtin_memcpy(&word, bytes, 8);
            state = (state ^ word) * odd;
            state ^= state >> 29;
        }
        word = 0;
        copy(&word, bytes, length);
        state = (state ^ word) * odd;
        return (uint32_t)(state >> 32);
    }

    static inline uint64_t clock_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
    }

    static inline void nap_ns(long ns) {
        struct timespec nap = {0, ns};
        nanosleep(&nap, 0);
    }

    /* Loads and stores of integers as the wire has them; memcpy, for a frame
       may start at any address. */
    static inline uint32_t load_le32(const unsigned char *p) {
        uint32_t v;
        __builtin_memcpy(&v, p, 4);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        v = __builtin_bswap32(v);
    #endif
        return v;
    }
    static inline void store_le32(unsigned char *p, uint32_t v) {
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        v = __builtin_bswap32(v);
    #endif
        __builtin_memcpy(p, &v, 4);
    }
    static inline uint64_t load_be(const unsigned char *p, int bytes) {
        uint64_t v = 0;
        for (int i = 0; i < bytes; i++) v = v << 8 | p[i];
        return v;
    }
    /* The body of a read that is one int in its shortest form, as nearly all
       are: in one look. -1: it is something else. */
    static inline int64_t short_uint(const unsigned char *p, uint32_t size) {
        if (size == 3 && p[0] == 0xCD) return p[1] << 8 | p[2];
        if (size == 1 && p[0] < 0x80) return p[0];
        if (size == 2 && p[0] == 0xCC) return p[1];
        return -1;
    }
    static inline void store_be(unsigned char *p, uint64_t v, int bytes) {
        for (int i = bytes - 1; i >= 0; i--, v >>= 8) p[i] = (unsigned char)v;
    }
    """
    enum:
        SLOTS
        SLOT_BYTES
        FUNCTIONS
        CODES
        BUCKETS
        REASONS
        STORE_VERSION
        STATE_READ_WRITE
        STATE_READ_ONLY
        STATE_MAINTENANCE
        MS_SYNC
        MSG_DONTWAIT
        MSG_NOSIGNAL
    const uint64_t STORE_MAGIC

    ctypedef struct slot_t:
        uint32_t current
        uint32_t length[2]
        uint32_t check[2]
        unsigned char bytes[2][256]

    ctypedef struct worker_t:
        uint32_t readers
        uint64_t opened
        uint64_t bytes_in
        uint64_t bytes_out
        uint64_t closed[12]
        uint64_t requests[64][12]
        uint64_t buckets[64][16]
        uint64_t nanoseconds[64]
        uint64_t lag_buckets[16]
        uint64_t lag_nanoseconds
        uint64_t tasks
        uint64_t alive_ns

    ctypedef struct store_t:
        uint64_t magic
        uint32_t version
        uint32_t slots
        uint32_t slot_bytes
        uint32_t workers
        uint64_t size
        uint32_t checked
        uint32_t writer
        uint32_t state

    ssize_t recv(int fd, void *data, size_t size, int flags) noexcept nogil
    ssize_t send(int fd, const void *data, size_t size, int flags) noexcept nogil
    uint32_t load_relaxed(uint32_t *word) noexcept nogil
    uint64_t load_counter "load_relaxed"(uint64_t *word) noexcept nogil
    uint32_t load_seq_cst(uint32_t *word) noexcept nogil
    void store_release(uint32_t *word, uint32_t value) noexcept nogil
    uint32_t add_seq_cst(uint32_t *word, uint32_t value) noexcept nogil
    uint32_t sub_release(uint32_t *word, uint32_t value) noexcept nogil
    bint claim_seq_cst(uint32_t *word, uint32_t mine) noexcept nogil
    bint take_back(uint32_t *word, uint32_t whose) noexcept nogil
    int msync(void *start, size_t size, int flags) noexcept nogil
    uint32_t slot_hash(uint32_t index, const uint8_t *bytes, uint32_t length) noexcept nogil
    void spin_hint() noexcept nogil
    void sched_yield() noexcept nogil
    uint64_t clock_ns() noexcept nogil
    void nap_ns(long ns) noexcept nogil
    uint32_t load_le32(const uint8_t *p) noexcept nogil
    void store_le32(uint8_t *p, uint32_t value) noexcept nogil
    uint64_t load_be(const uint8_t *p, int width) noexcept nogil
    int64_t short_uint(const uint8_t *p, uint32_t size) noexcept nogil
    void copy(void *to, const void *frm, size_t size) noexcept nogil
    void store_be(uint8_t *p, uint64_t value, int width) noexcept nogil


# The wire's numbers as C constants; tests hold them against iproto.wire.
cdef enum:
    SWITCH_READONLY = 0x00010001
    SWITCH_READWRITE = 0x00010002
    SWITCH_MAINTENANCE = 0x00010003
    REPLACE = 0x00020001
    READ = 0x00020002
    PING = 0x0000FF00
    SHUTDOWN = 0x0000FF01

cdef enum:
    HEADER_BYTES = 12
    OK = 0x0000
    ILLEGAL_PARAMS = 0x0202
    READ_ONLY_CODE = 0x0401
    LOCKED = 0x0601
    OVERLOADED = 0x0701
    UNSUPPORTED_COMMAND = 0x0A02
    NUMBER_OUT_OF_RANGE = 0x1F02

# States as they stand in the store.
cdef enum:
    READ_WRITE = STATE_READ_WRITE
    READ_ONLY = STATE_READ_ONLY
    MAINTENANCE = STATE_MAINTENANCE

cdef dict STATE_OF = {
    READ_WRITE: State.READ_WRITE,
    READ_ONLY: State.READ_ONLY,
    MAINTENANCE: State.MAINTENANCE,
}
cdef dict WORD_OF = {state: word for word, state in STATE_OF.items()}

# Rows of the per-function counters; row FIRST_USER and later are users' own.
cdef enum:
    ROW_SWITCH_READONLY = 0
    ROW_SWITCH_READWRITE = 1
    ROW_SWITCH_MAINTENANCE = 2
    ROW_REPLACE = 3
    ROW_READ = 4
    ROW_PING = 5
    ROW_SHUTDOWN = 6
    ROW_UNKNOWN = 7
    FIRST_USER = 8

ROWS = (
    FuncID.ADM_STORAGE_SWITCH_READONLY,
    FuncID.ADM_STORAGE_SWITCH_READWRITE,
    FuncID.ADM_STORAGE_SWITCH_MAINTENANCE,
    FuncID.STORAGE_REPLACE,
    FuncID.STORAGE_READ,
    FuncID.PING,
    FuncID.SHUTDOWN,
)
ROW_OF_UNKNOWN = ROW_UNKNOWN
FIRST_USER_ROW = FIRST_USER
ROW_COUNT = FUNCTIONS

# Columns of `requests`: the known return codes in this order, then all others.
CODE_COLUMNS = tuple(ReturnCode)
cdef dict COLUMN_OF = {int(code): column for column, code in enumerate(CODE_COLUMNS)}
cdef int COLUMN_OTHER = len(CODE_COLUMNS)
assert COLUMN_OTHER < CODES and len(CloseReason) <= REASONS

# Columns that the hot path bumps, looked up once.
cdef int COLUMN_OK = COLUMN_OF[0x0000]
cdef int COLUMN_ILLEGAL = COLUMN_OF[0x0202]
cdef int COLUMN_READ_ONLY = COLUMN_OF[0x0401]
cdef int COLUMN_LOCKED = COLUMN_OF[0x0601]
cdef int COLUMN_OVERLOADED = COLUMN_OF[0x0701]
cdef int COLUMN_UNSUPPORTED = COLUMN_OF[0x0A02]
cdef int COLUMN_RANGE = COLUMN_OF[0x1F02]

# Upper bounds of the service-time histogram, in ns. A built-in frame takes
# some 50 ns, a chunk of thousands a fraction of a ms; users' functions seconds.
cdef uint64_t[BUCKETS - 1] BOUNDS
BOUNDS[:] = [
    5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 100_000_000,
    1_000_000_000, 10_000_000_000, 60_000_000_000,
]
BUCKET_BOUNDS = tuple(BOUNDS[i] / 1e9 for i in range(BUCKETS - 1))

# Tunables, each with its unit and reason.
cdef enum:
    # Bytes of replies built in one call. Bounds the time that one greedy
    # connection holds the loop (some 100 us) and the memory behind a slow reader.
    OUTPUT_LIMIT = 256 * 1024
    # Bytes that one call reads from a socket. Larger reads cost fewer system
    # calls and less of the processor's cache; at 256 KiB both are in balance.
    RECEIVE_LIMIT = 256 * 1024
    # Reads in one call while they bring nothing to answer; see receive().
    RECEIVE_TRIES = 8
    # Bytes of the longest reply of a built-in function: header, return_code,
    # MsgPack head, and a slot or an error text (ERROR_TEXT at most).
    REPLY_LIMIT = 512
    ERROR_TEXT = 240
    # Frames executed under one hold of the lock. Taking it costs about half of
    # a slot read; 64 frames hold it for some 3 us, which is what a writer waits.
    FRAMES_A_HOLD = 64
    # Reads after a write that are made under its lock: to let go of it for each run of
    # reads costs more than they do, where writes come often.
    READS_A_WRITE = 16
    # Tries of the lock before the GIL is given up (about 1 us), and before the
    # CPU is (a holder that runs is done within a few us).
    SPINS_WITH_GIL = 64
    # Looks at the readers while claiming the write lock: some us, as long as a
    # reader holds it.
    SPINS_WITH_CLAIM = 256
    SPINS_BEFORE_NAP = 200
    NAP_NS = 50_000
    # Longest wait for the lock; then the request is answered OVERLOADED. A
    # holder needs microseconds, so only a stopped process is waited for so long.
    LOCK_WAIT_NS = 1_000_000_000


# --- The lock ------------------------------------------------------------------------------------
#
# A read-write lock that works between threads and between processes.
#
#   readers (one word a worker)   how many holders of the read lock that worker has.
#                                 Written by that worker only.
#   writer (one word a store)     0, or 1 + the index of the worker that holds or
#                                 claims the write lock.
#
# A reader adds 1 to its own word, then looks at `writer`; a writer claims
# `writer`, then looks at every `readers`. All four are sequentially consistent,
# so of a reader and a writer that come at once at least one sees the other: a
# reader that sees a writer takes its 1 back and waits; a writer that sees
# readers keeps its claim for some microseconds, which stops new ones while
# these leave, and takes it back if they do not, to wait and try again.
# Both leave with a release store, which the next holder's look acquires.
#
# When a holder dies: its parent, which knows by wait() that it is dead, sets
# its `readers` to 0 and takes `writer` back if it names the dead worker
# (Storage.recover). No slot needs mending; see slot_t. In one process there is
# nobody left to see the lock, so nothing is needed there.

cdef bint try_read(store_t* store, worker_t* me) noexcept nogil:
    add_seq_cst(&me.readers, 1)
    if load_seq_cst(&store.writer) == 0:
        return True
    sub_release(&me.readers, 1)
    return False


cdef bint readers_gone(store_t* store, worker_t* workers) noexcept nogil:
    cdef uint32_t i
    for i in range(store.workers):
        if load_seq_cst(&workers[i].readers) != 0:
            return False
    return True


cdef bint try_write(store_t* store, worker_t* workers, uint32_t mine) noexcept nogil:
    cdef int _spin
    if not claim_seq_cst(&store.writer, mine):
        return False
    # The claim stops new readers, and those that are inside leave within
    # microseconds, unless the system has stopped one of them just there.
    for _spin in range(SPINS_WITH_CLAIM):
        if readers_gone(store, workers):
            return True
        spin_hint()
    store_release(&store.writer, 0)
    return False


cdef void pause(uint32_t* spins) noexcept nogil:
    spins[0] += 1
    if spins[0] < SPINS_BEFORE_NAP:
        spin_hint()
    elif spins[0] % 16:
        sched_yield()
    else:
        nap_ns(NAP_NS)


cdef void wait_for_writer(store_t* store, uint64_t deadline) noexcept nogil:
    """Waits until the lock looks as if it could be had; takes nothing.

    Whoever waits has given up the GIL. To take the lock in here would be to
    hold it while waiting for the GIL, which another thread of this process may
    keep for as long as it likes, and all workers would wait for that thread.
    """
    cdef uint32_t spins = 0
    pause(&spins)
    while load_relaxed(&store.writer) != 0 and clock_ns() < deadline:
        pause(&spins)


# --- The store -----------------------------------------------------------------------------------

cdef size_t store_size(uint32_t workers) noexcept nogil:
    return sizeof(store_t) + SLOTS * sizeof(slot_t) + workers * sizeof(worker_t)


@cython.final
cdef class Storage:
    """1000 slots and a state, over a buffer, behind a read-write lock.

    Args:
        buffer: writable memory of at least ``Storage.size_for(workers)`` bytes,
            aligned to 64 bytes (an ``mmap`` is): zeros, which are laid out
            anew, or a store of this version, which is attached. The memory is
            kept alive. None: anonymous memory of its own.
        workers: worker areas in the store, 1..1024; must match on attaching.
        worker: index of the area that this object counts and locks in.
        checked: whether a store that is laid out anew keeps a hash of each
            slot, by which ``check`` notices damage later. A write takes some
            20 ns more for it.

    Raises:
        ValueError: the buffer is too small, misaligned, or holds something else.
    """

    cdef store_t* store
    cdef worker_t* areas
    cdef worker_t* me
    cdef slot_t* slots
    cdef uint32_t mine
    cdef Py_buffer view
    cdef bint has_view
    # Where replies are built (OUTPUT_LIMIT plus one reply), and behind it where
    # chunks are received: shared by all connections, and so warm in the cache.
    # Taken while in use: a thread that gives up the GIL to wait for the lock
    # must not see another work in it.
    cdef uint8_t* scratch
    cdef bint scratch_taken
    # Counter row → name, of the users' functions that were given one.
    cdef readonly dict row_names

    def __cinit__(self, buffer=None, *, int workers=1, int worker=0, bint checked=False):
        if not 1 <= workers <= 1024:
            raise ValueError(f"workers is {workers}; it must be 1..1024")
        if not 0 <= worker < workers:
            raise ValueError(f"worker is {worker}; it must be 0..{workers - 1}")
        cdef size_t needed = store_size(workers)
        if buffer is None:
            # Private: a forked child must not share the slots behind its parent's back.
            buffer = mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.has_view = True
        if <size_t>self.view.len < needed:
            raise ValueError(
                f"a store for {workers} workers takes {needed} bytes; "
                f"the buffer has {self.view.len}"
            )
        if <size_t>self.view.buf % 64:
            raise ValueError("the buffer must be aligned to 64 bytes, as an mmap is")
        self.store = <store_t*>self.view.buf
        self.slots = slots_of(self.store)
        self.areas = <worker_t*>(self.slots + SLOTS)
        self.me = self.areas + worker
        self.mine = 1 + worker
        self.row_names = {}
        if self.store.magic == 0:
            self.store.version = STORE_VERSION
            self.store.slots = SLOTS
            self.store.slot_bytes = SLOT_BYTES
            self.store.workers = workers
            self.store.size = needed
            self.store.checked = checked
            self.store.state = READ_WRITE
            if checked:
                for i in range(SLOTS):
                    self.slots[i].check[0] = slot_hash(i, self.slots[i].bytes[0], 0)
            self.store.magic = STORE_MAGIC
        check_header(self.store, self.view.len)
        check_heads(self.store)
        if self.store.workers != <uint32_t>workers:
            raise ValueError(
                f"the store was made for {self.store.workers} workers; expected {workers}"
            )
        self.scratch = <uint8_t*>malloc(OUTPUT_LIMIT + REPLY_LIMIT + RECEIVE_LIMIT)
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)
        if self.has_view:
            PyBuffer_Release(&self.view)

    @staticmethod
    def size_for(int workers=1):
        """Bytes that a store for so many workers takes; for 0, those before their areas."""
        return store_size(workers)

    @staticmethod
    def check(buffer):
        """Checks a store that nobody uses, and that was made ``checked``.

        Args:
            buffer: what ``Storage`` takes; the workers' areas may be missing.

        Returns:
            How many worker areas it was made with, and its state.

        Raises:
            ValueError: it is no store of this version, or damaged; the text says
                where. The copies of slots that are not current do not count.
        """
        cdef Py_buffer view
        cdef store_t* store
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            store = checked_store(&view)
            check_heads(store)
            check_slots(store)
            return store.workers, STATE_OF[store.state]
        finally:
            PyBuffer_Release(&view)

    @staticmethod
    def repair(buffer):
        """Makes every slot whole in a store that nobody uses, and that was made ``checked``.

        A slot whose current copy is damaged gets its other copy, if that is whole, and
        is empty otherwise. All else stays as it is.

        Args:
            buffer: as for ``check``; it must be writable.

        Returns:
            For each slot that was damaged its index, and how many bytes the copy has
            that it got; None if it is empty now.

        Raises:
            ValueError: it is no store of this version, or damaged elsewhere.
        """
        cdef Py_buffer view
        cdef store_t* store
        cdef slot_t* slots
        cdef uint32_t i
        cdef int whole
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            store = checked_store(&view)
            slots = slots_of(store)
            damaged = []
            for i in range(SLOTS):
                if has_head(&slots[i]) and is_whole(&slots[i], i, slots[i].current & 1):
                    continue
                whole = whole_copy(&slots[i], i)
                if whole < 0:
                    memset(&slots[i], 0, sizeof(slot_t))
                    slots[i].check[0] = slot_hash(i, slots[i].bytes[0], 0)
                    damaged.append((i, None))
                else:
                    slots[i].current = <uint32_t>-whole
                    damaged.append((i, slots[i].length[whole]))
            return damaged
        finally:
            PyBuffer_Release(&view)

    def flush(self):
        """Waits until the memory is in the file that it is mapped from, if it is.

        Raises:
            OSError: the system cannot; EINVAL if the memory does not begin at a page.
        """
        cdef int failed
        with nogil:
            failed = msync(self.store, self.store.size, MS_SYNC)
        if failed:
            raise OSError(errno, os.strerror(errno))

    def read(self, index):
        """The bytes of a slot.

        Args:
            index: 0..999.

        Raises:
            OutOfRangeError: no such slot.
            LockedError: the storage is in MAINTENANCE.
            OverloadedError: the lock was not to be had within a second.
        """
        cdef int i = self._index(index)
        cdef uint8_t[SLOT_BYTES] copy
        cdef uint32_t length = 0
        if not self.lock_read():
            raise OverloadedError(LOCK_TEXT.decode())
        cdef uint32_t state = load_relaxed(&self.store.state)
        if state != MAINTENANCE:
            length = slot_length(&self.slots[i])
            memcpy(copy, slot_bytes(&self.slots[i]), length)
        self.unlock_read()
        if state == MAINTENANCE:
            raise LockedError(MAINTENANCE_TEXT.decode())
        return PyBytes_FromStringAndSize(<char*>copy, length)

    def replace(self, index, bytes content not None):
        """Writes a slot.

        Args:
            index: 0..999.
            content: at most 256 bytes.

        Raises:
            OutOfRangeError: no such slot.
            ValueError: the content is too long.
            ReadOnlyError, LockedError: the state forbids it.
            OverloadedError: the lock was not to be had within a second.
        """
        cdef int i = self._index(index)
        if len(content) > SLOT_BYTES:
            raise ValueError(f"string of {len(content)} bytes is over the limit of {SLOT_BYTES}")
        if not self.lock_write():
            raise OverloadedError(LOCK_TEXT.decode())
        cdef uint32_t state = load_relaxed(&self.store.state)
        if state == READ_WRITE:
            slot_write(self.store, self.slots, i, <const uint8_t*>PyBytes_AS_STRING(content),
                       <uint32_t>PyBytes_GET_SIZE(content))
        self.unlock_write()
        if state == READ_ONLY:
            raise ReadOnlyError(READ_ONLY_TEXT.decode())
        if state == MAINTENANCE:
            raise LockedError(MAINTENANCE_TEXT.decode())

    @property
    def state(self):
        """State of the storage. Once a switch has returned, no operation that it
        forbids succeeds any more, on any connection."""
        return STATE_OF[load_seq_cst(&self.store.state)]

    def switch(self, state):
        """Switches the state; works in every state.

        Raises:
            ValueError: not a state.
            OverloadedError: the lock was not to be had within a second.
        """
        cdef uint32_t wanted = WORD_OF[State(state)]
        if not self.lock_write():
            raise OverloadedError(LOCK_TEXT.decode())
        store_release(&self.store.state, wanted)
        self.unlock_write()

    def recover(self, worker):
        """Frees what a worker that is dead left locked, and closes its connections' books.

        Call it only when the system has said that the worker is dead: it
        writes the worker's own area.

        Args:
            worker: index of its area.

        Returns:
            Whether it died holding the lock.
        """
        cdef uint32_t index = self._area(worker)
        area = &self.areas[index]
        cdef bint held = load_relaxed(&area.readers) != 0
        store_release(&area.readers, 0)
        held = take_back(&self.store.writer, 1 + index) or held
        cdef uint64_t closed = 0
        cdef int reason
        for reason in range(REASONS):
            closed += area.closed[reason]
        cdef int killed = CloseReason.KILLED
        area.closed[killed] += area.opened - closed
        area.tasks = 0
        area.alive_ns = 0
        return held

    def beat(self, double lag, uint64_t tasks):
        """The event loop of this worker ran.

        Args:
            lag: seconds that its timer was late.
            tasks: asyncio tasks that run now.
        """
        cdef uint64_t late = <uint64_t>(lag * 1e9) if lag > 0 else 0
        self.me.lag_buckets[bucket_of(late)] += 1
        self.me.lag_nanoseconds += late
        self.me.tasks = tasks
        self.me.alive_ns = clock_ns()

    def silent_seconds(self, worker):
        """Since a worker's event loop last ran; 0.0 if it never did."""
        cdef uint64_t alive = load_counter(&self.areas[self._area(worker)].alive_ns)
        return (clock_ns() - alive) / 1e9 if alive else 0.0

    def counters(self, worker=None):
        """The counters of a worker, or the sums of all, as a dict of numbers and lists.

        ``requests[row][column]`` counts by ``ROWS`` and ``CODE_COLUMNS``,
        ``buckets[row]`` and ``lag_buckets`` by ``BUCKET_BOUNDS`` (not cumulative).

        Args:
            worker: index of the worker's area; None for the sums.
        """
        cdef uint32_t first = 0
        cdef uint32_t last = self.store.workers
        if worker is not None:
            first = self._area(worker)
            last = first + 1
        return self._counters(first, last)

    cdef dict _counters(self, uint32_t first, uint32_t last):
        area = self.areas
        return {
            "opened": self._sum(first, last, &area.opened, 1)[0],
            "bytes_in": self._sum(first, last, &area.bytes_in, 1)[0],
            "bytes_out": self._sum(first, last, &area.bytes_out, 1)[0],
            "closed": self._sum(first, last, &area.closed[0], REASONS),
            "requests": [
                self._sum(first, last, &area.requests[row][0], CODES) for row in range(FUNCTIONS)
            ],
            "buckets": [
                self._sum(first, last, &area.buckets[row][0], BUCKETS) for row in range(FUNCTIONS)
            ],
            "nanoseconds": self._sum(first, last, &area.nanoseconds[0], FUNCTIONS),
            "lag_buckets": self._sum(first, last, &area.lag_buckets[0], BUCKETS),
            "lag_nanoseconds": self._sum(first, last, &area.lag_nanoseconds, 1)[0],
            "tasks": self._sum(first, last, &area.tasks, 1)[0],
        }

    cdef list _sum(self, uint32_t first, uint32_t last, uint64_t* words, int count):
        """Sums each of so many words, which stand here in the first area, over the workers."""
        cdef list sums = []
        cdef uint64_t total
        cdef uint32_t worker
        cdef int i
        for i in range(count):
            total = 0
            for worker in range(first, last):
                total += load_counter(<uint64_t*>(<char*>(words + i) + worker * sizeof(worker_t)))
            sums.append(total)
        return sums

    def row_for(self, str name not None):
        """The counter row of users' functions of this name, the same each time it is asked.

        When the rows are used up, functions share the last one, named "other".
        """
        for row, taken in self.row_names.items():
            if taken == name:
                return row
        row = min(FIRST_USER + len(self.row_names), FUNCTIONS - 1)
        self.row_names[row] = "other" if row == FUNCTIONS - 1 else name
        return row

    def count_opened(self):
        """A connection was accepted."""
        self.me.opened += 1

    def count_closed(self, reason):
        """A connection ended, for this :class:`iproto.wire.CloseReason`."""
        cdef int column = CloseReason(reason)
        self.me.closed[column] += 1

    cdef int _index(self, index) except -1:
        index = PyNumber_Index(index)
        cdef int64_t value = as_int64(index)
        if not 0 <= value < SLOTS:
            raise OutOfRangeError(f"index {index} is outside 0..{SLOTS - 1}")
        return <int>value

    cdef int _area(self, worker) except -1:
        """Index of a worker's area."""
        cdef int64_t value = as_int64(worker)
        if not 0 <= value < self.store.workers:
            raise ValueError(f"worker is {worker}; it must be 0..{self.store.workers - 1}")
        return <int>value

    cdef bint lock_read(self) noexcept:
        cdef int _spin
        cdef uint64_t deadline = 0
        while True:
            for _spin in range(SPINS_WITH_GIL):
                if try_read(self.store, self.me):
                    return True
                spin_hint()
            if not self._wait(&deadline):
                return False

    cdef void unlock_read(self) noexcept:
        sub_release(&self.me.readers, 1)

    cdef bint lock_write(self) noexcept:
        cdef int _spin
        cdef uint64_t deadline = 0
        while True:
            for _spin in range(SPINS_WITH_GIL):
                if try_write(self.store, self.areas, self.mine):
                    return True
                spin_hint()
            if not self._wait(&deadline):
                return False

    cdef bint _wait(self, uint64_t* deadline) noexcept:
        """Gives up the GIL for a while; False when the lock was waited for long enough."""
        cdef uint64_t now = clock_ns()
        if deadline[0] == 0:
            deadline[0] = now + LOCK_WAIT_NS
        elif now > deadline[0]:
            return False
        with nogil:
            wait_for_writer(self.store, deadline[0])
        return True

    cdef void unlock_write(self) noexcept:
        store_release(&self.store.writer, 0)

    cdef uint8_t* take_scratch(self) except NULL:
        cdef uint8_t* own
        if not self.scratch_taken:
            self.scratch_taken = True
            return self.scratch
        own = <uint8_t*>malloc(OUTPUT_LIMIT + REPLY_LIMIT + RECEIVE_LIMIT)
        if own == NULL:
            raise MemoryError
        return own

    cdef void give_scratch(self, uint8_t* scratch) noexcept:
        if scratch == self.scratch:
            self.scratch_taken = False
        else:
            free(scratch)


cdef int64_t as_int64(number) except? -1:
    """An int as C has it; any that does not fit becomes INT64_MAX.

    What is checked must be what is used: the operators of a subclass of int can
    say anything. And no float is cut to an int.
    """
    number = PyNumber_Index(number)
    try:
        return number
    except OverflowError:
        return INT64_MAX


cdef slot_t* slots_of(store_t* store) noexcept nogil:
    return <slot_t*>(<char*>store + sizeof(store_t))


cdef store_t* checked_store(Py_buffer* view) except NULL:
    """The store in a buffer, of which the slots are there, and have hashes."""
    if <size_t>view.buf % 64 or <size_t>view.len < store_size(0):
        raise ValueError(
            f"a store takes at least {store_size(0)} bytes, aligned to 64; "
            f"the buffer has {view.len}"
        )
    cdef store_t* store = <store_t*>view.buf
    check_header(store, store_size(1024))
    if not store.checked:
        raise ValueError("the store keeps no hashes of its slots, so it cannot be checked")
    return store


cdef int check_header(store_t* found, size_t size) except -1:
    """Whether this is a store that fits into so many bytes; others may be at work in it."""
    if found.magic != STORE_MAGIC:
        raise ValueError("the buffer holds something that is not an iproto store")
    if found.version != STORE_VERSION:
        raise ValueError(
            f"the store has layout version {found.version}; "
            f"this program knows version {STORE_VERSION}"
        )
    if found.slots != SLOTS or found.slot_bytes != SLOT_BYTES:
        raise ValueError(
            f"the store was made for {found.slots} slots of {found.slot_bytes} bytes; "
            f"expected {SLOTS} of {SLOT_BYTES}"
        )
    if not 1 <= found.workers <= 1024 or found.size != store_size(found.workers):
        raise ValueError(
            f"the store is damaged: {found.workers} workers and {found.size} bytes "
            "do not go together"
        )
    if found.checked > 1:
        raise ValueError(f"the store is damaged: its flag for hashes is {found.checked}")
    if found.size > size:
        raise ValueError(
            f"the store was made for {found.workers} workers and takes {found.size} bytes; "
            f"the buffer has {size}"
        )
    if load_relaxed(&found.state) not in STATE_OF:
        raise ValueError(f"the store is damaged: its state is {found.state:#010x}")
    if load_relaxed(&found.writer) > found.workers:
        raise ValueError(f"the store is damaged: worker {found.writer - 1} holds its lock")
    return 0


cdef int check_heads(store_t* store) except -1:
    """Whether every slot can be read at all; others may be at work in it."""
    cdef slot_t* slots = slots_of(store)
    for i in range(SLOTS):
        if not has_head(&slots[i]):
            raise ValueError(f"the store is damaged: slot {i} has an impossible head")
    return 0


cdef int check_slots(store_t* store) except -1:
    """Whether every slot's current copy is what was written; nobody may be at work in it."""
    cdef slot_t* slots = slots_of(store)
    cdef uint32_t i
    for i in range(SLOTS):
        if not is_whole(&slots[i], i, slots[i].current & 1):
            raise ValueError(f"the store is damaged: slot {i} does not hold what was written")
    return 0


cdef bint has_head(slot_t* slot) noexcept nogil:
    cdef uint32_t current = load_relaxed(&slot.current)
    if current != 0 and current != <uint32_t>0xFFFFFFFF:
        return False
    return slot.length[current & 1] <= SLOT_BYTES


cdef bint is_whole(slot_t* slot, uint32_t index, uint32_t which) noexcept nogil:
    cdef uint32_t length = slot.length[which]
    if length > SLOT_BYTES:
        return False
    return slot.check[which] == slot_hash(index, slot.bytes[which], length)


cdef int whole_copy(slot_t* slot, uint32_t index) noexcept nogil:
    """The copy that a damaged slot can have, 0 or 1; -1 if neither is whole.

    Both may be, where only the word that says which one counts is damaged.
    """
    cdef uint32_t other = ~slot.current & 1
    if is_whole(slot, index, other):
        return <int>other
    return <int>(other ^ 1) if is_whole(slot, index, other ^ 1) else -1


cdef uint32_t slot_length(slot_t* slot) noexcept nogil:
    return slot.length[slot.current & 1]


cdef const uint8_t* slot_bytes(slot_t* slot) noexcept nogil:
    return slot.bytes[slot.current & 1]


cdef void slot_write(store_t* store, slot_t* slots, uint32_t index, const uint8_t* content,
                     uint32_t length) noexcept nogil:
    cdef slot_t* slot = &slots[index]
    cdef uint32_t next = ~slot.current
    cdef uint32_t other = next & 1
    copy(slot.bytes[other], content, length)
    slot.length[other] = length
    if store.checked:
        slot.check[other] = slot_hash(index, content, length)
    store_release(&slot.current, next)


# --- MsgPack -------------------------------------------------------------------------------------
#
# The few types that the built-in functions take. Every read goes through a
# cursor with its end, and says 0 when it succeeded.

cdef struct Cursor:
    const uint8_t* at
    const uint8_t* end


cdef inline int read_int(Cursor* c, int64_t* value) noexcept nogil:
    """An integer of any width, signed or unsigned; over int64 it saturates."""
    cdef uint8_t head
    cdef int width
    cdef uint64_t raw
    if c.at >= c.end:
        return -1
    head = c.at[0]
    if head < 0x80:
        value[0] = head
        c.at += 1
        return 0
    if head >= 0xE0:
        value[0] = <int64_t>head - 256
        c.at += 1
        return 0
    if head < 0xCC or head > 0xD3:
        return -1
    width = 1 << ((head - 0xCC) & 3)
    if c.end - c.at < 1 + width:
        return -1
    raw = load_be(c.at + 1, width)
    c.at += 1 + width
    if head >= 0xD0 and width < 8:
        value[0] = <int64_t>(raw << (64 - 8 * width)) >> (64 - 8 * width)
    elif head < 0xD0 and raw >> 63:
        value[0] = INT64_MAX
    else:
        value[0] = <int64_t>raw
    return 0


cdef inline int read_str(Cursor* c, const uint8_t** text, uint32_t* length) noexcept nogil:
    """A str of any width, whole within the cursor."""
    cdef uint8_t head
    cdef int width
    cdef uint64_t size
    if c.at >= c.end:
        return -1
    head = c.at[0]
    if 0xA0 <= head <= 0xBF:
        width = 0
        size = head & 0x1F
    elif 0xD9 <= head <= 0xDB:
        width = 1 << (head - 0xD9)
        if c.end - c.at < 1 + width:
            return -1
        size = load_be(c.at + 1, width)
    else:
        return -1
    if <uint64_t>(c.end - c.at) < 1 + width + size:
        return -1
    text[0] = c.at + 1 + width
    length[0] = <uint32_t>size
    c.at += 1 + width + size
    return 0


cdef int read_container(Cursor* c, uint8_t fix, uint8_t wide) noexcept nogil:
    """Elements of an array or map head of any width, -1 if it is not one.

    ``fix`` is the first byte of its short form (0x90 or 0x80), ``wide`` that of
    its 16-bit form (0xdc or 0xde), which the 32-bit form follows.
    """
    cdef uint8_t head
    cdef int width
    cdef uint64_t count
    if c.at >= c.end:
        return -1
    head = c.at[0]
    if head & 0xF0 == fix:
        c.at += 1
        return head & 0x0F
    if head != wide and head != wide + 1:
        return -1
    width = 2 if head == wide else 4
    if c.end - c.at < 1 + width:
        return -1
    count = load_be(c.at + 1, width)
    c.at += 1 + width
    # More than any built-in function takes is all the same to the callers.
    return <int>count if count < 16 else 16


cdef bint is_key(const uint8_t* text, uint32_t length, const char* key) noexcept nogil:
    return length == strlen(key) and memcmp(text, key, length) == 0


cdef bint decode_read(const uint8_t* body, uint32_t size, int64_t* index) noexcept nogil:
    """``int``, ``[int]`` or ``{"ID": int}``, and nothing else."""
    cdef Cursor c
    cdef const uint8_t* key
    cdef uint32_t length
    c.at = body
    c.end = body + size
    if read_int(&c, index) == 0:
        return c.at == c.end
    if read_container(&c, 0x90, 0xDC) == 1:
        return read_int(&c, index) == 0 and c.at == c.end
    c.at = body
    if read_container(&c, 0x80, 0xDE) != 1 or read_str(&c, &key, &length) != 0:
        return False
    return is_key(key, length, b"ID") and read_int(&c, index) == 0 and c.at == c.end


cdef inline bint decode_replace(const uint8_t* body, uint32_t size, int64_t* index,
                                const uint8_t** text, uint32_t* length) noexcept nogil:
    """``int str``, ``[int, str]`` or ``{"ID": int, "S": str}``, and nothing else."""
    cdef Cursor c
    cdef const uint8_t* key
    cdef uint32_t key_length
    cdef int _i
    cdef bint has_index = False, has_text = False
    c.at = body
    c.end = body + size
    if read_int(&c, index) == 0:
        return read_str(&c, text, length) == 0 and c.at == c.end
    if read_container(&c, 0x90, 0xDC) == 2:
        return (read_int(&c, index) == 0 and read_str(&c, text, length) == 0
                and c.at == c.end)
    c.at = body
    if read_container(&c, 0x80, 0xDE) != 2:
        return False
    for _i in range(2):
        if read_str(&c, &key, &key_length) != 0:
            return False
        if not has_index and is_key(key, key_length, b"ID"):
            has_index = read_int(&c, index) == 0
            if not has_index:
                return False
        elif not has_text and is_key(key, key_length, b"S"):
            has_text = read_str(&c, text, length) == 0
            if not has_text:
                return False
        else:
            return False
    return c.at == c.end


cdef inline uint32_t str_head_size(uint64_t length) noexcept nogil:
    if length < 32:
        return 1
    if length < 0x100:
        return 2
    return 3 if length < 0x10000 else 5


cdef inline uint8_t* put_str_head(uint8_t* out, uint32_t length) noexcept nogil:
    """Writes the shortest str head; returns where the text goes."""
    cdef uint32_t size = str_head_size(length)
    if size == 1:
        out[0] = <uint8_t>(0xA0 | length)
    else:
        out[0] = 0xD9 if size == 2 else 0xDA if size == 3 else 0xDB
        store_be(out + 1, length, size - 1)
    return out + size


cdef uint8_t* put_uint(uint8_t* out, uint64_t value) noexcept nogil:
    """Writes the shortest form of an integer >= 0; returns the end."""
    cdef int width
    if value < 0x80:
        out[0] = <uint8_t>value
        return out + 1
    if value < 0x100:
        width = 1
        out[0] = 0xCC
    elif value < 0x10000:
        width = 2
        out[0] = 0xCD
    elif value >> 32 == 0:
        width = 4
        out[0] = 0xCE
    else:
        width = 8
        out[0] = 0xCF
    store_be(out + 1, value, width)
    return out + 1 + width


cdef uint8_t* put_int(uint8_t* out, int64_t value) noexcept nogil:
    """Writes the shortest form of an integer; returns the end."""
    cdef int width
    if value >= 0:
        return put_uint(out, <uint64_t>value)
    if value >= -32:
        out[0] = <uint8_t>value
        return out + 1
    if value >= -0x80:
        width = 1
        out[0] = 0xD0
    elif value >= -0x8000:
        width = 2
        out[0] = 0xD1
    elif value >= -<int64_t>0x80000000:
        width = 4
        out[0] = 0xD2
    else:
        width = 8
        out[0] = 0xD3
    store_be(out + 1, <uint64_t>value, width)
    return out + 1 + width


# --- A growing buffer ----------------------------------------------------------------------------
#
# Bytes from `start` to `end`; both ends of a connection keep partial frames in
# one, and clients build requests in one. It grows by what was really received
# or built, never by what a peer claims.

cdef struct Buffer:
    uint8_t* data
    size_t start
    size_t end
    size_t capacity


cdef int reserve(Buffer* b, size_t more) except -1:
    """Makes room for so many bytes at the end."""
    cdef size_t held = b.end - b.start
    cdef size_t capacity
    cdef uint8_t* data
    if b.capacity - b.end >= more:
        return 0
    if b.start:
        memmove(b.data, b.data + b.start, held)
        b.start = 0
        b.end = held
        if b.capacity - held >= more:
            return 0
    capacity = max(held + more, 2 * b.capacity, <size_t>256)
    data = <uint8_t*>realloc(b.data, capacity)
    if data == NULL:
        raise MemoryError
    b.data = data
    b.capacity = capacity
    return 0


cdef int append(Buffer* b, const uint8_t* data, size_t size) except -1:
    if size:  # memcpy may not be given NULL, even for no bytes
        reserve(b, size)
        memcpy(b.data + b.end, data, size)
        b.end += size
    return 0


cdef void consume(Buffer* b, size_t size) noexcept nogil:
    """Drops bytes at the start; an emptied buffer gives its memory back."""
    b.start += size
    if b.start == b.end:
        free(b.data)
        b.data = NULL
        b.start = b.end = b.capacity = 0


# --- Server: frames in, replies out --------------------------------------------------------------

# Texts of error replies. Those with numbers in them are made on the spot.
cdef bytes READ_ONLY_TEXT = (
    b"storage is READ_ONLY: writes are refused until it is switched to READ_WRITE (0x00010002)"
)
cdef bytes MAINTENANCE_TEXT = (
    b"storage is in MAINTENANCE: reads and writes are refused until it is switched to "
    b"READ_WRITE (0x00010002) or READ_ONLY (0x00010001)"
)
cdef bytes LOCK_TEXT = b"the storage's lock was not to be had within a second, try again"
cdef bytes SWITCH_PARAMS_TEXT = b"the storage switches take nil or an empty body"
cdef bytes REPLACE_PARAMS_TEXT = (
    b"STORAGE_REPLACE takes a MsgPack int and str, one after the other, "
    b'as [int, str] or as {"ID": int, "S": str}, and nothing else'
)
cdef bytes READ_PARAMS_TEXT = (
    b'STORAGE_READ takes a MsgPack int, as itself, as [int] or as {"ID": int}, and nothing else'
)
cdef bytes PING_PARAMS_TEXT = b"PING takes an empty body"
cdef bytes SHUTDOWN_PARAMS_TEXT = b"SHUTDOWN takes an empty body"

cdef enum:
    HOLDS_NOTHING = 0
    HOLDS_READ = 1
    HOLDS_WRITE = 2

# Bits of ServerFrames.status: what the caller has to look after.
HAS_CALLS = 1
HAS_MORE = 2
IS_CLOSING = 4
IS_FULL = 8
HAS_UNSENT = 16
HAS_ENDED = 32
IS_BROKEN = 64
cdef enum:
    CALLS = 1  # users' frames wait in take_calls()
    MORE = 2  # frames wait for resume()
    CLOSING = 4  # no further frame is looked at
    FULL = 8  # with MORE: max_calls run; go on when one is answered
    UNSENT = 16  # the socket takes no more; flush() when it is writable
    ENDED = 32  # the peer has ended its side of the stream
    BROKEN = 64  # the socket failed: reset, most likely


cdef uint8_t* put_header(uint8_t* out, uint32_t func_id, uint32_t length,
                         uint32_t request_id) noexcept nogil:
    store_le32(out, func_id)
    store_le32(out + 4, length)
    store_le32(out + 8, request_id)
    return out + HEADER_BYTES


cdef struct Request:
    uint32_t func_id
    uint32_t request_id
    const uint8_t* body
    uint32_t length


@cython.final
cdef class ServerFrames:
    """The frames of one connection, on the server's side.

    Args:
        storage: what the built-in functions work on.
        mailru: whether body_length of a response counts its return_code.
        max_body: longest body taken, in bytes.
        max_calls: users' calls that may run at once; at the limit no further
            frame is looked at until one is answered.
        functions: func_id of each of the users' functions → its counter row.

    Not for use by two threads at once.
    """

    cdef readonly Storage storage
    cdef dict functions
    cdef uint32_t max_body
    cdef uint32_t max_calls
    cdef bint mailru
    # Input that is not executed yet: a partial frame, or what a bound left.
    cdef Buffer input
    # When bytes last came or went, and when the partial frame in `input` was
    # begun (0: there is none). CLOCK_MONOTONIC, ns.
    cdef uint64_t traffic_ns
    cdef uint64_t frame_ns
    # Replies that the socket did not take yet, and those of users' calls until
    # the end of the loop's turn.
    cdef Buffer output
    # What the caller has to look after: the bits above.
    cdef readonly int status
    # Users' frames to run, as (func_id, request_id, body, arrived): take_calls().
    cdef list calls
    # Users' calls not answered yet, those in `calls` included.
    cdef readonly uint32_t running
    # Set with IS_CLOSING: why, and the last bytes to send.
    cdef readonly object close_reason
    cdef bytes farewell
    # Bytes received in all, and how many there will be when a drain is done.
    cdef uint64_t received
    cdef uint64_t drain_at
    cdef bint draining
    # Of the chunk being executed: built-in frames by row, replies, clock.
    cdef uint32_t[FIRST_USER] done
    cdef uint8_t* out
    cdef uint64_t arrived
    # While a chunk is executed: see forbid_reentry.
    cdef bint busy

    def __cinit__(self, Storage storage not None, *, bint mailru, uint32_t max_body,
                  uint32_t max_calls, dict functions not None):
        cdef int64_t func_id, row
        cdef dict rows = {}  # not the caller's, who may put anything into it later
        for key, value in functions.items():
            func_id = as_int64(key)
            row = as_int64(value)
            if not 0 <= func_id <= 0xFFFFFFFF:
                raise ValueError(f"func_id {key} is outside 0..{0xFFFFFFFF:#x}")
            if not FIRST_USER <= row < FUNCTIONS:
                raise ValueError(f"counter row {value} is outside {FIRST_USER}..{FUNCTIONS - 1}")
            rows[func_id] = row
        self.storage = storage
        self.mailru = mailru
        self.max_body = max_body
        self.max_calls = max_calls
        self.functions = rows
        self.calls = []
        self.farewell = b""
        self.traffic_ns = clock_ns()

    def __dealloc__(self):
        free(self.input.data)
        free(self.output.data)

    def receive(self, int fd):
        """Takes what a non-blocking socket has, executes it, sends the replies.

        Returns:
            ``status``: 0 if there is nothing to look after.
        """
        forbid_reentry(self.busy)
        cdef Storage storage = self.storage
        cdef uint8_t* scratch = storage.take_scratch()
        cdef uint8_t* chunk = scratch + OUTPUT_LIMIT + REPLY_LIMIT
        cdef ssize_t got
        cdef size_t built
        cdef int _try
        self.busy = True
        try:
            # Once, as a rule. A chunk that brings no reply is followed by
            # another look: a reset behind it would otherwise go unnoticed, for
            # uvloop stops watching a socket after it reported an error, and
            # only a read or a send tells which.
            for _try in range(RECEIVE_TRIES):
                got = recv(fd, chunk, RECEIVE_LIMIT, MSG_DONTWAIT)
                if got <= 0:
                    if got == 0:
                        self.status |= ENDED
                    elif not is_transient(errno):
                        self.status |= BROKEN
                    break
                built = self._take_in(chunk, got, scratch)
                if built:
                    self._send(fd, scratch, built)
                if built or got == RECEIVE_LIMIT or self.status & (MORE | CLOSING):
                    break
        finally:
            self.busy = False
            storage.give_scratch(scratch)
        return self.status

    def resume(self, int fd):
        """Goes on with what a bound left (``HAS_MORE``); as ``receive``."""
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = self.storage.take_scratch()
        self.busy = True
        try:
            self.arrived = clock_ns()
            self._send(fd, scratch, self._execute_input(scratch))
        finally:
            self.busy = False
            self.storage.give_scratch(scratch)
        return self.status

    def flush(self, int fd):
        """Sends what waits to be sent; clears ``HAS_UNSENT`` when all is gone."""
        cdef size_t size = self.output.end - self.output.start
        cdef ssize_t sent
        if size == 0:
            return
        sent = send(fd, self.output.data + self.output.start, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            self.status |= UNSENT if is_transient(errno) else BROKEN
            return
        if sent:
            self.traffic_ns = clock_ns()
        consume(&self.output, sent)
        if self.output.end:
            self.status |= UNSENT
        else:
            self.status &= ~UNSENT

    cdef inline int _send(self, int fd, const uint8_t* data, size_t size) except -1:
        """Sends replies, or puts them behind those that wait."""
        cdef ssize_t sent = 0
        if size == 0:
            return 0
        if self.output.end == 0:
            sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent == <ssize_t>size:
                return 0
            if sent < 0:
                if not is_transient(errno):
                    self.status |= BROKEN
                    return 0
                sent = 0
            self.status |= UNSENT
        append(&self.output, data + sent, size - sent)
        return 0

    def feed(self, bytes data not None):
        """As ``receive``, for streams that are not sockets: bytes in, bytes out.

        Returns:
            All replies as one ``bytes``, or None if there is none to send.
            Look at ``status`` after it, and go on with ``feed(b"")``.
        """
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = self.storage.take_scratch()
        cdef size_t built
        self.busy = True
        try:
            if PyBytes_GET_SIZE(data):
                built = self._take_in(<const uint8_t*>PyBytes_AS_STRING(data),
                                      PyBytes_GET_SIZE(data), scratch)
            else:
                self.arrived = clock_ns()
                built = self._execute_input(scratch)
            return PyBytes_FromStringAndSize(<char*>scratch, built) if built else None
        finally:
            self.busy = False
            self.storage.give_scratch(scratch)

    cdef inline size_t _take_in(self, const uint8_t* chunk, size_t size,
                                uint8_t* scratch) except? 0:
        """Executes a received chunk; returns how many bytes of replies it built."""
        cdef size_t used
        cdef size_t built
        self.traffic_ns = self.arrived = clock_ns()
        self.storage.me.bytes_in += size
        self.received += size
        if self.status & CLOSING:
            return 0
        if self.input.end != self.input.start:
            append(&self.input, chunk, size)
            return self._execute_input(scratch)
        built = self._execute(chunk, size, &used, scratch)
        if used < size:
            append(&self.input, chunk + used, size - used)
            self._date_partial(used)
        return built

    cdef size_t _execute_input(self, uint8_t* scratch) except? 0:
        cdef size_t used
        cdef size_t built
        if self.status & CLOSING:
            return 0
        built = self._execute(self.input.data + self.input.start,
                              self.input.end - self.input.start, &used, scratch)
        consume(&self.input, used)
        self._date_partial(used)
        return built

    cdef void _date_partial(self, size_t used) noexcept:
        if self.input.start == self.input.end or self.status & (MORE | CLOSING):
            self.frame_ns = 0
        elif used or self.frame_ns == 0:
            self.frame_ns = self.arrived

    cdef inline size_t _execute(self, const uint8_t* data, size_t size, size_t* used,
                                uint8_t* scratch) except? 0:
        """Runs what it may of the data; counts and times it."""
        cdef size_t built
        cdef int row
        self.status &= ~(MORE | FULL)
        for row in range(FIRST_USER):
            self.done[row] = 0
        self.out = scratch
        used[0] = self._scan(data, size, scratch + OUTPUT_LIMIT)
        built = self.out - scratch
        self._observe()
        self.storage.me.bytes_out += built
        if self.draining and self.received >= self.drain_at and not self.status & (MORE | CLOSING):
            self._close(CloseReason.DRAIN)
            used[0] = size
        return built

    cdef inline void _observe(self) noexcept:
        """Service time of a chunk's built-in frames: their replies leave together."""
        cdef worker_t* me = self.storage.me
        cdef uint64_t elapsed = clock_ns() - self.arrived
        cdef int bucket = bucket_of(elapsed)
        cdef int row
        for row in range(FIRST_USER):
            if self.done[row]:
                me.buckets[row][bucket] += self.done[row]
                me.nanoseconds[row] += elapsed * self.done[row]

    cdef size_t _scan(self, const uint8_t* data, size_t size, uint8_t* out_limit) except? 0:
        """Executes frame after frame; returns the bytes that it is done with."""
        cdef size_t at = 0
        cdef Request request
        cdef int holds = HOLDS_NOTHING
        cdef int held = 0
        cdef int reads = 0  # since the last write, under its lock
        # False once the lock was waited for in vain: the rest of the chunk is
        # answered OVERLOADED at once, not after a wait for each frame.
        cdef bint may_wait = True
        cdef bint proceed = True
        try:
            while size - at >= HEADER_BYTES:
                if self.out >= out_limit:
                    self.status |= MORE
                    break
                request.func_id = load_le32(data + at)
                request.length = load_le32(data + at + 4)
                request.request_id = load_le32(data + at + 8)
                request.body = data + at + HEADER_BYTES
                if request.length > self.max_body:
                    self._release(holds)
                    holds = HOLDS_NOTHING
                    self._refuse_body(&request)
                    break
                if size - at - HEADER_BYTES < request.length:
                    break
                if request.func_id == READ:
                    if holds != HOLDS_READ or held == FRAMES_A_HOLD:
                        if (holds == HOLDS_WRITE and held < FRAMES_A_HOLD
                                and reads < READS_A_WRITE):
                            reads += 1
                        else:
                            self._release(holds)
                            holds = HOLDS_NOTHING
                            if may_wait and self.storage.lock_read():
                                holds = HOLDS_READ
                            may_wait = holds != HOLDS_NOTHING
                            held = 0
                    held += 1
                    self._read(&request, holds != HOLDS_NOTHING)
                elif request.func_id == REPLACE or (
                    SWITCH_READONLY <= request.func_id <= SWITCH_MAINTENANCE
                ):
                    if holds != HOLDS_WRITE or held == FRAMES_A_HOLD:
                        self._release(holds)
                        holds = HOLDS_NOTHING
                        if may_wait and self.storage.lock_write():
                            holds = HOLDS_WRITE
                        may_wait = holds != HOLDS_NOTHING
                        held = 0
                    held += 1
                    reads = 0
                    if request.func_id == REPLACE:
                        self._replace(&request, holds == HOLDS_WRITE)
                    else:
                        self._switch(&request, holds == HOLDS_WRITE)
                else:
                    # Python objects are made in here: not under the lock.
                    self._release(holds)
                    holds = HOLDS_NOTHING
                    proceed = self._other(&request)
                    if not proceed:
                        break
                at += HEADER_BYTES + request.length
        finally:
            self._release(holds)
        return size if self.status & CLOSING else at

    cdef inline void _release(self, int holds) noexcept:
        if holds == HOLDS_READ:
            self.storage.unlock_read()
        elif holds == HOLDS_WRITE:
            self.storage.unlock_write()

    # Checked in this order: the body, the storage's state, the index. So a write
    # to an index that does not exist tells the state and changes nothing, which
    # is how `iproto state` finds it out.

    cdef void _read(self, Request* request, bint locked) noexcept:
        cdef slot_t* slot
        cdef int64_t index
        cdef uint32_t length
        cdef uint8_t* text
        index = short_uint(request.body, request.length)
        if index < 0 and not decode_read(request.body, request.length, &index):
            self._fail(request, ROW_READ, ILLEGAL_PARAMS, COLUMN_ILLEGAL, READ_PARAMS_TEXT)
        elif not locked:
            self._fail(request, ROW_READ, OVERLOADED, COLUMN_OVERLOADED, LOCK_TEXT)
        elif load_relaxed(&self.storage.store.state) == MAINTENANCE:
            self._fail(request, ROW_READ, LOCKED, COLUMN_LOCKED, MAINTENANCE_TEXT)
        elif not 0 <= index < SLOTS:
            self._fail_index(request, ROW_READ, index)
        else:
            slot = &self.storage.slots[index]
            length = slot_length(slot)
            text = self._put_reply(request, OK, str_head_size(length) + length)
            text = put_str_head(text, length)
            memcpy(text, slot_bytes(slot), length)
            self.out = text + length
            self._count(ROW_READ, COLUMN_OK)

    cdef void _replace(self, Request* request, bint locked) noexcept:
        cdef int64_t index
        cdef const uint8_t* text
        cdef uint32_t length
        cdef uint32_t state
        cdef char[ERROR_TEXT] said
        if not decode_replace(request.body, request.length, &index, &text, &length):
            self._fail(request, ROW_REPLACE, ILLEGAL_PARAMS, COLUMN_ILLEGAL, REPLACE_PARAMS_TEXT)
            return
        if length > SLOT_BYTES:
            snprintf(said, ERROR_TEXT, b"string of %u bytes is over the limit of %d",
                     length, SLOT_BYTES)
            self._fail(request, ROW_REPLACE, ILLEGAL_PARAMS, COLUMN_ILLEGAL, said)
            return
        if not locked:
            self._fail(request, ROW_REPLACE, OVERLOADED, COLUMN_OVERLOADED, LOCK_TEXT)
            return
        state = load_relaxed(&self.storage.store.state)
        if state == READ_ONLY:
            self._fail(request, ROW_REPLACE, READ_ONLY_CODE, COLUMN_READ_ONLY, READ_ONLY_TEXT)
        elif state == MAINTENANCE:
            self._fail(request, ROW_REPLACE, LOCKED, COLUMN_LOCKED, MAINTENANCE_TEXT)
        elif not 0 <= index < SLOTS:
            self._fail_index(request, ROW_REPLACE, index)
        else:
            slot_write(self.storage.store, self.storage.slots, <uint32_t>index, text, length)
            self._succeed(request, ROW_REPLACE)

    cdef void _switch(self, Request* request, bint locked) noexcept:
        cdef int row = request.func_id - SWITCH_READONLY
        cdef uint32_t state = READ_ONLY if row == 0 else READ_WRITE if row == 1 else MAINTENANCE
        if request.length and not (request.length == 1 and request.body[0] == 0xC0):
            self._fail(request, row, ILLEGAL_PARAMS, COLUMN_ILLEGAL, SWITCH_PARAMS_TEXT)
        elif not locked:
            self._fail(request, row, OVERLOADED, COLUMN_OVERLOADED, LOCK_TEXT)
        else:
            store_release(&self.storage.store.state, state)
            self._succeed(request, row)

    cdef bint _other(self, Request* request) except -1:
        """PING, SHUTDOWN, users' functions and unknown ones; False: stop here."""
        cdef PyObject* row
        cdef char[ERROR_TEXT] said
        if request.func_id == PING:
            if request.length:
                self._fail(request, ROW_PING, ILLEGAL_PARAMS, COLUMN_ILLEGAL, PING_PARAMS_TEXT)
            else:
                self.out = put_header(self.out, PING, 0, request.request_id)
                self._count(ROW_PING, COLUMN_OK)
            return True
        if request.func_id == SHUTDOWN:
            if request.length:
                self._fail(request, ROW_SHUTDOWN, ILLEGAL_PARAMS, COLUMN_ILLEGAL,
                           SHUTDOWN_PARAMS_TEXT)
                return True
            self._count(ROW_SHUTDOWN, COLUMN_OK)
            self.farewell = PyBytes_FromStringAndSize(
                <const char*>request.body - HEADER_BYTES, HEADER_BYTES
            )
            self.storage.me.bytes_out += HEADER_BYTES
            self._close(CloseReason.SHUTDOWN)
            return False
        row = PyDict_GetItem(self.functions, request.func_id) if self.functions else NULL
        if row == NULL:
            snprintf(said, ERROR_TEXT, b"no function 0x%08x here", request.func_id)
            self._fail(request, ROW_UNKNOWN, UNSUPPORTED_COMMAND, COLUMN_UNSUPPORTED, said)
            return True
        if self.running >= self.max_calls:
            self.status |= MORE | FULL
            return False
        self.calls.append((
            request.func_id,
            request.request_id,
            PyBytes_FromStringAndSize(<const char*>request.body, request.length),
            self.arrived,
        ))
        self.running += 1
        self.status |= CALLS
        return True

    cdef void _close(self, reason) noexcept:
        """No frame after this one is looked at."""
        self.status = (self.status | CLOSING) & ~(MORE | FULL)
        self.close_reason = reason

    cdef int _refuse_body(self, Request* request) except -1:
        cdef char[ERROR_TEXT] text
        snprintf(text, ERROR_TEXT,
                 b"body of %u bytes is over the limit of %u; closing the connection, "
                 b"for what follows cannot be told apart", request.length, self.max_body)
        self._fail(request, self._row(request.func_id), ILLEGAL_PARAMS, COLUMN_ILLEGAL, text)
        self._close(CloseReason.BODY_TOO_LARGE)
        return 0

    cdef int _row(self, uint32_t func_id) except -1:
        """Counter row of any function."""
        cdef PyObject* row
        if SWITCH_READONLY <= func_id <= SWITCH_MAINTENANCE:
            return func_id - SWITCH_READONLY
        if func_id == REPLACE or func_id == READ:
            return ROW_REPLACE + (func_id - REPLACE)
        if func_id == PING or func_id == SHUTDOWN:
            return ROW_PING + (func_id - PING)
        row = PyDict_GetItem(self.functions, func_id)
        return <object>row if row != NULL else ROW_UNKNOWN

    cdef uint8_t* _put_reply(self, Request* request, uint32_t code, uint32_t length) noexcept:
        """Writes header and return_code; returns where the body goes."""
        return put_response(self.out, request.func_id, request.request_id, code, length,
                            self.mailru)

    cdef void _succeed(self, Request* request, int row) noexcept:
        """OK, with a nil body."""
        cdef uint8_t* body = self._put_reply(request, OK, 1)
        body[0] = 0xC0
        self.out = body + 1
        self._count(row, COLUMN_OK)

    cdef void _fail(self, Request* request, int row, uint32_t code, int column,
                    const char* text) noexcept:
        cdef uint32_t length = <uint32_t>strlen(text)
        cdef uint8_t* body = self._put_reply(request, code, str_head_size(length) + length)
        body = put_str_head(body, length)
        memcpy(body, text, length)
        self.out = body + length
        self._count(row, column)

    cdef void _fail_index(self, Request* request, int row, int64_t index) noexcept:
        cdef char[ERROR_TEXT] text
        if index == INT64_MAX:
            snprintf(text, ERROR_TEXT, b"index of 2^63-1 or more is outside 0..%d", SLOTS - 1)
        else:
            snprintf(text, ERROR_TEXT, b"index %lld is outside 0..%d", <long long>index, SLOTS - 1)
        self._fail(request, row, NUMBER_OUT_OF_RANGE, COLUMN_RANGE, text)

    cdef void _count(self, int row, int column) noexcept:
        self.storage.me.requests[row][column] += 1
        if row < FIRST_USER:  # users' calls are timed in reply()
            self.done[row] += 1

    def take_calls(self):
        """The users' frames to run, as ``(func_id, request_id, body, arrived)``.

        ``arrived`` goes back into ``reply``. Clears ``HAS_CALLS``.
        """
        calls = self.calls
        self.calls = []
        self.status &= ~CALLS
        return calls

    def reply(self, uint32_t func_id, uint32_t request_id, uint32_t code, bytes body not None,
              uint64_t arrived):
        """Answers a user's call: puts the reply where ``flush`` takes it.

        Args:
            func_id, request_id, arrived: as ``take_calls`` gave them.
            code: the return code.
            body: one MsgPack object.

        Raises:
            RuntimeError: there is no call left to answer.
        """
        if self.running == 0:
            raise RuntimeError("a reply too many: no call is running")
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef worker_t* me = self.storage.me
        cdef int row = self._row(func_id)
        cdef int column = COLUMN_OK if code == OK else COLUMN_OF.get(code, COLUMN_OTHER)
        # An answer is traffic, though it is sent only at the end of the turn: the
        # idle time-out must not come between the two.
        self.traffic_ns = clock_ns()
        cdef uint64_t elapsed = self.traffic_ns - arrived
        cdef uint8_t* out
        if size > 0xFFFFFFFB:
            raise ValueError(f"a body of {size} bytes does not fit into a frame")
        reserve(&self.output, HEADER_BYTES + 4 + size)
        out = put_response(self.output.data + self.output.end, func_id, request_id, code,
                           <uint32_t>size, self.mailru)
        memcpy(out, PyBytes_AS_STRING(body), size)
        self.output.end += HEADER_BYTES + 4 + size
        self.running -= 1
        self.status &= ~FULL
        me.requests[row][column] += 1
        me.buckets[row][bucket_of(elapsed)] += 1
        me.nanoseconds[row] += elapsed
        me.bytes_out += HEADER_BYTES + 4 + size

    def drain(self, uint64_t unread):
        """Closes once so many more bytes have been received and executed."""
        forbid_reentry(self.busy)
        self.draining = True
        self.drain_at = self.received + unread
        if unread == 0 and not self.status & (MORE | CLOSING):
            self.close(CloseReason.DRAIN)

    def finish(self):
        """Everything is answered: puts the last bytes, SHUTDOWN's echo, behind it."""
        append(&self.output, <const uint8_t*>PyBytes_AS_STRING(self.farewell),
               PyBytes_GET_SIZE(self.farewell))
        self.farewell = b""

    def take(self):
        """What ``flush`` would send, for streams that are not sockets."""
        cdef size_t size = self.output.end - self.output.start
        data = PyBytes_FromStringAndSize(<char*>self.output.data + self.output.start, size)
        consume(&self.output, size)
        return data

    def close(self, reason):
        """From now on nothing is executed; what was not, and what comes, is dropped."""
        forbid_reentry(self.busy)
        if not self.status & CLOSING:
            self._close(CloseReason(reason))
        consume(&self.input, self.input.end - self.input.start)
        self.frame_ns = 0

    def touch(self):
        """Restarts the clocks: reading goes on after a pause that was ours."""
        self.traffic_ns = clock_ns()
        if self.frame_ns:
            self.frame_ns = self.traffic_ns

    def quiet_seconds(self):
        """Since bytes last came or went, or ``touch``."""
        return (clock_ns() - self.traffic_ns) / 1e9

    def partial_seconds(self):
        """Since the frame that is not complete yet was begun; 0.0 if there is none."""
        return (clock_ns() - self.frame_ns) / 1e9 if self.frame_ns else 0.0


cdef inline int forbid_reentry(bint busy) except -1:
    """Refuses a call that comes while another of the same object is in the middle of its work.

    Wherever Python objects are made the garbage collector may run, and with it
    the code of any ``__del__``; it must not free or move what is being read.
    """
    if busy:
        raise RuntimeError("called while another call of the same object is at work")
    return 0


cdef bint is_transient(int error) noexcept nogil:
    return error == EAGAIN or error == EINTR  # EWOULDBLOCK is EAGAIN on our systems


cdef inline int bucket_of(uint64_t ns) noexcept nogil:
    cdef int bucket
    for bucket in range(BUCKETS - 1):
        if ns <= BOUNDS[bucket]:
            return bucket
    return BUCKETS - 1


cdef inline uint8_t* put_response(uint8_t* out, uint32_t func_id, uint32_t request_id,
                                  uint32_t code, uint32_t length, bint mailru) noexcept nogil:
    """Writes header and return_code of a response; returns where the body goes."""
    out = put_header(out, func_id, length + 4 if mailru else length, request_id)
    store_le32(out, code)
    return out + 4


# --- Client: requests out, replies in ------------------------------------------------------------

# What becomes of a reply.
AS_RESPONSE = 0
AS_NOTHING = 1
AS_TEXT = 2
AS_BYTES = 3
AS_BODY = 4
cdef enum:
    RESPONSE = 0
    NOTHING = 1
    TEXT = 2
    BYTES = 3
    BODY = 4

cdef enum:
    DIALECT_UNKNOWN = -1
    DIALECT_VK = 0
    DIALECT_MAILRU = 1

# Return codes that a client's side counts apart.
cdef enum:
    MOST_REFUSALS = 64


cdef str NOTHING_TO_ASK = "a bulk of no requests would never be answered"

# Stands for a result that has not come yet.
cdef object UNANSWERED = object()


@cython.final
cdef class Pending:
    """What waits for one reply, or for those of ``count`` requests in a row."""

    cdef object waiter
    cdef double deadline
    cdef int outcome
    cdef uint32_t func_id
    cdef uint32_t first
    cdef uint32_t count
    cdef uint32_t missing
    # Ids given out before its own: up to `taken`, and it has left.
    cdef uint64_t place
    cdef list results
    cdef object error


@cython.final
cdef class ClientFrames:
    """The frames of one connection, on the client's side.

    A request is given a ``waiter``, any object, which comes back with its
    outcome: from ``feed`` when the reply came, from ``expire`` when its
    deadline passed, from ``fail_all`` when the connection ended.

    Args:
        mailru: the server's dialect, or None to let the first reply, which must
            be one of STORAGE_READ, tell.
        max_body: longest reply body taken, in bytes; a longer claim is an error.

    Not for use by two threads at once.
    """

    cdef uint32_t max_body
    cdef int dialect
    cdef Buffer output
    cdef Buffer input
    cdef dict pending
    cdef list bulks
    cdef public uint32_t _next_id  # public for tests: 2**32 requests take too long
    # Whether ids have come round: only then the next one may be in use.
    cdef bint wrapped
    # Ids given out so far; up to `taken` of them have left through take().
    cdef uint64_t issued
    cdef uint64_t taken
    # Requests that were replied to; replies to those that had one already, or that
    # nobody waits for any more; and how often each return_code but 0 came, the
    # first MOST_REFUSALS of them apart, the others together under -1: a peer can
    # invent four billion.
    cdef readonly uint64_t answered
    cdef readonly uint64_t surplus
    cdef readonly dict refusals
    # Set when the stream cannot be trusted any more: what to tell the callers.
    cdef readonly object broken
    # While a bulk is built, and while a chunk is read: see forbid_reentry.
    cdef bint building
    cdef bint feeding

    def __cinit__(self, *, mailru, uint32_t max_body):
        self.dialect = DIALECT_UNKNOWN if mailru is None else 1 if mailru else 0
        self.max_body = max_body
        self.pending = {}
        self.bulks = []
        self.refusals = {}
        self._next_id = 1

    def __dealloc__(self):
        free(self.output.data)
        free(self.input.data)

    # Requests. Each returns the request's id (the first of a bulk's), for forget().

    def request(self, uint32_t func_id, bytes body not None, int outcome, waiter,
                double deadline):
        """Adds a request with this body."""
        forbid_reentry(self.building)
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef uint8_t* out
        if size > 0xFFFFFFFF:
            raise ValueError(f"a body of {size} bytes does not fit into a frame")
        if self.wrapped:
            self._skip_used(1)
        reserve(&self.output, HEADER_BYTES + size)
        out = put_header(self.output.data + self.output.end, func_id, <uint32_t>size,
                         self._next_id)
        memcpy(out, PyBytes_AS_STRING(body), size)
        self.output.end += HEADER_BYTES + size
        return self._await_one(func_id, outcome, waiter, deadline)

    def read(self, index, int outcome, waiter, double deadline):
        """Adds a STORAGE_READ."""
        forbid_reentry(self.building)
        if self.wrapped:
            self._skip_used(1)
        self._put_read(index)
        return self._await_one(READ, outcome, waiter, deadline)

    def replace(self, index, content, waiter, double deadline):
        """Adds a STORAGE_REPLACE; the content is str or bytes."""
        forbid_reentry(self.building)
        if self.wrapped:
            self._skip_used(1)
        self._put_replace(index, content)
        return self._await_one(REPLACE, NOTHING, waiter, deadline)

    def read_many(self, list indexes not None, int outcome, waiter, double deadline):
        """Adds a STORAGE_READ for each; the outcome is the list of results."""
        forbid_reentry(self.building)
        cdef size_t start = self.output.end - self.output.start
        cdef uint32_t first
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(indexes)
        if not own:
            raise ValueError(NOTHING_TO_ASK)
        first = self._row_of_ids(len(own))
        self.building = True
        try:
            for index in own:
                self._put_read(index)
                self._next_id += 1
            return self._await_many(READ, outcome, waiter, deadline, first, len(own))
        except BaseException:
            self._take_back(start, first)
            raise
        finally:
            self.building = False

    def replace_many(self, list items not None, waiter, double deadline):
        """Adds a STORAGE_REPLACE for each ``(index, content)``."""
        forbid_reentry(self.building)
        cdef size_t start = self.output.end - self.output.start
        cdef uint32_t first
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(items)
        if not own:
            raise ValueError(NOTHING_TO_ASK)
        first = self._row_of_ids(len(own))
        self.building = True
        try:
            for index, content in own:
                self._put_replace(index, content)
                self._next_id += 1
            return self._await_many(REPLACE, NOTHING, waiter, deadline, first, len(own))
        except BaseException:
            self._take_back(start, first)
            raise
        finally:
            self.building = False

    cdef uint32_t _row_of_ids(self, size_t count) except? 0:
        """The first of so many ids in a row for a bulk."""
        if self._next_id + <uint64_t>count > 0xFFFFFFFF:
            self.wrapped = True
        if self.wrapped:
            self._skip_used(count)
        return self._next_id

    cdef int _skip_used(self, size_t count) except -1:
        """Passes over ids that calls still wait for, until so many in a row are free."""
        cdef size_t unused = 0
        cdef uint32_t candidate
        while unused < count and (self.pending or self.bulks):
            candidate = self._next_id + <uint32_t>unused
            unused += 1
            if candidate in self.pending or self._bulk_of(candidate) is not None:
                self._next_id += <uint32_t>unused
                self.issued += unused
                unused = 0
        return 0

    cdef int _take_back(self, size_t start, uint32_t first) except -1:
        """Unbuilds a bulk that one of its items spoiled."""
        self.output.end = self.output.start + start
        self._next_id = first
        return 0

    cdef int _put_read(self, index) except -1:
        cdef int64_t slot = slot_index(index)
        cdef uint8_t* frame
        cdef uint8_t* end
        reserve(&self.output, HEADER_BYTES + 9)
        frame = self.output.data + self.output.end
        end = put_int(frame + HEADER_BYTES, slot)
        put_header(frame, READ, <uint32_t>(end - frame - HEADER_BYTES), self._next_id)
        self.output.end += end - frame
        return 0

    cdef int _put_replace(self, index, content) except -1:
        cdef int64_t slot = slot_index(index)
        cdef Py_ssize_t size
        cdef const char* text
        cdef uint8_t* frame
        cdef uint8_t* end
        if isinstance(content, str):
            text = PyUnicode_AsUTF8AndSize(content, &size)
        elif isinstance(content, bytes):
            text = PyBytes_AS_STRING(content)
            size = PyBytes_GET_SIZE(content)
        else:
            raise TypeError(f"a slot holds str or bytes, not {type(content).__name__}")
        if size > 0xFFFFFFF0:
            raise ValueError(f"a string of {size} bytes does not fit into a frame")
        reserve(&self.output, HEADER_BYTES + 9 + 5 + size)
        frame = self.output.data + self.output.end
        end = put_int(frame + HEADER_BYTES, slot)
        end = put_str_head(end, <uint32_t>size)
        memcpy(end, text, size)
        end += size
        put_header(frame, REPLACE, <uint32_t>(end - frame - HEADER_BYTES), self._next_id)
        self.output.end += end - frame
        return 0

    cdef object _await_one(self, uint32_t func_id, int outcome, waiter, double deadline):
        cdef Pending entry = Pending.__new__(Pending)
        cdef uint32_t request_id = self._next_id
        entry.waiter = waiter
        entry.deadline = deadline
        entry.outcome = outcome
        entry.func_id = func_id
        entry.first = request_id
        entry.count = 1
        entry.place = self.issued
        self._next_id += 1
        if self._next_id == 0:
            self.wrapped = True
        self.issued += 1
        key = request_id
        self.pending[key] = entry
        return key

    cdef object _await_many(self, uint32_t func_id, int outcome, waiter, double deadline,
                            uint32_t first, uint32_t count):
        cdef Pending entry = Pending.__new__(Pending)
        entry.waiter = waiter
        entry.deadline = deadline
        entry.outcome = outcome
        entry.func_id = func_id
        entry.first = first
        entry.count = entry.missing = count
        entry.results = [UNANSWERED] * count
        entry.place = self.issued
        self.issued += count
        self.bulks.append(entry)
        return first

    def take(self):
        """The requests built since the last time, to be sent."""
        forbid_reentry(self.building)
        cdef size_t size = self.output.end - self.output.start
        data = PyBytes_FromStringAndSize(<char*>self.output.data + self.output.start, size)
        consume(&self.output, size)
        self.taken = self.issued
        return data

    def forget(self, request_id):
        """Nobody waits for this request (or bulk) any more; its reply is dropped."""
        if self.pending.pop(request_id, None) is None:
            self.bulks = [bulk for bulk in self.bulks if (<Pending>bulk).first != request_id]

    def expire(self, double now):
        """Takes out what is past its deadline.

        Returns:
            The waiters, and the earliest deadline left (infinity if none is).
        """
        cdef Pending entry
        late = [e for e in self._waiting() if (<Pending>e).deadline <= now]
        for entry in late:
            self.forget(entry.first)
        cdef double earliest = float("inf")
        for entry in self._waiting():
            earliest = min(earliest, entry.deadline)
        return [(<Pending>e).waiter for e in late], earliest

    def fail_all(self):
        """Takes out everything.

        Returns:
            ``(waiter, may_have_executed)`` of each; False where the request
            (no request of the bulk) ever left through ``take``.
        """
        failed = [
            ((<Pending>e).waiter, (<Pending>e).place < self.taken)
            for e in self._waiting()
        ]
        self.pending = {}
        self.bulks = []
        return failed

    @property
    def waiting(self):
        """How many requests or bulks wait for replies."""
        return len(self.pending) + len(self.bulks)

    @property
    def mailru(self):
        """The server's dialect; None while it is not known."""
        return None if self.dialect == DIALECT_UNKNOWN else self.dialect == DIALECT_MAILRU

    @property
    def missing(self):
        """Bytes still to come of a reply that was begun; 0: there is none, or no telling."""
        cdef const uint8_t* frame = self.input.data + self.input.start
        cdef size_t held = self.input.end - self.input.start
        cdef size_t size
        if held < HEADER_BYTES or self.dialect == DIALECT_UNKNOWN:
            return 0
        size = HEADER_BYTES + <size_t>load_le32(frame + 4)
        if self.dialect == DIALECT_VK:
            size += 4
        return size - held

    cdef list _waiting(self):
        return [*self.pending.values(), *self.bulks]

    cdef uint64_t _age(self, uint32_t request_id) noexcept:
        """How many ids were given out after this one; huge if it never was."""
        cdef uint32_t age = self._next_id - 1 - request_id
        return age if age < self.issued else 0xFFFFFFFFFFFFFFFF

    # Replies.

    def feed(self, bytes data not None):
        """Matches the replies of a received chunk.

        Returns:
            A list of ``(waiter, error, result)``, with None for what there is
            not. If ``broken`` is set afterwards, the stream is lost from there
            on and the connection must be closed.
        """
        forbid_reentry(self.feeding)
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef size_t used
        cdef const uint8_t* chunk = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef list outcomes = []
        if self.broken is not None:
            return outcomes
        self.feeding = True
        try:
            if self.input.end != self.input.start:
                append(&self.input, chunk, size)
                used = self._scan(self.input.data + self.input.start,
                                  self.input.end - self.input.start, outcomes)
                consume(&self.input, used)
            else:
                used = self._scan(chunk, size, outcomes)
                if used < size:
                    append(&self.input, chunk + used, size - used)
        finally:
            self.feeding = False
        return outcomes

    cdef size_t _scan(self, const uint8_t* data, size_t size, list outcomes) except? 0:
        cdef size_t at = 0
        cdef size_t left
        cdef uint32_t func_id, length, request_id, code
        cdef const uint8_t* frame
        try:
            while size - at >= HEADER_BYTES:
                frame = data + at
                left = size - at
                func_id = load_le32(frame)
                length = load_le32(frame + 4)
                request_id = load_le32(frame + 8)
                if length == 0 and (func_id == PING or func_id == SHUTDOWN):
                    self._settle(func_id, length, request_id, 0, NULL, 0, outcomes)
                    at += HEADER_BYTES
                    continue
                if not self._fits_dialect(func_id, length, frame, left):
                    break
                if self.dialect == DIALECT_MAILRU:
                    length -= 4
                if length > self.max_body:
                    raise ProtocolError(
                        f"reply body of {length} bytes is over the limit of {self.max_body}"
                    )
                if left < HEADER_BYTES + 4 + <size_t>length:
                    break
                code = load_le32(frame + HEADER_BYTES)
                self._settle(func_id, load_le32(frame + 4), request_id, code,
                             frame + HEADER_BYTES + 4, length, outcomes)
                at += HEADER_BYTES + 4 + length
        except ProtocolError as error:
            self.broken = error
            return size
        return at

    cdef bint _fits_dialect(self, uint32_t func_id, uint32_t length, const uint8_t* frame,
                            size_t left) except -1:
        """Whether the frame can be read on; finds out the dialect if it must.

        The body of a built-in function's reply is one str or nil, never empty,
        so its first bytes tell how long it is, whatever the header counts.
        """
        cdef uint64_t body = 0
        if is_storage_function(func_id):
            body = leading_object_size(frame, left)
        if self.dialect == DIALECT_UNKNOWN:
            if not is_storage_function(func_id):
                raise DialectError(
                    f"cannot tell the server's dialect by a reply of function {func_id:#x}; "
                    "name it: dialect=vk or dialect=mailru"
                )
            if length == 0:
                body = 0  # No room for a return_code in it.
            elif body == 0:
                return False
            elif body == ANOTHER_TYPE:
                raise DialectError(
                    "cannot tell the server's dialect: its answer to a STORAGE_READ is "
                    "neither MsgPack str nor nil; name it: dialect=vk or dialect=mailru"
                )
            if length != body and length != body + 4:
                raise DialectError(
                    f"cannot tell the server's dialect: body_length is {length}, "
                    f"but the body is one object of {body} bytes"
                )
            self.dialect = DIALECT_VK if length == body else DIALECT_MAILRU
        elif self.dialect == DIALECT_VK:
            if body and body != ANOTHER_TYPE and length == body + 4:
                raise DialectError(
                    "the server's body_length counts the return_code: it speaks dialect=mailru, "
                    "the client was told dialect=vk"
                )
        elif length < 4 or (body and length == body) or (
            length == 4 and is_storage_function(func_id)  # whose body is never empty
        ):
            raise DialectError(
                "the server's body_length does not count the return_code: it speaks dialect=vk, "
                "the client was told dialect=mailru"
            )
        return True

    cdef int _settle(self, uint32_t func_id, uint32_t length, uint32_t request_id,
                     uint32_t code, const uint8_t* body, uint32_t size,
                     list outcomes) except -1:
        """Finds who waits for a reply, and gives them what they asked for."""
        cdef Pending entry = self.pending.pop(request_id, None) if self.pending else None
        cdef object error = None
        cdef object result = None
        cdef uint32_t position
        if entry is None:
            entry = self._bulk_of(request_id)
            if entry is None:
                if self._age(request_id) == 0xFFFFFFFFFFFFFFFF:
                    raise ProtocolError(f"reply to request_id {request_id}, which was never sent")
                self.surplus += 1
                return 0  # Its caller gave up, or it was answered already.
        try:
            if func_id != entry.func_id:
                raise ProtocolError(
                    f"reply to request_id {request_id} is of function {func_id:#x}, "
                    f"asked was {entry.func_id:#x}"
                )
            if entry.outcome == RESPONSE:
                result = Response(Header(func_id, length, request_id), code, body[:size])
            elif code != 0:
                error = error_from_reply(code, error_text(body, size))
            elif body != NULL:
                result = decode_result(entry.outcome, body, size)
        except ProtocolError as broken:
            # The waiter hears of it too: it is not pending any more.
            if entry.results is None:
                outcomes.append((entry.waiter, broken, None))
            raise
        except TextError as not_text:
            error = not_text
        if entry.results is None:
            self.answered += 1
            if code != 0:
                self._count_refusal(code)
            outcomes.append((entry.waiter, error, result))
            return 0
        position = request_id - entry.first
        if entry.results[position] is not UNANSWERED:
            self.surplus += 1
            return 0
        self.answered += 1
        if code != 0:
            self._count_refusal(code)
        if error is not None:
            error.item = position
            if entry.error is None or position < entry.error.item:
                entry.error = error
        entry.results[position] = result
        entry.missing -= 1
        if entry.missing == 0:
            self.bulks.remove(entry)
            outcomes.append((entry.waiter, entry.error, entry.results))
        return 0

    cdef int _count_refusal(self, uint32_t code) except -1:
        cdef object key = code
        if key not in self.refusals and len(self.refusals) >= MOST_REFUSALS:
            key = -1
        self.refusals[key] = self.refusals.get(key, 0) + 1
        return 0

    cdef Pending _bulk_of(self, uint32_t request_id):
        cdef Pending bulk
        for bulk in self.bulks:
            if request_id - bulk.first < bulk.count:
                return bulk
        return None


cdef int64_t slot_index(index) except? -1:
    """A slot's index as the caller gave it; whether it is in range is the server's to say."""
    cdef int64_t value
    if not isinstance(index, int):
        # Conversion to C would cut a float to an int without a word.
        try:
            index = PyNumber_Index(index)
        except TypeError:
            raise TypeError(f"a slot's index is an int, not {type(index).__name__}") from None
    try:
        value = index
    except OverflowError:
        raise ValueError(f"index {index} does not fit into a MsgPack int") from None
    return value


cdef bint is_storage_function(uint32_t func_id) noexcept nogil:
    return (func_id == READ or func_id == REPLACE
            or SWITCH_READONLY <= func_id <= SWITCH_MAINTENANCE)


cdef uint64_t ANOTHER_TYPE = 0xFFFFFFFFFFFFFFFF


cdef uint64_t leading_object_size(const uint8_t* frame, size_t left) noexcept nogil:
    """Bytes of the str or nil that begins a reply's body; 0: not there yet."""
    cdef const uint8_t* head = frame + HEADER_BYTES + 4
    cdef int width
    if left < HEADER_BYTES + 4 + 1:
        return 0
    if head[0] == 0xC0:
        return 1
    if 0xA0 <= head[0] <= 0xBF:
        return 1 + (head[0] & 0x1F)
    if not 0xD9 <= head[0] <= 0xDB:
        return ANOTHER_TYPE
    width = 1 << (head[0] - 0xD9)
    if left < <size_t>(HEADER_BYTES + 4 + 1 + width):
        return 0
    return 1 + width + load_be(head + 1, width)


cdef object decode_result(int outcome, const uint8_t* body, uint32_t size):
    """The body of a successful reply, as it was asked for."""
    cdef Cursor c
    cdef const uint8_t* text = NULL
    cdef uint32_t length = 0
    if outcome == BODY:
        return body[:size]
    if outcome == NOTHING:
        if size != 1 or body[0] != 0xC0:
            raise ProtocolError(f"reply body of {size} bytes where nil was expected")
        return None
    c.at = body
    c.end = body + size
    if read_str(&c, &text, &length) != 0 or c.at != c.end:
        raise ProtocolError(f"reply body of {size} bytes is not the MsgPack str that was expected")
    if outcome == BYTES:
        return text[:length]
    try:
        return PyUnicode_DecodeUTF8(<const char*>text, length, NULL)
    except UnicodeDecodeError as error:
        raise TextError(
            f"the slot's {length} bytes are not UTF-8 (byte {error.start}); "
            "read them with the bytes variant of the call"
        ) from None


cdef str error_text(const uint8_t* body, uint32_t size):
    """The text of an error reply; whatever a peer put there, some text comes out."""
    cdef Cursor c
    cdef const uint8_t* text = NULL
    cdef uint32_t length = 0
    c.at = body
    c.end = body + size
    if body == NULL or read_str(&c, &text, &length) != 0:
        return f"(the reply has no text, but {size} other bytes)" if size else "(no text)"
    return text[:length].decode("utf-8", "backslashreplace")
