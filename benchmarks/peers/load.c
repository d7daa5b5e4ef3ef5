/*
 * A load generator for iproto, Redis, memcached and Tarantool: one thread, one epoll, the same
 * work in every protocol, so that what differs between two results is the server.
 *
 * What is sent is laid out before the start: a tape of request frames that visits each of the 1000
 * slots equally often, in a shuffled order, and beside each frame the bytes of the reply it must
 * get. Sending is copying a stretch of the tape (and writing the request ids into it), receiving
 * is comparing. Every reply is compared in full; only one that differs is parsed.
 *
 * Closed loop (no --rate): `depth` requests are kept in flight on each connection.
 * Open loop (--rate): requests are due on a fixed schedule and go out when due, at most `depth` in
 * flight on each connection; a latency runs from the time a request was DUE, so a server that
 * stalls is charged for those that had to wait for it (no coordinated omission).
 */
#define _GNU_SOURCE
#include "histogram.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    SLOTS = 1000,
    VISITS = 5,                 /* times the tape visits each slot; --mix mixed writes in one of them */
    MAX_VALUE = 256,            /* the longest string an iproto slot holds */
    MAX_BODY = 64 * 1024,       /* of a --body-hex */
    MAX_REPLY = 1024 * 1024,    /* a longer reply is taken for a broken stream */
    RECEIVE_CHUNK = 256 * 1024, /* one recv: a depth of 256 with the longest values fits */
    PREFILL_BATCH = 50,
    WAIT_SECONDS = 5,           /* for a connection, for a prefill's replies, for the last replies */
    EVENTS = 256,
};

enum {
    FUNC_REPLACE = 0x00020001,
    FUNC_READ = 0x00020002,
    FUNC_PING = 0x0000ff00,     /* its reply is a bare header: no return code */
    FUNC_SHUTDOWN = 0x0000ff01,
    HEADER = 12,                /* func_id, body_length, request_id */
};

/* Tarantool's frames have fixed heads too, so they can be laid out in advance like the others:
 *   request  ce SIZE | 82 00 TYPE 01 ce SYNC | body
 *   reply    ce SIZE | 83 00 ce CODE 01 cf SYNC 05 ce SCHEMA_VERSION | body     (all big-endian) */
enum {
    TARANTOOL_SELECT = 1,
    TARANTOOL_REPLACE = 3,
    TARANTOOL_REQUEST = 14,     /* bytes before the body */
    TARANTOOL_REPLY = 28,
    TARANTOOL_GREETING = 128,   /* comes first on a connection */
};

enum protocol { IPROTO, REDIS, MEMCACHED, TARANTOOL };
enum dialect { VK, MAILRU };    /* mailru counts the return code into a reply's body_length */
enum mix { READ, WRITE, MIXED };

static const char *const PROTOCOLS[] = {"iproto", "redis", "memcached", "tarantool", NULL};
static const char *const DIALECTS[] = {"vk", "mailru", NULL};
static const char *const MIXES[] = {"read", "write", "mixed", NULL};

static struct {
    enum protocol protocol;
    enum dialect dialect;
    enum mix mix;
    const char *host, *port, *unix_path;
    unsigned connections, depth, value_size;
    double duration, warmup, rate;
    bool json;
    bool own_function;          /* --func-id: one frame of a user's function, always the same */
    uint32_t func_id;
    uint8_t body[MAX_BODY];
    size_t body_size;
} options = {
    .host = "127.0.0.1",
    .connections = 50,
    .depth = 1,
    .value_size = 64,
    .duration = 5,
    .warmup = 1,
};

struct expected {
    const uint8_t *bytes;       /* the whole reply; what is known only then (the id) is 0 in it */
    size_t size;
};

struct tape {
    size_t period;              /* requests until it starts over */
    uint8_t *requests;
    size_t *offset;             /* of each request, and of the end: period + 1 of them */
    struct expected *expected;
    uint8_t *replies;           /* what `expected` points into */
    size_t longest;             /* request, bytes */
};

struct connection {
    int fd;                     /* -1 once it is closed */
    unsigned number;
    bool want_write;            /* registered for EPOLLOUT */

    /* Requests are numbered 0, 1, 2 ...; an iproto request_id is the number's low 32 bits. The
     * window [oldest, next) holds those that may still be answered; oldest is always in flight
     * unless the window is empty. sent_at is 0 for one that has been answered. */
    uint64_t oldest, next;
    uint64_t passed;            /* one past the highest number whose reply came before an older one's */
    uint64_t *sent_at;          /* a ring of window_size */
    size_t answer_at, send_at;  /* places on the tape of `oldest` and of `next` */
    size_t first_at;            /* place on the tape of request 0 */
    unsigned in_flight;
    uint64_t due;               /* open loop: requests whose time had come so far */
    bool listed;                /* open loop: is in the list of those to be served now */

    uint8_t *pending;           /* what a send did not take; nothing new is sent before it is gone */
    size_t pending_size, pending_sent;
    uint8_t *carry;             /* the start of a reply that has not come in whole */
    size_t carry_size, carry_room;
};

static struct tape tape;
static struct connection *connections;
static uint64_t window_size;
static unsigned alive;
static int epoll_fd;
static uint8_t *receive_buffer; /* one for all: what stays behind in it goes to a carry */
static uint8_t *send_buffer;
static uint64_t started, warm, end; /* ns; replies from `warm` to `end` are measured */
static bool sending;

static struct {
    uint64_t replies;           /* good ones between `warm` and `end` */
    uint64_t lost, doubled, wrong, out_of_order, errors, connection_errors, unsent;
    char first_problem[256];
} result;

static struct histogram latency;

/* Replies to requests of one batch have one latency: they are recorded as a run. */
static struct {
    uint64_t sent_at, received_at, count;
} run;

/* ---- small helpers ------------------------------------------------------------------------- */

static void __attribute__((format(printf, 2, 3), noreturn)) die(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    exit(code);
}

static void __attribute__((format(printf, 1, 2))) note_problem(const char *format, ...)
{
    if (result.first_problem[0])
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(result.first_problem, sizeof result.first_problem, format, args);
    va_end(args);
}

