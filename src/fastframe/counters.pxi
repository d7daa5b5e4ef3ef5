# The counters in the workers' areas: service times, and sums for a scrape.

# Upper bounds of the service-time histogram, in ns. A built-in frame takes
# some 50 ns, a chunk of thousands a fraction of a ms; users' functions seconds.
cdef uint64_t[BUCKETS - 1] BOUNDS
BOUNDS[:] = [
    5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 100_000_000,
    1_000_000_000, 10_000_000_000, 60_000_000_000,
]
BUCKET_BOUNDS = tuple(BOUNDS[i] / 1e9 for i in range(BUCKETS - 1))


cdef inline int bucket_of(uint64_t ns) noexcept nogil:
    cdef int bucket
    for bucket in range(BUCKETS - 1):
        if ns <= BOUNDS[bucket]:
            return bucket
    return BUCKETS - 1


cdef inline void observe(worker_t* me, const uint32_t* done, uint64_t elapsed) noexcept nogil:
    """Service time of a chunk's built-in frames, so many of each row: their replies
    leave together."""
    cdef int bucket = bucket_of(elapsed)
    cdef int row
    for row in range(FIRST_USER):
        if done[row]:
            me.buckets[row][bucket] += done[row]
            me.nanoseconds[row] += elapsed * done[row]


cdef dict counters_of(worker_t* areas, uint32_t first, uint32_t last):
    """The counters of these workers, as ``Storage.counters`` returns them."""
    return {
        "opened": sums(&areas.opened, 1, first, last)[0],
        "bytes_in": sums(&areas.bytes_in, 1, first, last)[0],
        "bytes_out": sums(&areas.bytes_out, 1, first, last)[0],
        "closed": sums(&areas.closed[0], REASONS, first, last),
        "requests": [
            sums(&areas.requests[row][0], CODES, first, last) for row in range(FUNCTIONS)
        ],
        "buckets": [
            sums(&areas.buckets[row][0], BUCKETS, first, last) for row in range(FUNCTIONS)
        ],
        "nanoseconds": sums(&areas.nanoseconds[0], FUNCTIONS, first, last),
        "lag_buckets": sums(&areas.lag_buckets[0], BUCKETS, first, last),
        "lag_nanoseconds": sums(&areas.lag_nanoseconds, 1, first, last)[0],
        "tasks": sums(&areas.tasks, 1, first, last)[0],
    }


cdef list sums(uint64_t* words, int count, uint32_t first, uint32_t last):
    """Sums each of so many words, which stand here in the first area, over the workers."""
    cdef list totals = []
    cdef uint64_t total
    cdef uint32_t worker
    cdef int i
    for i in range(count):
        total = 0
        for worker in range(first, last):
            total += load_counter(<uint64_t*>(<char*>(words + i) + worker * sizeof(worker_t)))
        totals.append(total)
    return totals


cdef bint recover_area(handle_t* h, uint32_t index) except -1:
    """Frees the lock if this worker, which is dead, held it; counts its connections as closed."""
    cdef worker_t* area = &h.areas[index]
    cdef bint held = load_relaxed(&area.readers) != 0
    cdef uint64_t closed = 0
    cdef int killed = CloseReason.KILLED
    cdef int reason
    store_release(&area.readers, 0)
    held = release_if_owner(&h.store.writer, 1 + index) or held
    for reason in range(REASONS):
        closed += area.closed[reason]
    area.closed[killed] += area.opened - closed
    area.tasks = 0
    area.alive_ns = 0
    return held
