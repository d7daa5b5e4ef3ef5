/* What the parts of the load generator share. loop.c says how it works. */
#ifndef BENCHMARKS_LOAD_H
#define BENCHMARKS_LOAD_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

enum {
    SLOTS = 1000,
    MAX_VALUE = 256,            /* the longest string an iproto slot holds */
    MAX_FRAME = MAX_VALUE + 64, /* room for a request or a reply of any protocol */
    MAX_BODY = 64 * 1024,       /* of a --body-hex */
    MAX_WATCHED = 64,           /* processes */
    MAX_REPLY = 1024 * 1024,    /* a longer reply is taken for a broken stream */
};

enum dialect { VK, MAILRU };    /* mailru counts the return code into a reply's body_length */
enum mix { READ, WRITE, MIXED };

struct connection;

struct expected {
    const uint8_t *bytes;       /* the whole reply; what is known only then (the id) is 0 in it */
    size_t size;
};

struct protocol {
    const char *name;
    /* Each lays a frame of less than MAX_FRAME bytes out and returns its size. */
    size_t (*put_request)(uint8_t *out, unsigned slot, const uint8_t *value, bool write);
    size_t (*put_expected)(uint8_t *out, unsigned slot, const uint8_t *value, bool write);
    /* Takes the replies that have come in whole; returns the bytes that they have. */
    size_t (*consume)(struct connection *c, const uint8_t *p, size_t size, uint64_t now);
    bool (*matches)(const uint8_t *reply, size_t size, const struct expected *want);
    size_t id_at;               /* where a request has its 32-bit id; 0: it has none */
    bool big_endian;            /* that id */
    size_t greeting;            /* bytes that the server sends first on a connection */
};

extern const struct protocol IPROTO, REDIS, MEMCACHED, TARANTOOL;
extern const char *const MIXES[];

struct options {
    const struct protocol *protocol;
    enum dialect dialect;
    enum mix mix;
    const char *host, *port, *unix_path;
    unsigned connections, depth, value_size;
    double duration, warmup, rate;
    bool json;
    pid_t watch[MAX_WATCHED];   /* the server's processes */
    unsigned watched;
    bool own_function;          /* --func-id: one frame of a user's function, always the same */
    uint32_t func_id;
    uint8_t body[MAX_BODY];
    size_t body_size;
};
extern struct options options;

struct tape {
    size_t period;              /* requests until it starts over */
    uint8_t *requests;
    size_t *offset;             /* of each request, and of the end: period + 1 of them */
    struct expected *expected;
    uint8_t *replies;           /* what `expected` points into */
    size_t longest;             /* request, bytes */
};
extern struct tape tape;

struct result {
    uint64_t replies;           /* good ones within the measured time */
    uint64_t lost, doubled, wrong, out_of_order, errors, connection_errors, unsent;
    /* Of the measured time, in seconds: */
    double seconds, load_cpu, server_cpu;
    uint64_t server_memory;     /* at its end, with all connections open, in bytes */
    char first_problem[256];
};
extern struct result result;

static inline bool same_bytes(const uint8_t *reply, size_t size, const struct expected *want)
{
    return size == want->size && memcmp(reply, want->bytes, size) == 0;
}

/* tape.c */
struct tape make_mixed_tape(void);
struct tape make_prefill_tape(void);
struct tape make_own_function_tape(void);
void free_tape(struct tape *old);

/* iproto.c */
enum {
    HEADER = 12, /* func_id, body_length, request_id */
};
size_t put_iproto_header(uint8_t *out, uint32_t func_id, size_t body_length);

/* connect.c: both end the program when they fail */
int open_socket(void);
void prefill(void);

/* loop.c */
void run_load(void);

/* report.c: returns whether every request was answered as it should be */
bool report(void);

/* watch.c: of the processes that --watch names, in sum */
double watched_cpu_seconds(void);
uint64_t watched_memory_bytes(void);

/* util.c */
void die(int code, const char *format, ...) __attribute__((format(printf, 2, 3), noreturn));
void note_problem(const char *format, ...) __attribute__((format(printf, 1, 2)));
const char *printable(const uint8_t *text, size_t size);
void *reserve(size_t count, size_t size);
uint64_t now_ns(void);
double cpu_seconds(void);

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

#endif