static void *reserve(size_t count, size_t size)
{
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        die(1, "out of memory");
    return memory;
}

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static double cpu_seconds(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

static inline uint32_t load_u32(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, 4);
    return le32toh(value);
}

static inline void store_u32(uint8_t *p, uint32_t value)
{
    value = htole32(value);
    memcpy(p, &value, 4);
}

static inline uint32_t load_u32_big(const uint8_t *p)
{
    uint32_t value;
    memcpy(&value, p, 4);
    return be32toh(value);
}

static inline void store_u32_big(uint8_t *p, uint32_t value)
{
    value = htobe32(value);
    memcpy(p, &value, 4);
}

/* ---- the tape ------------------------------------------------------------------------------ */

static void make_value(unsigned slot, uint8_t *value)
{
    char digits[16];
    snprintf(digits, sizeof digits, "%03u", slot);
    for (unsigned i = 0; i < options.value_size; i++)
        value[i] = i < 3 ? (uint8_t)digits[i] : (uint8_t)('a' + (slot + i) % 26);
}

static size_t put_header(uint8_t *out, uint32_t func_id, size_t body_length)
{
    store_u32(out, func_id);
    store_u32(out + 4, (uint32_t)body_length);
    store_u32(out + 8, 0);
    return HEADER;
}

static size_t put_index(uint8_t *out, unsigned slot)
{
    if (slot < 128) {
        out[0] = (uint8_t)slot;
        return 1;
    }
    if (slot < 256) {
        out[0] = 0xcc;
        out[1] = (uint8_t)slot;
        return 2;
    }
    out[0] = 0xcd;
    out[1] = (uint8_t)(slot >> 8);
    out[2] = (uint8_t)slot;
    return 3;
}

static size_t put_string(uint8_t *out, const uint8_t *value, size_t size)
{
    size_t head;
    if (size < 32) {
        out[0] = (uint8_t)(0xa0 | size);
        head = 1;
    } else if (size < 256) {
        out[0] = 0xd9;
        out[1] = (uint8_t)size;
        head = 2;
    } else {
        out[0] = 0xda;
        out[1] = (uint8_t)(size >> 8);
        out[2] = (uint8_t)size;
        head = 3;
    }
    memcpy(out + head, value, size);
    return head + size;
}

/* The space `slots`, of tuples [slot, value], has the id 512: tarantool.lua makes it so. */
static size_t put_tarantool_request(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    static const uint8_t SELECT[] = {0x86, 0x10, 0xcd, 0x02, 0x00, 0x11, 0, 0x12, 1, 0x13, 0, 0x14, 0, 0x20, 0x91};
    static const uint8_t REPLACE[] = {0x82, 0x10, 0xcd, 0x02, 0x00, 0x21, 0x92};
    size_t size = TARANTOOL_REQUEST;
    memcpy(out + size, write ? REPLACE : SELECT, write ? sizeof REPLACE : sizeof SELECT);
    size += write ? sizeof REPLACE : sizeof SELECT;
    size += put_index(out + size, slot);
    if (write)
        size += put_string(out + size, value, options.value_size);
    out[0] = 0xce;
    store_u32_big(out + 1, (uint32_t)size - 5);
    memcpy(out + 5, (uint8_t[]){0x82, 0x00, write ? TARANTOOL_REPLACE : TARANTOOL_SELECT, 0x01, 0xce}, 5);
    store_u32_big(out + 10, 0);
    return size;
}

/* Both return the tuple. */
static size_t put_tarantool_expected(uint8_t *out, unsigned slot, const uint8_t *value)
{
    size_t size = TARANTOOL_REPLY;
    memcpy(out + size, (uint8_t[]){0x81, 0x30, 0xdd, 0, 0, 0, 1, 0x92}, 8);
    size += 8;
    size += put_index(out + size, slot);
    size += put_string(out + size, value, options.value_size);
    memset(out, 0, TARANTOOL_REPLY);
    out[0] = 0xce;
    store_u32_big(out + 1, (uint32_t)size - 5);
    memcpy(out + 5, (uint8_t[]){0x83, 0x00, 0xce}, 3);
    memcpy(out + 12, (uint8_t[]){0x01, 0xcf}, 2);
    memcpy(out + 22, (uint8_t[]){0x05, 0xce}, 2);
    return size;
}

static size_t put_request(uint8_t *out, unsigned slot, bool write)
{
    uint8_t value[MAX_VALUE];
    make_value(slot, value);
    int size;
    switch (options.protocol) {
    case IPROTO: {
        size_t body = put_index(out + HEADER, slot);
        if (write)
            body += put_string(out + HEADER + body, value, options.value_size);
        return put_header(out, write ? FUNC_REPLACE : FUNC_READ, body) + body;
    }
    case REDIS:
        if (write)
            size = sprintf((char *)out, "*3\r\n$3\r\nSET\r\n$7\r\nkey:%03u\r\n$%u\r\n", slot, options.value_size);
        else
            return (size_t)sprintf((char *)out, "*2\r\n$3\r\nGET\r\n$7\r\nkey:%03u\r\n", slot);
        break;
    case MEMCACHED:
        if (write)
            size = sprintf((char *)out, "set key:%03u 0 0 %u\r\n", slot, options.value_size);
        else
            return (size_t)sprintf((char *)out, "get key:%03u\r\n", slot);
        break;
    case TARANTOOL:
        return put_tarantool_request(out, slot, value, write);
    default:
        abort();
    }
    memcpy(out + size, value, options.value_size);
    memcpy(out + size + options.value_size, "\r\n", 2);
    return (size_t)size + options.value_size + 2;
}

