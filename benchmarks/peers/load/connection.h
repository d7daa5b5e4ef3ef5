/* A connection, its window of requests that may still be answered, and what is counted of each. */
#ifndef BENCHMARKS_CONNECTION_H
#define BENCHMARKS_CONNECTION_H

#include "histogram.h"
#include "load.h"

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

extern uint64_t window_size;            /* a power of two */
extern unsigned alive;                  /* connections */
extern uint64_t started, warm, end;     /* ns; replies from `warm` to `end` are measured */
extern struct histogram latency;

/* Replies to requests of one batch have one latency: they are recorded as a run. */
struct run {
    uint64_t sent_at, received_at, count;
};
extern struct run run;

static inline void flush_run(void)
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

/* Takes any request in flight out of it. */
uint64_t take(struct connection *c, uint64_t number);

/* Whether a reply with this id answers a request in flight, and which; says so if it does not. */
bool find_request(struct connection *c, uint32_t id, uint64_t *number);

/* A good reply that was not the next one expected. */
void answered_out_of_turn(struct connection *c, uint64_t number, uint64_t now);

/* The stream can't be followed any further: closes the connection and returns 0. */
size_t lose_track(struct connection *c, const uint8_t *p, size_t size);

void break_connection(struct connection *c, const char *why);
void close_connection(struct connection *c);

#endif
