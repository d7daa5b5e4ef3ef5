/* The rarer things that happen to a connection. */
#include "connection.h"

#include <unistd.h>

uint64_t window_size;
unsigned alive;
uint64_t started, warm, end;
struct histogram latency;
struct run run;

uint64_t take(struct connection *c, uint64_t number)
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

void close_connection(struct connection *c)
{
    close(c->fd);
    c->fd = -1;
    alive--;
}

void break_connection(struct connection *c, const char *why)
{
    note_problem("connection %u: %s", c->number, why);
    result.connection_errors++;
    close_connection(c);
}

bool find_request(struct connection *c, uint32_t id, uint64_t *number)
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

void answered_out_of_turn(struct connection *c, uint64_t number, uint64_t now)
{
    bool overtaken = number < c->passed;
    uint64_t sent_at = take(c, number);
    /* Only iproto's built-in functions promise to keep the order. */
    if (overtaken && options.protocol == &IPROTO && !options.own_function) {
        result.out_of_order++;
        note_problem("connection %u, request_id %u: replied to after a later one", c->number, (uint32_t)number);
    } else {
        answered(sent_at, now);
    }
}

size_t lose_track(struct connection *c, const uint8_t *p, size_t size)
{
    note_problem("connection %u: can't make out %s", c->number, printable(p, size));
    result.wrong++;
    break_connection(c, "the stream is broken");
    return 0;
}