static size_t put_expected(uint8_t *out, unsigned slot, bool write)
{
    uint8_t value[MAX_VALUE];
    make_value(slot, value);
    int size;
    switch (options.protocol) {
    case IPROTO: {
        size_t body = 1;
        if (write)
            out[HEADER + 4] = 0xc0;
        else
            body = put_string(out + HEADER + 4, value, options.value_size);
        put_header(out, write ? FUNC_REPLACE : FUNC_READ, body + (options.dialect == MAILRU ? 4 : 0));
        store_u32(out + HEADER, 0);
        return HEADER + 4 + body;
    }
    case REDIS:
        if (write)
            return (size_t)sprintf((char *)out, "+OK\r\n");
        size = sprintf((char *)out, "$%u\r\n", options.value_size);
        break;
    case MEMCACHED:
        if (write)
            return (size_t)sprintf((char *)out, "STORED\r\n");
        size = sprintf((char *)out, "VALUE key:%03u 0 %u\r\n", slot, options.value_size);
        break;
    case TARANTOOL:
        return put_tarantool_expected(out, slot, value);
    default:
        abort();
    }
    memcpy(out + size, value, options.value_size);
    size += (int)options.value_size;
    return (size_t)(size + sprintf((char *)out + size, options.protocol == REDIS ? "\r\n" : "\r\nEND\r\n"));
}

struct visit {
    unsigned slot;
    bool write;
};

static struct tape make_tape(const struct visit *visits, size_t period)
{
    enum { ROOM = MAX_VALUE + 64 };
    struct tape made = {
        .period = period,
        .requests = reserve(period, ROOM),
        .offset = reserve(period + 1, sizeof(size_t)),
        .expected = reserve(period, sizeof(struct expected)),
    };
    /* Replies are shared by all visits to a slot, to take less of the processor's caches. */
    made.replies = reserve(2 * SLOTS, ROOM);
    for (size_t i = 0; i < period; i++) {
        struct visit visit = visits[i];
        size_t size = put_request(made.requests + made.offset[i], visit.slot, visit.write);
        made.offset[i + 1] = made.offset[i] + size;
        if (size > made.longest)
            made.longest = size;
        uint8_t *reply = made.replies + (visit.slot * 2 + visit.write) * (size_t)ROOM;
        made.expected[i].bytes = reply;
        made.expected[i].size = put_expected(reply, visit.slot, visit.write);
    }
    return made;
}

static struct tape make_mixed_tape(void)
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

static struct tape make_own_function_tape(void)
{
    struct tape made = {
        .period = 1,
        .requests = reserve(1, HEADER + options.body_size),
        .offset = reserve(2, sizeof(size_t)),
        .expected = reserve(1, sizeof(struct expected)),
        .longest = HEADER + options.body_size,
    };
    put_header(made.requests, options.func_id, options.body_size);
    memcpy(made.requests + HEADER, options.body, options.body_size);
    made.offset[1] = made.longest;
    return made;
}

static void free_tape(struct tape *old)
{
    free(old->replies);
    free(old->expected);
    free(old->offset);
    free(old->requests);
}

/* ---- receiving ----------------------------------------------------------------------------- */

static void flush_run(void)
{
    if (run.count)
        histogram_record(&latency, run.received_at - run.sent_at, run.count);
    run.count = 0;
}

/* The request `number` has been answered well. */
static inline void answered(uint64_t sent_at, uint64_t now)
{
    if (now >= warm && now < end)
        result.replies++;
    /* The open loop measures what was due in time, however late its reply comes. */
    if (options.rate > 0 ? sent_at < warm : now < warm || now >= end)
        return;
    if (sent_at != run.sent_at || now != run.received_at) {
        flush_run();
        run.sent_at = sent_at;
        run.received_at = now;
    }
    run.count++;
}

/* Takes the oldest request of a window that is not empty out of flight; `oldest` moves on to the
 * next one still in flight. */
static inline uint64_t take_oldest(struct connection *c)
{
    uint64_t sent_at = c->sent_at[c->oldest & (window_size - 1)];
    c->sent_at[c->oldest & (window_size - 1)] = 0;
    c->in_flight--;
    do {
        c->oldest++;
        if (++c->answer_at == tape.period)
            c->answer_at = 0;
    } while (c->oldest != c->next && c->sent_at[c->oldest & (window_size - 1)] == 0);
    return sent_at;
}

static uint64_t take(struct connection *c, uint64_t number)
{
    if (number == c->oldest)
        return take_oldest(c);
    if (number >= c->passed)
        c->passed = number + 1;
    uint64_t sent_at = c->sent_at[number & (window_size - 1)];
    c->sent_at[number & (window_size - 1)] = 0;
    c->in_flight--;
    return sent_at;
}

static void close_connection(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    alive--;
}

static void break_connection(struct connection *c, const char *why)
{
    note_problem("connection %u: %s", c->number, why);
    result.connection_errors++;
    close_connection(c);
}

static const char *printable(const uint8_t *text, size_t size)
{
    static char out[96];
    size_t n = 0;
    for (; n < size && n < sizeof out - 1; n++)
        out[n] = text[n] >= 32 && text[n] < 127 ? (char)text[n] : '.';
    out[n] = 0;
    return out;
}

/* Whether a reply with this id answers a request in flight, and which; says so if it does not. */
static bool find_request(struct connection *c, uint32_t id, uint64_t *number)
{
    int64_t ahead = (int32_t)(id - (uint32_t)c->oldest);
    *number = c->oldest + (uint64_t)ahead;
    bool sent = ahead < 0 ? -ahead <= (int64_t)window_size && (int64_t)*number >= 0 : *number < c->next;
    if (!sent) {
        result.wrong++;
        note_problem("connection %u: a reply to request_id %u, which was not sent", c->number, id);
        return false;
    }
    if (ahead < 0 || c->sent_at[*number & (window_size - 1)] == 0) {
        result.doubled++;
        note_problem("connection %u, request_id %u: answered before", c->number, id);
        return false;
    }
    return true;
}

/* A good reply that was not the next one expected. */
static void answered_out_of_turn(struct connection *c, uint64_t number, uint64_t now)
{
    bool overtaken = number < c->passed;
    uint64_t sent_at = take(c, number);
    /* Only iproto's built-in functions promise to keep the order. */
    if (overtaken && options.protocol == IPROTO && !options.own_function) {
        result.out_of_order++;
        note_problem("connection %u, request_id %u: replied to after a later one", c->number, (uint32_t)number);
    } else {
        answered(sent_at, now);
    }
}

/* The stream can't be followed any further. */
static size_t lose_track(struct connection *c, const uint8_t *p, size_t size)
{
    note_problem("connection %u: can't make out %s", c->number, printable(p, size));
    result.wrong++;
    break_connection(c, "the stream is broken");
    return 0;
}

