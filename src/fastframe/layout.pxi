# layout.h, as far as Cython code names it: the compiler has the rest from the header.

cdef extern from "layout.h" nogil:
    enum:
        SLOTS
        SLOT_BYTES
        FUNCTIONS
        CODES
        BUCKETS
        REASONS
        WORKERS_LIMIT
        STORE_VERSION
        STATE_READ_WRITE
        STATE_READ_ONLY
        STATE_MAINTENANCE
    const uint64_t STORE_MAGIC
    enum:
        STORE_ALIGNMENT

    ctypedef struct slot_t:
        uint32_t current
        uint32_t length[2]

    ctypedef struct reader_t:
        uint32_t readers
        uint32_t gave_up
        uint32_t pid
        uint64_t turn_due_ns

    ctypedef struct lock_t:
        uint32_t writer
        uint32_t turn

    ctypedef struct worker_t:
        uint64_t opened
        uint64_t bytes_in
        uint64_t bytes_out
        uint64_t closed[REASONS]
        uint64_t requests[FUNCTIONS][CODES]
        uint64_t buckets[FUNCTIONS][BUCKETS]
        uint64_t nanoseconds[FUNCTIONS]
        uint64_t lag_buckets[BUCKETS]
        uint64_t lag_nanoseconds
        uint64_t tasks
        uint64_t alive_ns
        uint64_t dropped_lines

    ctypedef struct store_t:
        uint64_t magic
        uint32_t version
        uint32_t slots
        uint32_t slot_bytes
        uint32_t workers
        uint64_t size
        uint32_t checked
        lock_t lock
        uint32_t state

    ctypedef struct handle_t:
        store_t* store
        reader_t* readers
        worker_t* areas
        reader_t* my_reader
        worker_t* me
        uint32_t mine
        uint32_t workers
        size_t size
        uint32_t checked

    handle_t attach(store_t* store, uint32_t workers, uint32_t worker, bint checked) noexcept
    size_t store_size(uint32_t workers) noexcept
    slot_t* slot_at(const handle_t* h, uint32_t index) noexcept
    bint unlikely_so(bint condition) noexcept
    uint32_t load_relaxed(uint32_t* word) noexcept
    uint64_t load_counter "load_relaxed"(uint64_t* word) noexcept
    uint32_t load_seq_cst(uint32_t* word) noexcept
    void store_release(uint32_t* word, uint32_t value) noexcept
