/* How long the check of a body takes, by what the body is made of:

       make bench-bodies

   A line for each: the shape, and the nanoseconds of CPU time a byte in a body of 1 MB, the
   best of 25 rounds. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bodycheck.h"

enum { SIZE = 1000000, ROUNDS = 25 };

static unsigned char body[SIZE];
static uint32_t size;

static double cpu_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (double)now.tv_sec * 1e9 + (double)now.tv_nsec;
}

static void measure(const char *shape, int counted) {
    const body_limits_t limits = {UINT32_MAX, 32, UINT32_MAX, counted};
    body_shape_t found;
    double best = 1e18;
    for (int round = 0; round < ROUNDS; round++) {
        double began = cpu_ns();
        if (check_body(body, size, &limits, &found) != BODY_FITS) abort();
        double took = cpu_ns() - began;
        if (took < best) best = took;
    }
    printf("%-44s %5.2f\n", shape, best / size);
}

/* A body of the same objects again and again, behind the head of an array or a map of all of
   them (0xdd, 0xdf), or behind none (0). */
static void repeat(const char *shape, int counted, unsigned char head, const char *object,
                   uint32_t bytes) {
    uint32_t count = 0;
    size = head ? 5 : 0;
    for (; size + bytes <= SIZE; size += bytes, count++) memcpy(body + size, object, bytes);
    if (head) {
        body[0] = head;
        for (int i = 0; i < 4; i++) body[1 + i] = (unsigned char)(count >> (24 - 8 * i));
    }
    measure(shape, counted);
}

static void mixed_lengths(void) {
    static const char *const objects[] = {"\x05", "\xa1x", "\xcd\x01\x02"};
    uint32_t random = 1;
    for (size = 0; size + 3 <= SIZE;) {
        random = random * 1664525u + 1013904223u;
        uint32_t bytes = 1 + (random >> 16) % 3;
        memcpy(body + size, objects[bytes - 1], bytes);
        size += bytes;
    }
    measure("objects of 1, 2 and 3 bytes in any order", COUNT_NONE);
}

#define REPEAT(shape, counted, head, object) \
    repeat(shape, counted, head, object, (uint32_t)sizeof(object) - 1)

int main(void) {
    puts("ns a byte");
    REPEAT("records: a map of 4 fields", COUNT_NONE, 0xDD,
           "\x84\xa3sku\xaa" "abcdefghij\xa3qty\x07\xa5price\xcb\0\0\0\0\0\0\0\0"
           "\xa4tags\x92\xa3new\xa4sale");
    REPEAT("strings of 30", COUNT_NONE, 0xDD, "\xbe" "012345678901234567890123456789");
    REPEAT("strings of 1", COUNT_NONE, 0xDD, "\xa1x");
    REPEAT("floats", COUNT_NONE, 0xDD, "\xcb\0\0\0\0\0\0\0\0");
    REPEAT("ints of 3 bytes", COUNT_NONE, 0xDD, "\xcd\x01\x02");
    REPEAT("ints of 1 byte", COUNT_NONE, 0xDD, "\x05");
    REPEAT("a map of empty strings and nil", COUNT_NONE, 0xDF, "\xa0\xc0");
    REPEAT("a set of ints of 1 byte", COUNT_NUMBERS, 0xDD, "\x05");
    mixed_lengths();
    REPEAT("maps of one empty string and nil", COUNT_NONE, 0xDD, "\x81\xa0\xc0");
    REPEAT("arrays of two ints of 1 byte", COUNT_NONE, 0xDD, "\x92\x01\x02");
    REPEAT("arrays of one nil", COUNT_NONE, 0xDD, "\x91\xc0");
    return 0;
}