/* A reply that is not, byte for byte, the next one expected: says what is the matter with it.
 * Returns its size, or 0 when it has not come in whole or the stream is broken. */
static size_t examine_iproto(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    if (size < HEADER)
        return 0;
    uint32_t func_id = load_u32(p), body_length = load_u32(p + 4), id = load_u32(p + 8);
    bool bare = options.own_function && func_id == FUNC_PING;
    if (body_length > MAX_REPLY - HEADER - 4 || (options.dialect == MAILRU && !bare && body_length < 4))
        return lose_track(c, p, HEADER);
    size_t whole = HEADER + (size_t)body_length + (bare || options.dialect == MAILRU ? 0 : 4);
    if (size < whole)
        return 0;
    uint64_t number;
    if (!find_request(c, id, &number))
        return whole;

    const struct expected *want = &tape.expected[(c->first_at + number) % tape.period];
    uint32_t wanted_func = options.own_function ? options.func_id : load_u32(want->bytes);
    if (func_id != wanted_func) {
        take(c, number);
        result.wrong++;
        note_problem("connection %u, request_id %u: func_id 0x%08x for 0x%08x", c->number, id, func_id, wanted_func);
    } else if (!bare && load_u32(p + HEADER) != 0) {
        take(c, number);
        result.errors++;
        note_problem("connection %u, request_id %u: return code 0x%04x %s", c->number, id, load_u32(p + HEADER),
                     printable(p + HEADER + 4, whole - HEADER - 4));
    } else if (!options.own_function &&
               (whole != want->size || memcmp(p + HEADER, want->bytes + HEADER, whole - HEADER) != 0)) {
        take(c, number);
        result.wrong++;
        note_problem("connection %u, request_id %u: another body of %u bytes", c->number, id, body_length);
    } else {
        answered_out_of_turn(c, number, now);
    }
    return whole;
}

static size_t consume_iproto(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    size_t used = 0;
    while (used < size) {
        if (!options.own_function && c->oldest != c->next && c->oldest >= c->passed) {
            const struct expected *want = &tape.expected[c->answer_at];
            const uint8_t *reply = p + used;
            if (size - used >= want->size && memcmp(reply, want->bytes, 8) == 0 &&
                load_u32(reply + 8) == (uint32_t)c->oldest &&
                memcmp(reply + HEADER, want->bytes + HEADER, want->size - HEADER) == 0) {
                used += want->size;
                answered(take_oldest(c), now);
                continue;
            }
        }
        size_t whole = examine_iproto(c, p + used, size - used, now);
        if (whole == 0)
            break;
        used += whole;
    }
    return used;
}

static bool tarantool_matches(const uint8_t *reply, size_t size, const struct expected *want)
{
    return size >= want->size && memcmp(reply, want->bytes, 14) == 0 && load_u32_big(reply + 14) == 0 &&
           memcmp(reply + 22, want->bytes + 22, 2) == 0 &&
           memcmp(reply + TARANTOOL_REPLY, want->bytes + TARANTOOL_REPLY, want->size - TARANTOOL_REPLY) == 0;
}

/* As examine_iproto. */
static size_t examine_tarantool(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    if (size < TARANTOOL_REPLY)
        return 0;
    uint32_t length = load_u32_big(p + 1), id = load_u32_big(p + 18);
    if (p[0] != 0xce || memcmp(p + 5, "\x83\x00\xce", 3) != 0 || memcmp(p + 12, "\x01\xcf\x00\x00\x00\x00", 6) != 0 ||
        length < TARANTOOL_REPLY - 5 || length > MAX_REPLY - 5)
        return lose_track(c, p, TARANTOOL_REPLY);
    size_t whole = 5 + (size_t)length;
    if (size < whole)
        return 0;
    uint64_t number;
    if (!find_request(c, id, &number))
        return whole;

    const struct expected *want = &tape.expected[(c->first_at + number) % tape.period];
    if (whole == want->size && tarantool_matches(p, whole, want)) {
        answered_out_of_turn(c, number, now);
        return whole;
    }
    take(c, number);
    if (load_u32_big(p + 8) != 0)
        result.errors++;
    else
        result.wrong++;
    note_problem("connection %u, sync %u: code 0x%x %s", c->number, id, load_u32_big(p + 8),
                 printable(p + TARANTOOL_REPLY, whole - TARANTOOL_REPLY));
    return whole;
}

static size_t consume_tarantool(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    size_t used = 0;
    while (used < size) {
        if (c->oldest != c->next) {
            const struct expected *want = &tape.expected[c->answer_at];
            if (tarantool_matches(p + used, size - used, want) && load_u32_big(p + used + 18) == (uint32_t)c->oldest) {
                used += want->size;
                answered(take_oldest(c), now);
                continue;
            }
        }
        size_t whole = examine_tarantool(c, p + used, size - used, now);
        if (whole == 0)
            break;
        used += whole;
    }
    return used;
}

/* Size of the line at p with its CR LF; 0 when it has not come in whole, or is too long. */
static size_t line_size(const uint8_t *p, size_t size)
{
    const uint8_t *lf = memchr(p, '\n', size);
    return lf ? (size_t)(lf - p) + 1 : 0;
}

static bool starts_with(const uint8_t *p, size_t size, const char *word)
{
    return size >= strlen(word) && memcmp(p, word, strlen(word)) == 0;
}

