/* What is sent, and what must come back, laid out before the start. */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>

enum {
    VISITS = 5, /* times the tape visits each slot; --mix mixed writes in one of them */
};

struct tape tape;

struct visit {
    unsigned slot;
    bool write;
};

static void make_value(unsigned slot, uint8_t *value)
{
    char digits[16];
    snprintf(digits, sizeof digits, "%03u", slot);
    for (unsigned i = 0; i < options.value_size; i++)
        value[i] = i < 3 ? (uint8_t)digits[i] : (uint8_t)('a' + (slot + i) % 26);
}

static struct tape make_tape(const struct visit *visits, size_t period)
{
    struct tape made = {
        .period = period,
        .requests = reserve(period, MAX_FRAME),
        .offset = reserve(period + 1, sizeof(size_t)),
        .expected = reserve(period, sizeof(struct expected)),
    };
    /* Replies are shared by all visits to a slot, to take less of the processor's caches. */
    made.replies = reserve(2 * SLOTS, MAX_FRAME);
    for (size_t i = 0; i < period; i++) {
        struct visit visit = visits[i];
        uint8_t value[MAX_VALUE];
        make_value(visit.slot, value);
        size_t size = options.protocol->put_request(made.requests + made.offset[i], visit.slot, value, visit.write);
        made.offset[i + 1] = made.offset[i] + size;
        if (size > made.longest)
            made.longest = size;
        uint8_t *reply = made.replies + (visit.slot * 2 + visit.write) * (size_t)MAX_FRAME;
        made.expected[i].bytes = reply;
        made.expected[i].size = options.protocol->put_expected(reply, visit.slot, value, visit.write);
    }
    return made;
}

struct tape make_mixed_tape(void)
{
    static struct visit visits[SLOTS * VISITS];
    for (unsigned i = 0; i < SLOTS * VISITS; i++) {
        visits[i].slot = i % SLOTS;
        visits[i].write = options.mix == WRITE || (options.mix == MIXED && i < SLOTS);
    }
    uint64_t random = 0x9e3779b97f4a7c15u; /* a fixed seed: every run sends the same */
    for (unsigned i = SLOTS * VISITS - 1; i > 0; i--) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        unsigned j = (unsigned)(random % (i + 1));
        struct visit swapped = visits[i];
        visits[i] = visits[j];
        visits[j] = swapped;
    }
    return make_tape(visits, SLOTS * VISITS);
}

/* Each slot written once, in order. */
struct tape make_prefill_tape(void)
{
    static struct visit visits[SLOTS];
    for (unsigned i = 0; i < SLOTS; i++)
        visits[i] = (struct visit){.slot = i, .write = true};
    return make_tape(visits, SLOTS);
}

struct tape make_own_function_tape(void)
{
    struct tape made = {
        .period = 1,
        .requests = reserve(1, HEADER + options.body_size),
        .offset = reserve(2, sizeof(size_t)),
        .expected = reserve(1, sizeof(struct expected)),
        .longest = HEADER + options.body_size,
    };
    put_iproto_header(made.requests, options.func_id, options.body_size);
    memcpy(made.requests + HEADER, options.body, options.body_size);
    made.offset[1] = made.longest;
    return made;
}

void free_tape(struct tape *old)
{
    free(old->replies);
    free(old->expected);
    free(old->offset);
    free(old->requests);
}
