/* The table of clients, in memory that all workers share: what each may still do.

   A client is an address (a /64 in IPv6) or a user; its tag is a keyed hash, so nobody can
   choose the set that it falls into. A way of that set is the client's while it has a
   connection or a call, and until its rates are as if it had never come; then another client
   may have it. Claims are made one at a time (clients.pxi); all else is one atomic word. */

#ifndef IPROTO_CLIENTS_H
#define IPROTO_CLIENTS_H

#include "layout.h"

#define CLIENT_SETS 8192u
#define CLIENT_WAYS 8u
#define CLIENTS (CLIENT_SETS * CLIENT_WAYS)
#define CLIENTS_MAGIC 0x3130544e45494c43ull /* "CLIENT01" in memory */
#define CLIENT_KEY_BYTES 16

/* A theoretical arrival time (CLOCK_MONOTONIC, ns) stands for a whole rate limit: the moment
   at which the client will have used nothing, if no more comes. */
typedef struct {
    uint64_t tag; /* 0: free */
    uint64_t requests; /* theoretical arrival time of the next one */
    uint64_t connects; /* the same of connections */
    uint64_t spare;
} client_t;

/* What one worker has of one client. Only that worker writes it, and when it is dead its
   parent; a limit looks at the sum over the workers. */
typedef struct {
    uint16_t connections;
    uint16_t calls;
} share_t;

typedef struct {
    uint32_t connections; /* of all clients */
    unsigned char spare[PAGE_BYTES - 4];
    share_t of[CLIENTS];
} shares_t;

typedef struct {
    uint64_t magic;
    uint64_t size;
    uint32_t areas;
    unsigned char key[CLIENT_KEY_BYTES];
    unsigned char spare[PAGE_BYTES - 36];
    client_t clients[CLIENTS];
} clients_t;

_Static_assert(sizeof(shares_t) % PAGE_BYTES == 0, "a dead worker's shares are whole pages");
_Static_assert(sizeof(clients_t) % PAGE_BYTES == 0, "and begin at one");

static inline size_t clients_size(uint32_t areas) {
    return sizeof(clients_t) + areas * sizeof(shares_t);
}

static inline shares_t *shares_at(clients_t *table, uint32_t area) {
    return (shares_t *)(table + 1) + area;
}

/* A rate: nanoseconds for each, and how far ahead of now an arrival time may be. */
typedef struct {
    uint64_t interval;
    uint64_t ahead;
} rate_limit_t;

/* Takes some of what a rate allows now: at most `wanted`, and none if none is left. The sum
   over all who take is never more than the burst and what the rate brings. */
static inline uint32_t rate_take(uint64_t *arrival, const rate_limit_t *limit, uint64_t now,
                                 uint32_t wanted) {
    uint64_t seen = load_relaxed(arrival);
    for (;;) {
        uint64_t from = seen > now ? seen : now;
        uint64_t used = from - now;
        uint64_t cost = wanted * limit->interval;
        if (unlikely_so(used + cost > limit->ahead)) {
            if (used >= limit->ahead) return 0;
            wanted = (uint32_t)((limit->ahead - used) / limit->interval);
            if (wanted == 0) return 0;
            cost = wanted * limit->interval;
        }
        if (__atomic_compare_exchange_n(arrival, &seen, from + cost, 0, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return wanted;
    }
}

/* Gives back what was taken at `then` and not used. After a pause so long that the rate has
   brought it anew, it is gone: else a burst could be had twice. */
static inline void rate_give_back(uint64_t *arrival, const rate_limit_t *limit, uint64_t then,
                                  uint64_t now, uint32_t unused) {
    uint64_t cost = unused * limit->interval;
    if (now - then < cost)
        __atomic_fetch_sub(arrival, cost, __ATOMIC_RELAXED);
}

/* Nanoseconds until one more is allowed; 0: now. */
static inline uint64_t rate_wait(const uint64_t *arrival, const rate_limit_t *limit,
                                 uint64_t now) {
    uint64_t seen = load_relaxed(arrival);
    uint64_t used = seen > now ? seen - now : 0;
    uint64_t needed = used + limit->interval;
    return needed > limit->ahead ? needed - limit->ahead : 0;
}

/* What all workers together have of a client. */
static inline uint32_t client_connections(clients_t *table, uint32_t areas, uint32_t place) {
    uint32_t sum = 0;
    for (uint32_t area = 0; area < areas; area++)
        sum += load_relaxed(&shares_at(table, area)->of[place].connections);
    return sum;
}

static inline uint32_t client_calls(clients_t *table, uint32_t areas, uint32_t place) {
    uint32_t sum = 0;
    for (uint32_t area = 0; area < areas; area++)
        sum += load_relaxed(&shares_at(table, area)->of[place].calls);
    return sum;
}

/* Begins a call unless the client has so many; the sum is never over the limit. */
static inline int client_begin_call(clients_t *table, uint32_t areas, shares_t *mine,
                                    uint32_t place, uint32_t limit) {
    add_seq_cst(&mine->of[place].calls, 1);
    if (client_calls(table, areas, place) <= limit) return 1;
    sub_release(&mine->of[place].calls, 1);
    return 0;
}

static inline void client_end_call(shares_t *mine, uint32_t place) {
    sub_release(&mine->of[place].calls, 1);
}

static inline int client_is_busy(clients_t *table, uint32_t areas, uint32_t place) {
    return client_connections(table, areas, place) || client_calls(table, areas, place);
}

/* The way of a client, which is made its own; the caller is the only one who claims.

   A way whose rates are used by nobody is as good as a free one. If there is none, the one
   that is closest to it goes, and the newcomer begins with what that one had used: a flood of
   addresses gains nothing. If all have connections, the client shares the way that its tag
   names with another one. */
static inline uint32_t client_claim(clients_t *table, uint32_t areas, uint64_t tag, uint64_t now) {
    uint32_t first = (uint32_t)(tag >> 32) % CLIENT_SETS * CLIENT_WAYS;
    uint32_t best = CLIENTS;
    uint64_t best_until = UINT64_MAX;
    for (uint32_t place = first; place < first + CLIENT_WAYS; place++)
        if (load_relaxed(&table->clients[place].tag) == tag) return place;
    for (uint32_t place = first; place < first + CLIENT_WAYS; place++) {
        client_t *client = &table->clients[place];
        uint64_t until = load_relaxed(&client->requests);
        if (load_relaxed(&client->connects) > until) until = load_relaxed(&client->connects);
        if (until <= now) until = 0;
        if (until < best_until && !client_is_busy(table, areas, place)) {
            best = place;
            best_until = until;
        }
    }
    if (best == CLIENTS) return first + (uint32_t)(tag >> 3) % CLIENT_WAYS;
    store_relaxed(&table->clients[best].tag, tag);
    return best;
}

#endif