/* As examine_iproto. The text protocols have no ids: a reply is the next one, or one too many. */
static size_t examine_text(struct connection *c, const uint8_t *p, size_t size)
{
    size_t line = line_size(p, size);
    if (line == 0 && size < MAX_REPLY)
        return 0;
    size_t whole = line;
    char *after = NULL;
    unsigned long length = 0;
    if (options.protocol == REDIS && p[0] == '$' && p[1] != '-') {
        length = strtoul((const char *)p + 1, &after, 10);
        whole = line + length + 2;
    } else if (options.protocol == MEMCACHED && starts_with(p, line, "VALUE ")) {
        const char *last_space = memrchr(p, ' ', line);
        length = strtoul(last_space, &after, 10);
        whole = line + length + strlen("\r\nEND\r\n");
    }
    if (line == 0 || whole > MAX_REPLY || (after && *after != '\r'))
        return lose_track(c, p, size);
    if (size < whole)
        return 0;

    if (c->oldest == c->next) {
        result.doubled++;
        note_problem("connection %u: a reply with no request: %s", c->number, printable(p, whole));
        return whole;
    }
    take_oldest(c);
    bool error = options.protocol == REDIS ? p[0] == '-'
                                           : starts_with(p, line, "ERROR") || starts_with(p, line, "CLIENT_ERROR") ||
                                                 starts_with(p, line, "SERVER_ERROR");
    if (error)
        result.errors++;
    else
        result.wrong++;
    note_problem("connection %u: %s", c->number, printable(p, whole));
    return whole;
}

static size_t consume_text(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    size_t used = 0;
    while (used < size) {
        if (c->oldest != c->next) {
            const struct expected *want = &tape.expected[c->answer_at];
            size_t have = size - used < want->size ? size - used : want->size;
            if (memcmp(p + used, want->bytes, have) == 0) {
                if (have < want->size)
                    break;
                used += want->size;
                answered(take_oldest(c), now);
                continue;
            }
        }
        size_t whole = examine_text(c, p + used, size - used);
        if (whole == 0)
            break;
        used += whole;
    }
    return used;
}

/* ---- sending ------------------------------------------------------------------------------- */

static void watch(struct connection *c, bool want_write)
{
    if (c->want_write == want_write)
        return;
    c->want_write = want_write;
    struct epoll_event event = {.events = EPOLLIN | (want_write ? EPOLLOUT : 0u), .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* Sends as much as the socket takes and returns how much that is; closes a broken connection. */
static size_t send_some(struct connection *c, const uint8_t *bytes, size_t size)
{
    ssize_t sent = send(c->fd, bytes, size, MSG_NOSIGNAL);
    if (sent >= 0)
        return (size_t)sent;
    if (errno != EAGAIN && errno != EINTR)
        break_connection(c, strerror(errno));
    return 0;
}

/* The time from which a latency is counted: in the open loop, when the request was due. */
static inline uint64_t time_of(const struct connection *c, uint64_t number, uint64_t now)
{
    if (options.rate == 0)
        return now;
    uint64_t place = number * options.connections + c->number;
    return started + (uint64_t)((double)place * 1e9 / options.rate);
}

/* Sends what may be sent now, in one write. */
static void refill(struct connection *c, uint64_t now)
{
    if (!sending || c->fd < 0 || c->pending_size)
        return;
    uint64_t count = options.depth - c->in_flight;
    if (options.rate > 0 && c->due - c->next < count)
        count = c->due - c->next;
    if (count == 0)
        return;

    /* The window is wider than the depth. A request overtaken by all that it holds is lost. */
    while (c->oldest != c->next && c->next + count - c->oldest > window_size) {
        note_problem("connection %u, request_id %u: no reply", c->number, (uint32_t)c->oldest);
        take_oldest(c);
        result.lost++;
    }

    size_t size = 0;
    c->in_flight += (unsigned)count;
    while (count) {
        size_t stretch = tape.period - c->send_at;
        if (stretch > count)
            stretch = (size_t)count;
        const size_t *offset = tape.offset + c->send_at;
        uint8_t *out = send_buffer + size;
        memcpy(out, tape.requests + offset[0], offset[stretch] - offset[0]);
        for (size_t i = 0; i < stretch; i++) {
            uint64_t number = c->next + i;
            c->sent_at[number & (window_size - 1)] = time_of(c, number, now);
            if (options.protocol == IPROTO)
                store_u32(out + (offset[i] - offset[0]) + 8, (uint32_t)number);
            else if (options.protocol == TARANTOOL)
                store_u32_big(out + (offset[i] - offset[0]) + 10, (uint32_t)number);
        }
        size += offset[stretch] - offset[0];
        c->next += stretch;
        c->send_at += stretch;
        if (c->send_at == tape.period)
            c->send_at = 0;
        count -= stretch;
    }

    size_t sent = send_some(c, send_buffer, size);
    if (c->fd < 0 || sent == size)
        return;
    if (!c->pending)
        c->pending = reserve(options.depth, tape.longest);
    memcpy(c->pending, send_buffer + sent, size - sent);
    c->pending_size = size - sent;
    c->pending_sent = 0;
    watch(c, true);
}

static void on_writable(struct connection *c)
{
    c->pending_sent += send_some(c, c->pending + c->pending_sent, c->pending_size - c->pending_sent);
    if (c->fd < 0 || c->pending_sent < c->pending_size)
        return;
    c->pending_size = 0;
    watch(c, false);
    refill(c, now_ns());
}

static void on_readable(struct connection *c)
{
    memcpy(receive_buffer, c->carry, c->carry_size);
    ssize_t got = recv(c->fd, receive_buffer + c->carry_size, RECEIVE_CHUNK, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        break_connection(c, got == 0 ? "closed by the server" : strerror(errno));
        return;
    }
    uint64_t now = now_ns(); /* of the replies, and of the requests they make room for */
    size_t size = c->carry_size + (size_t)got;
    size_t used = options.protocol == IPROTO      ? consume_iproto(c, receive_buffer, size, now)
                  : options.protocol == TARANTOOL ? consume_tarantool(c, receive_buffer, size, now)
                                                  : consume_text(c, receive_buffer, size, now);
    if (c->fd < 0)
        return;
    c->carry_size = size - used;
    if (c->carry_size > c->carry_room) {
        free(c->carry);
        c->carry_room = c->carry_size * 2;
        c->carry = reserve(1, c->carry_room);
    }
    memcpy(c->carry, receive_buffer + used, c->carry_size);
    refill(c, now);
}

/* ---- connections --------------------------------------------------------------------------- */

static int open_socket(void)
{
    struct addrinfo *found = NULL, hints = {.ai_socktype = SOCK_STREAM};
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct addrinfo unix_info = {
        .ai_family = AF_UNIX,
        .ai_socktype = SOCK_STREAM,
        .ai_addr = (struct sockaddr *)&local,
        .ai_addrlen = sizeof local,
    };
    if (options.unix_path) {
        strcpy(local.sun_path, options.unix_path);
    } else {
        int failed = getaddrinfo(options.host, options.port, &hints, &found);
        if (failed)
            die(1, "--host %s: %s", options.host, gai_strerror(failed));
    }
    int fd = -1, error = 0;
    for (struct addrinfo *a = found ? found : &unix_info; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, 0);
        if (fd < 0) {
            error = errno;
            continue;
        }
        struct timeval wait = {.tv_sec = WAIT_SECONDS}; /* of connect, and of the prefill */
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        if (!options.unix_path)
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
            error = errno;
            close(fd);
            fd = -1;
        }
    }
    if (found)
        freeaddrinfo(found);
    if (fd < 0) {
        if (options.unix_path)
            die(1, "can't connect to %s: %s", options.unix_path, strerror(error));
        die(1, "can't connect to %s:%s: %s", options.host, options.port, strerror(error));
    }
    uint8_t greeting[TARANTOOL_GREETING];
    if (options.protocol == TARANTOOL && recv(fd, greeting, sizeof greeting, MSG_WAITALL) != sizeof greeting)
        die(1, "no greeting from Tarantool");
    return fd;
}

