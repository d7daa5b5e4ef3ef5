/*
 * One thread, one epoll, the same work in every protocol, so that what differs between two
 * results is the server.
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
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    RECEIVE_CHUNK = 256 * 1024, /* one recv: a depth of 256 with the longest values fits */
    WAIT_SECONDS = 5,           /* for the last replies */
    EVENTS = 256,
};

static struct connection *connections;
static int epoll_fd;
static uint8_t *receive_buffer; /* one for all: what stays behind in it goes to a carry */
static uint8_t *send_buffer;
static bool sending;

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

/* Frames are laid out in advance; a request's id is all that changes. */
static inline void put_id(uint8_t *out, uint32_t id)
{
    if (options.protocol->big_endian)
        store_u32_big(out, id);
    else
        store_u32(out, id);
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

    size_t size = 0, id_at = options.protocol->id_at;
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
            if (id_at)
                put_id(out + (offset[i] - offset[0]) + id_at, (uint32_t)number);
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
    size_t used = options.protocol->consume(c, receive_buffer, size, now);
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

static void connect_all(void)
{
    /* In order, the window need not be wider than the depth; a reply of a user's function may be
     * overtaken by many. */
    uint64_t least = (uint64_t)options.depth * (options.own_function ? 16 : 2);
    for (window_size = 64; window_size < least;)
        window_size *= 2;
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

/* Open loop: requests that were due and got no answer have waited at least till now. Without them,
 * percentiles would be the better the fewer requests a server answers. */
static void record_unanswered(const struct connection *c, uint64_t now)
{
    for (uint64_t number = c->oldest; number < c->next; number++) {
        uint64_t sent_at = c->sent_at[number & (window_size - 1)];
        if (sent_at >= warm)
            histogram_record(&latency, now - sent_at, 1);
    }
    for (uint64_t number = c->next; number < c->due; number++) {
        uint64_t due_at = time_of(c, number, now);
        if (due_at >= warm)
            histogram_record(&latency, now - due_at, 1);
    }
}

/* Adds to what the measured time has cost; called with -1 at its start and with 1 at its end. */
static void take_stock(int sign)
{
    result.seconds += sign * ((double)now_ns() / 1e9);
    result.load_cpu += sign * cpu_seconds();
    result.server_cpu += sign * watched_cpu_seconds();
}

static bool replies_outstanding(void)
{
    for (unsigned i = 0; i < options.connections; i++)
        if (connections[i].fd >= 0 && connections[i].in_flight)
            return true;
    return false;
}

void run_load(void)
{
    struct epoll_event events[EVENTS];
    receive_buffer = reserve(1, MAX_REPLY + RECEIVE_CHUNK + 1); /* 1: strtoul stops at a NUL */
    send_buffer = reserve(options.depth, tape.longest);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (epoll_fd < 0)
        die(1, "epoll_create1: %s", strerror(errno));
    connect_all();
    started = now_ns();
    warm = started + (uint64_t)(options.warmup * 1e9);
    end = warm + (uint64_t)(options.duration * 1e9);
    sending = true;
    bool measuring = false;
    if (options.rate == 0)
        for (unsigned i = 0; i < options.connections; i++)
            refill(&connections[i], now_ns());

    while (alive) {
        uint64_t now = now_ns();
        uint64_t wake = now < warm ? warm : end;
        if (!measuring && now >= warm) {
            measuring = true;
            take_stock(-1);
        }
        if (now >= end) {
            if (sending)
                take_stock(1);
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
    if (measuring && sending) /* every connection broke before the end */
        take_stock(1);
    result.server_memory = watched_memory_bytes();
    uint64_t finished = now_ns();

    for (unsigned i = 0; i < options.connections; i++) {
        struct connection *c = &connections[i];
        if (c->in_flight)
            note_problem("connection %u, request_id %u: no reply", c->number, (uint32_t)c->oldest);
        result.lost += c->in_flight;
        if (options.rate > 0) {
            record_unanswered(c, finished);
            result.unsent += c->due - c->next;
        }
        if (c->fd >= 0)
            close_connection(c);
        free(c->sent_at);
        free(c->pending);
        free(c->carry);
    }
    free(connections);
    free(receive_buffer);
    free(send_buffer);
    close(epoll_fd);
}

