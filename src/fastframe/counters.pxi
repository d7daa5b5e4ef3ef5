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