/* Writes each slot once, so that every read of the run returns value_size bytes. */
static void prefill(void)
{
    static struct visit visits[SLOTS];
    for (unsigned i = 0; i < SLOTS; i++)
        visits[i] = (struct visit){.slot = i, .write = true};
    struct tape fill = make_tape(visits, SLOTS);
    int fd = open_socket();
    for (unsigned i = 0; i < SLOTS; i += PREFILL_BATCH) {
        const uint8_t *request = fill.requests + fill.offset[i];
        size_t left = fill.offset[i + PREFILL_BATCH] - fill.offset[i];
        while (left) {
            ssize_t sent = send(fd, request, left, MSG_NOSIGNAL);
            if (sent <= 0)
                die(1, "prefill: %s", strerror(errno));
            request += sent;
            left -= (size_t)sent;
        }
        for (unsigned j = i; j < i + PREFILL_BATCH; j++) {
            uint8_t reply[MAX_VALUE + 64];
            const struct expected *want = &fill.expected[j];
            ssize_t got = recv(fd, reply, want->size, MSG_WAITALL);
            if (got < 0)
                die(1, "prefill: %s", errno == EAGAIN ? "no reply in time" : strerror(errno));
            if (options.protocol == TARANTOOL && got >= TARANTOOL_REPLY)
                memset(reply + 24, 0, 4); /* the schema's version: any */
            if ((size_t)got != want->size || memcmp(reply, want->bytes, want->size) != 0) {
                if (options.protocol == IPROTO && got >= HEADER + 4)
                    die(1, "prefill: slot %u: func_id 0x%08x, body_length %u, return code 0x%04x", j,
                        load_u32(reply), load_u32(reply + 4), load_u32(reply + HEADER));
                die(1, "prefill: slot %u: %s", j, got ? printable(reply, (size_t)got) : "connection closed");
            }
        }
    }
    close(fd);
    free_tape(&fill);
}

static void connect_all(void)
{
    connections = reserve(options.connections, sizeof *connections);
    for (unsigned i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        c->number = i;
        c->fd = open_socket();
        fcntl(c->fd, F_SETFL, O_NONBLOCK);
        c->sent_at = reserve(window_size, sizeof *c->sent_at);
        c->carry_room = 512;
        c->carry = reserve(1, c->carry_room);
        /* Spread over the tape, so that connections don't visit the slots in step. */
        c->first_at = c->send_at = c->answer_at = (size_t)i * tape.period / options.connections;
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) != 0)
            die(1, "epoll_ctl: %s", strerror(errno));
    }
    alive = options.connections;
}

/* ---- the run ------------------------------------------------------------------------------- */

/* Open loop: hands every request whose time has come to its connection (they take turns), then
 * serves those connections, each with one write. Returns when the next request is due. */
static uint64_t dispatch_due(uint64_t now)
{
    static uint64_t dispatched;
    static struct connection **list;
    if (!list)
        list = reserve(options.connections, sizeof *list);
    uint64_t due = (uint64_t)((double)(now - started) * options.rate / 1e9) + 1;
    unsigned listed = 0;
    for (; dispatched < due; dispatched++) {
        struct connection *c = &connections[dispatched % options.connections];
        c->due++;
        if (!c->listed) {
            c->listed = true;
            list[listed++] = c;
        }
    }
    for (unsigned i = 0; i < listed; i++) {
        list[i]->listed = false;
        refill(list[i], now);
    }
    return started + (uint64_t)((double)dispatched * 1e9 / options.rate);
}

static bool replies_outstanding(void)
{
    for (unsigned i = 0; i < options.connections; i++)
        if (connections[i].fd >= 0 && connections[i].in_flight)
            return true;
    return false;
}

static void run_load(void)
{
    struct epoll_event events[EVENTS];
    started = now_ns();
    warm = started + (uint64_t)(options.warmup * 1e9);
    end = warm + (uint64_t)(options.duration * 1e9);
    sending = true;
    if (options.rate == 0)
        for (unsigned i = 0; i < options.connections; i++)
            refill(&connections[i], now_ns());

    while (alive) {
        uint64_t now = now_ns();
        uint64_t wake = end;
        if (now >= end) {
            sending = false;
            wake = end + (uint64_t)WAIT_SECONDS * 1000000000u;
            if (now >= wake || !replies_outstanding())
                break;
        } else if (options.rate > 0) {
            uint64_t next = dispatch_due(now);
            if (next < wake)
                wake = next;
        }
        now = now_ns();
        uint64_t nap = wake > now ? wake - now : 0;
        struct timespec timeout = {.tv_sec = (time_t)(nap / 1000000000u), .tv_nsec = (long)(nap % 1000000000u)};
        int ready = epoll_pwait2(epoll_fd, events, EVENTS, &timeout, NULL);
        if (ready < 0 && errno != EINTR)
            die(1, "epoll_pwait2: %s", strerror(errno));
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].events & EPOLLOUT)
                on_writable(c);
            if (c->fd >= 0 && events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
                on_readable(c);
        }
    }
    flush_run();

    for (unsigned i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        if (c->in_flight)
            note_problem("connection %u, request_id %u: no reply", c->number, (uint32_t)c->oldest);
        result.lost += c->in_flight;
        if (options.rate > 0)
            result.unsent += c->due - c->next;
        if (c->fd >= 0)
            close_connection(c);
        free(c->sent_at);
        free(c->pending);
        free(c->carry);
    }
    free(connections);
}

