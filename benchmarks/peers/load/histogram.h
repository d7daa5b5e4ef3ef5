/*
 * A log-linear histogram of nanoseconds, in the manner of HdrHistogram: each power of two is cut
 * into 1024 equal buckets, so a recorded value is known to within 0.1 % from 1 ns to over 60 s,
 * in constant memory and with no allocation while measuring.
 */
#ifndef BENCHMARKS_HISTOGRAM_H
#define BENCHMARKS_HISTOGRAM_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#define HISTOGRAM_BITS 10                /* 2^10 buckets an octave: three significant digits */
#define HISTOGRAM_MAX_NS 60000000000ull  /* 60 s; anything longer is recorded as this */
#define HISTOGRAM_BUCKETS ((36 - HISTOGRAM_BITS + 2) << HISTOGRAM_BITS) /* 60 s < 2^36 ns */

struct histogram {
    uint64_t total;
    uint64_t longest;
    uint64_t bucket[HISTOGRAM_BUCKETS];
};

static inline size_t histogram_index(uint64_t ns)
{
    if (ns < (1u << (HISTOGRAM_BITS + 1)))
        return (size_t)ns; /* the first two octaves are exact */
    unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - HISTOGRAM_BITS;
    return ((size_t)shift << HISTOGRAM_BITS) + (size_t)(ns >> shift);
}

static inline void histogram_record(struct histogram *h, uint64_t ns, uint64_t count)
{
    if (ns > HISTOGRAM_MAX_NS)
        ns = HISTOGRAM_MAX_NS;
    if (ns > h->longest)
        h->longest = ns;
    h->total += count;
    h->bucket[histogram_index(ns)] += count;
}

/* The longest time that the fastest `percent` of the recorded ones took, in microseconds. */
static inline double histogram_percentile_us(const struct histogram *h, double percent)
{
    uint64_t wanted = (uint64_t)ceil((double)h->total * percent / 100.0);
    uint64_t seen = 0;
    for (size_t i = 0; i < HISTOGRAM_BUCKETS; i++) {
        seen += h->bucket[i];
        if (seen == 0 || seen < wanted)
            continue;
        unsigned shift = i < (2u << HISTOGRAM_BITS) ? 0 : (unsigned)(i >> HISTOGRAM_BITS) - 1;
        uint64_t low = ((uint64_t)i - ((uint64_t)shift << HISTOGRAM_BITS)) << shift;
        uint64_t high = low + ((1ull << shift) - 1);
        return (double)(high < h->longest ? high : h->longest) / 1000.0;
    }
    return 0.0;
}

#endif
