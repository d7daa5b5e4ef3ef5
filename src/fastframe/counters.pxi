# The counters in the workers' areas: service times, and sums for a scrape.

# Upper bounds of the histograms, in ns; what is longer is in the bucket after the last.
# Service time: a built-in frame takes some 50 ns, a chunk of thousands a fraction of a
# ms; user functions ms to seconds.
cdef enum:
    SERVICE_BOUNDS = 21
    LAG_BOUNDS = 12
cdef uint64_t[SERVICE_BOUNDS] SERVICE
SERVICE[:] = [
    5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000,
    100_000_000, 250_000_000, 500_000_000, 1_000_000_000, 2_500_000_000,
    5_000_000_000, 10_000_000_000, 60_000_000_000,
]
# Lateness of an event loop's timers: a loop that is idle has some 0.1 ms, a turn of it
# under load a few ms; a worker that is late by seconds is killed as hung.
cdef uint64_t[LAG_BOUNDS] LAG
LAG[:] = [
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 25_000_000, 50_000_000,
    100_000_000, 250_000_000, 500_000_000, 1_000_000_000, 5_000_000_000,
]
BUCKET_BOUNDS = tuple([bound / 1e9 for bound in SERVICE])
LAG_BUCKET_BOUNDS = tuple([bound / 1e9 for bound in LAG])


cdef inline int bucket_of(uint64_t ns, const uint64_t* bounds, int count) noexcept nogil:
    cdef int bucket
    for bucket in range(count):
        if ns <= bounds[bucket]:
            return bucket
    return count


cdef inline int service_bucket(uint64_t ns) noexcept nogil:
    return bucket_of(ns, SERVICE, SERVICE_BOUNDS)


cdef inline int lag_bucket(uint64_t ns) noexcept nogil:
    return bucket_of(ns, LAG, LAG_BOUNDS)


# Frames of a chunk, by row of the built-in functions. Read in pairs of rows: most chunks
# have frames of one row, and to look at each row takes twice the instructions.
cdef union Done:
    uint32_t[FIRST_USER] frames
    uint64_t[FIRST_USER >> 1] pairs


cdef inline void observe(worker_t* me, const Done* done, uint64_t elapsed) noexcept nogil:
    """Counts the service time of a chunk's built-in frames: their replies leave together."""
    cdef int bucket = service_bucket(elapsed)
    cdef int pair, row
    for pair in range(FIRST_USER >> 1):
        if done.pairs[pair]:
            for row in range(2 * pair, 2 * pair + 2):
                me.buckets[row][bucket] += done.frames[row]
                me.nanoseconds[row] += elapsed * done.frames[row]


cdef dict counters_of(worker_t* areas, uint32_t first, uint32_t last):
    """The counters of these workers, as ``Storage.counters`` returns them."""
    return {
        "opened": sums(&areas.opened, 1, first, last)[0],
        "bytes_in": sums(&areas.bytes_in, 1, first, last)[0],
        "bytes_out": sums(&areas.bytes_out, 1, first, last)[0],
        "closed": sums(&areas.closed[0], len(CloseReason), first, last),
        "requests": [
            sums(&areas.requests[row][0], len(CODE_COLUMNS), first, last)
            + sums(&areas.requests[row][COLUMN_OTHER], 1, first, last)
            for row in range(FUNCTIONS)
        ],
        "buckets": [
            sums(&areas.buckets[row][0], SERVICE_BOUNDS + 1, first, last)
            for row in range(FUNCTIONS)
        ],
        "nanoseconds": sums(&areas.nanoseconds[0], FUNCTIONS, first, last),
        "lag_buckets": sums(&areas.lag_buckets[0], LAG_BOUNDS + 1, first, last),
        "lag_nanoseconds": sums(&areas.lag_nanoseconds, 1, first, last)[0],
        "tasks": sums(&areas.tasks, 1, first, last)[0],
        "dropped_lines": sums(&areas.dropped_lines, 1, first, last)[0],
    }


cdef list sums(uint64_t* words, int count, uint32_t first, uint32_t last):
    """Sums each of this many words, which begin here in the first area, over the workers."""
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


cdef uint64_t open_connections(worker_t* area) noexcept:
    """How many connections a worker has open, which may count on meanwhile."""
    cdef uint64_t closed = 0
    cdef int reason
    for reason in range(REASONS):
        closed += load_counter(&area.closed[reason])
    cdef uint64_t opened = load_counter(&area.opened)  # after `closed`: never fewer
    return opened - closed


cdef bint recover_area(handle_t* h, uint32_t index) except -1:
    """Frees the lock if this worker, which is dead, held it; counts its connections as closed."""
    cdef worker_t* area = &h.areas[index]
    cdef bint held = load_relaxed(&h.readers[index].readers) != 0
    cdef int killed = CloseReason.KILLED
    store_release(&h.readers[index].readers, 0)
    h.readers[index].gave_up = 0
    h.readers[index].pid = 0
    h.readers[index].turn_due_ns = 0
    held = release_if_owner(&h.store.lock.writer, 1 + index) or held
    release_if_owner(&h.store.lock.turn, 1 + index)
    area.closed[killed] += open_connections(area)
    area.tasks = 0
    area.alive_ns = 0
    return held