static bool report(double seconds, double cpu)
{
    static const struct {
        const char *name;
        double percent;
    } LEVELS[] = {{"p50", 50}, {"p90", 90}, {"p99", 99}, {"p99.9", 99.9}, {"max", 100}};
    const struct {
        const char *name;
        uint64_t count;
    } PROBLEMS[] = {
        {"lost", result.lost},
        {"doubled", result.doubled},
        {"wrong", result.wrong},
        {"out_of_order", result.out_of_order},
        {"errors", result.errors},
        {"connection_errors", result.connection_errors},
        {"unsent", result.unsent},
    };
    enum { LEVEL_COUNT = sizeof LEVELS / sizeof LEVELS[0], PROBLEM_COUNT = sizeof PROBLEMS / sizeof PROBLEMS[0] };
    double per_second = (double)result.replies / options.duration;
    bool clean = true;
    for (unsigned i = 0; i < PROBLEM_COUNT; i++)
        clean = clean && PROBLEMS[i].count == 0;

    if (options.json) {
        printf("{\"protocol\": \"%s\", \"connections\": %u, \"depth\": %u, ", PROTOCOLS[options.protocol],
               options.connections, options.depth);
        if (options.own_function)
            printf("\"func_id\": %u, \"body_size\": %zu, ", options.func_id, options.body_size);
        else
            printf("\"mix\": \"%s\", \"value_size\": %u, ", MIXES[options.mix], options.value_size);
        if (options.rate > 0)
            printf("\"rate\": %.3f, ", options.rate);
        printf("\"duration\": %.3f, \"replies\": %llu, \"requests_per_second\": %.1f, \"seconds\": %.3f, "
               "\"load_cpu\": %.3f, ",
               options.duration, (unsigned long long)result.replies, per_second, seconds, cpu);
        for (unsigned i = 0; i < PROBLEM_COUNT; i++)
            printf("\"%s\": %llu, ", PROBLEMS[i].name, (unsigned long long)PROBLEMS[i].count);
        printf("\"latency_us\": {");
        for (unsigned i = 0; i < LEVEL_COUNT; i++)
            printf("%s\"%s\": %.1f", i ? ", " : "", LEVELS[i].name,
                   histogram_percentile_us(&latency, LEVELS[i].percent));
        printf("}}\n");
    } else {
        char what[64];
        if (options.own_function)
            snprintf(what, sizeof what, "0x%08x", options.func_id);
        else
            snprintf(what, sizeof what, "%s", MIXES[options.mix]);
        printf("%s %s, %u connections x depth %u: %.0f requests/s; latency, us:", PROTOCOLS[options.protocol], what,
               options.connections, options.depth, per_second);
        for (unsigned i = 0; i < LEVEL_COUNT; i++)
            printf(" %s %.1f%s", LEVELS[i].name, histogram_percentile_us(&latency, LEVELS[i].percent),
                   i + 1 < LEVEL_COUNT ? "," : ";");
        if (clean)
            printf(" every reply right;");
        for (unsigned i = 0; i < PROBLEM_COUNT; i++)
            if (PROBLEMS[i].count)
                printf(" %s %llu;", PROBLEMS[i].name, (unsigned long long)PROBLEMS[i].count);
        printf(" load's own CPU %.0f %%\n", cpu * 100);
    }
    if (result.first_problem[0])
        fprintf(stderr, "load: first problem: %s\n", result.first_problem);
    return clean;
}

/* ---- the command line ---------------------------------------------------------------------- */

static const char USAGE[] =
    "usage: load --protocol iproto|redis|memcached|tarantool (--port PORT [--host HOST] | --unix PATH)\n"
    "  --connections N     connections (50)\n"
    "  --depth N           requests in flight on each connection (1)\n"
    "  --mix read|write|mixed   mixed: 80 % reads (read)\n"
    "  --value-size N      bytes in a slot, 0..256 (64)\n"
    "  --duration SECONDS  of the measurement (5)\n"
    "  --warmup SECONDS    before it (1)\n"
    "  --rate R            open loop: requests/s in all, on a fixed schedule\n"
    "  --dialect vk|mailru the iproto dialect (vk)\n"
    "  --func-id 0xNNNN [--body-hex HEX]   always this frame; replies in any order\n"
    "  --json              the result as one JSON object\n"
    "exit code: 0 every request was answered as it should be, 1 not so, 2 bad options\n";

static int choose(const char *option, const char *text, const char *const *names)
{
    for (int i = 0; names[i]; i++)
        if (strcmp(text, names[i]) == 0)
            return i;
    char all[64] = "";
    for (int i = 0; names[i]; i++) {
        strcat(all, i ? ", " : "");
        strcat(all, names[i]);
    }
    die(2, "--%s %s: not one of %s", option, text, all);
}

static double parse_number(const char *option, const char *text, double low, double high)
{
    char *rest;
    errno = 0;
    double value = strtod(text, &rest);
    if (*text == 0 || *rest || errno || !(value >= low && value <= high))
        die(2, "--%s %s: not a number from %g to %.10g", option, text, low, high);
    return value;
}

static unsigned parse_count(const char *option, const char *text, unsigned low, unsigned high)
{
    char *rest;
    errno = 0;
    unsigned long value = strtoul(text, &rest, 0);
    if (*text < '0' || *text > '9' || *rest || errno || value < low || value > high)
        die(2, "--%s %s: not an integer from %u to %u", option, text, low, high);
    return (unsigned)value;
}

static size_t parse_hex(const char *option, const char *text, uint8_t *out, size_t room)
{
    size_t digits = strlen(text);
    if (digits % 2 || strspn(text, "0123456789abcdefABCDEF") != digits)
        die(2, "--%s %s: not pairs of hexadecimal digits", option, text);
    if (digits / 2 > room)
        die(2, "--%s: %zu bytes, at most %zu are allowed", option, digits / 2, room);
    for (size_t i = 0; i < digits / 2; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], 0};
        out[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return digits / 2;
}

static void parse_options(int argc, char **argv)
{
    enum {
        PROTOCOL, DIALECT, HOST, PORT, UNIX, CONNECTIONS, DEPTH, MIX, VALUE_SIZE, DURATION, WARMUP, RATE,
        FUNC_ID, BODY_HEX, JSON, HELP, OPTION_COUNT
    };
    static const struct option LONG[] = {
        [PROTOCOL] = {"protocol", required_argument, NULL, PROTOCOL},
        [DIALECT] = {"dialect", required_argument, NULL, DIALECT},
        [HOST] = {"host", required_argument, NULL, HOST},
        [PORT] = {"port", required_argument, NULL, PORT},
        [UNIX] = {"unix", required_argument, NULL, UNIX},
        [CONNECTIONS] = {"connections", required_argument, NULL, CONNECTIONS},
        [DEPTH] = {"depth", required_argument, NULL, DEPTH},
        [MIX] = {"mix", required_argument, NULL, MIX},
        [VALUE_SIZE] = {"value-size", required_argument, NULL, VALUE_SIZE},
        [DURATION] = {"duration", required_argument, NULL, DURATION},
        [WARMUP] = {"warmup", required_argument, NULL, WARMUP},
        [RATE] = {"rate", required_argument, NULL, RATE},
        [FUNC_ID] = {"func-id", required_argument, NULL, FUNC_ID},
        [BODY_HEX] = {"body-hex", required_argument, NULL, BODY_HEX},
        [JSON] = {"json", no_argument, NULL, JSON},
        [HELP] = {"help", no_argument, NULL, HELP},
        [OPTION_COUNT] = {NULL, 0, NULL, 0},
    };
    bool given[OPTION_COUNT] = {false};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, ":", LONG, NULL)) != -1) {
        if (option == ':')
            die(2, "%s: needs a value", argv[optind - 1]);
        if (option == '?')
            die(2, "%s: no such option, or a value it doesn't take (--help lists them)", argv[optind - 1]);
        const char *name = LONG[option].name;
        given[option] = true;
        switch (option) {
        case PROTOCOL: options.protocol = (enum protocol)choose(name, optarg, PROTOCOLS); break;
        case DIALECT: options.dialect = (enum dialect)choose(name, optarg, DIALECTS); break;
        case HOST: options.host = optarg; break;
        case PORT:
            parse_count(name, optarg, 1, 65535);
            options.port = optarg;
            break;
        case UNIX:
            if (strlen(optarg) >= sizeof ((struct sockaddr_un *)0)->sun_path)
                die(2, "--unix %s: longer than a socket's path may be", optarg);
            options.unix_path = optarg;
            break;
        case CONNECTIONS: options.connections = parse_count(name, optarg, 1, 60000); break;
        case DEPTH: options.depth = parse_count(name, optarg, 1, 65536); break;
        case MIX: options.mix = (enum mix)choose(name, optarg, MIXES); break;
        case VALUE_SIZE: options.value_size = parse_count(name, optarg, 0, MAX_VALUE); break;
        case DURATION: options.duration = parse_number(name, optarg, 0.01, 3600); break;
        case WARMUP: options.warmup = parse_number(name, optarg, 0, 600); break;
        case RATE: options.rate = parse_number(name, optarg, 1, 1e8); break;
        case FUNC_ID:
            options.own_function = true;
            options.func_id = parse_count(name, optarg, 0, UINT32_MAX);
            break;
        case BODY_HEX: options.body_size = parse_hex(name, optarg, options.body, MAX_BODY); break;
        case JSON: options.json = true; break;
        case HELP:
            fputs(USAGE, stdout);
            exit(0);
        }
    }
    if (optind < argc)
        die(2, "%s: not an option (--help lists them)", argv[optind]);
    if (!given[PROTOCOL])
        die(2, "--protocol: must be given");
    if (given[PORT] == given[UNIX])
        die(2, "give either --port or --unix");
    if (given[UNIX] && given[HOST])
        die(2, "--host %s: has no meaning with --unix", options.host);
    if (options.protocol != IPROTO)
        for (int i = 0; i < OPTION_COUNT; i++)
            if (given[i] && (i == DIALECT || i == FUNC_ID || i == BODY_HEX))
                die(2, "--%s: is for --protocol iproto only", LONG[i].name);
    if (options.own_function && (given[MIX] || given[VALUE_SIZE]))
        die(2, "--%s: has no meaning with --func-id", given[MIX] ? "mix" : "value-size");
    if (!options.own_function && given[BODY_HEX])
        die(2, "--body-hex: needs --func-id");
    if (options.own_function && options.func_id == FUNC_SHUTDOWN)
        die(2, "--func-id 0x%08x: SHUTDOWN closes the connection it comes on", FUNC_SHUTDOWN);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    prctl(PR_SET_TIMERSLACK, 1ul); /* the open loop is only as exact as its timers */

    tape = options.own_function ? make_own_function_tape() : make_mixed_tape();
    /* In order, the window need not be wider than the depth; a reply of a user's function may be
     * overtaken by many. */
    uint64_t least = (uint64_t)options.depth * (options.own_function ? 16 : 2);
    for (window_size = 64; window_size < least;)
        window_size *= 2;
    receive_buffer = reserve(1, MAX_REPLY + RECEIVE_CHUNK + 1); /* 1: strtoul stops at a NUL */
    send_buffer = reserve(options.depth, tape.longest);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die(1, "epoll_create1: %s", strerror(errno));

    uint64_t began = now_ns();
    double cpu = cpu_seconds();
    if (!options.own_function)
        prefill();
    connect_all();
    run_load();
    double seconds = (double)(now_ns() - began) / 1e9;
    bool clean = report(seconds, (cpu_seconds() - cpu) / seconds);

    free_tape(&tape);
    free(receive_buffer);
    free(send_buffer);
    close(epoll_fd);
    return clean ? 0 : 1;
}
