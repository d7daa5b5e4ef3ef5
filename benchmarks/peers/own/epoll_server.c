/*
 * The limit: what a bare C program does with the same protocol, the vk dialect of iproto, on one
 * core. It does what the protocol asks and nothing else: no limits, no metrics, no logs, no users'
 * functions, one form of each request body (no arrays, no maps). Everything else that we measure
 * is given as a share of its figures.
 *
 * One thread, or with --processes several processes of one, each with its share of the connections,
 * as our workers have; level-triggered epoll. One recv takes what is there, every whole frame in it is
 * answered into one buffer, one send carries that away. A client that doesn't read its replies is
 * not read from until it has taken them.
 */
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    SLOTS = 1000,
    MAX_STRING = 256,
    MAX_BODY = 4096,           /* the longest legal body is under 300 bytes */
    HEADER = 12,               /* func_id, body_length, request_id */
    RECEIVE_CHUNK = 64 * 1024,
    EVENTS = 256,
};

/* The longest reply is that of a read (the texts of errors are shorter), and a chunk holds at most
 * one request in HEADER bytes, behind what was left of the chunk before it. */
enum {
    MAX_REPLY = HEADER + 4 + 3 + MAX_STRING,
    CARRY = HEADER + MAX_BODY,
    REPLY_BUFFER = (RECEIVE_CHUNK + CARRY) / HEADER * MAX_REPLY,
};

enum {
    SWITCH_READONLY = 0x00010001,
    SWITCH_READWRITE = 0x00010002,
    SWITCH_MAINTENANCE = 0x00010003,
    REPLACE = 0x00020001,
    READ = 0x00020002,
    PING = 0x0000ff00,
    SHUTDOWN = 0x0000ff01,
};

enum {
    OK = 0x0000,
    ILLEGAL_PARAMS = 0x0202,
    UNSUPPORTED_COMMAND = 0x0a02,
    NUMBER_OUT_OF_RANGE = 0x1f02,
    READ_ONLY = 0x0401,
    LOCKED = 0x0601,
};

struct connection {
    int fd;
    bool closing;              /* no more requests: what is pending goes out, then the stream ends */
    uint16_t carry_size;
    uint8_t carry[CARRY];      /* the start of a frame that has not come in whole */
    uint8_t *pending;          /* replies that a send did not take */
    size_t pending_size, pending_sent;
};

/* Shared by all processes, without a lock: they are a limit too. */
static struct store {
    uint32_t state;
    struct slot {
        uint16_t size;
        uint8_t bytes[MAX_STRING];
    } slots[SLOTS];
} *store;

static int epoll_fd;
static uint8_t receive_buffer[CARRY + RECEIVE_CHUNK];
static uint8_t reply_buffer[REPLY_BUFFER];

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

/* memcpy, called for what it is: where gcc can see that a length is at most 256 it copies with
 * `rep movsq` in place, whose start alone costs more than such a copy (writes took almost twice the time). */
static __attribute__((noipa)) void copy(uint8_t *to, const uint8_t *from, size_t size)
{
    memcpy(to, from, size);
}

static uint64_t load_big_endian(const uint8_t *p, size_t size)
{
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++)
        value = value << 8 | p[i];
    return value;
}

/* ---- MsgPack ------------------------------------------------------------------------------- */

/* Reads an integer of any width; SLOTS stands for any that is no index. Returns its size, 0 for
 * anything that is not an integer. */
static inline size_t read_index(const uint8_t *p, size_t size, uint32_t *index)
{
    if (size == 0)
        return 0;
    uint8_t type = p[0];
    if (type < 0x80) {
        *index = type;
        return 1;
    }
    if (type == 0xcd && size >= 3) {
        *index = (uint32_t)p[1] << 8 | p[2];
        return 3;
    }
    if (type >= 0xe0) {
        *index = SLOTS; /* a negative fixint */
        return 1;
    }
    if (type < 0xcc || type > 0xd3)
        return 0;
    size_t width = (size_t)1 << (type & 3); /* uint 8..64 are cc..cf, int 8..64 are d0..d3 */
    if (size < 1 + width)
        return 0;
    uint64_t value = load_big_endian(p + 1, width);
    bool negative = type >= 0xd0 && value >> (8 * width - 1);
    *index = negative || value >= SLOTS ? SLOTS : (uint32_t)value;
    return 1 + width;
}

/* Reads a str that must be all of [p, p + size). */
static inline bool read_string(const uint8_t *p, size_t size, const uint8_t **bytes, uint32_t *length)
{
    if (size == 0)
        return false;
    size_t head = 1;
    if ((p[0] & 0xe0) == 0xa0)
        *length = p[0] & 0x1f;
    else if (p[0] == 0xd9 && size >= 2)
        *length = p[1], head = 2;
    else if (p[0] == 0xda && size >= 3)
        *length = (uint32_t)load_big_endian(p + 1, 2), head = 3;
    else if (p[0] == 0xdb && size >= 5)
        *length = (uint32_t)load_big_endian(p + 1, 4), head = 5;
    else
        return false;
    *bytes = p + head;
    return size - head == *length;
}

static inline size_t write_string(uint8_t *out, const uint8_t *bytes, uint32_t length)
{
    size_t head;
    if (length < 32) {
        out[0] = (uint8_t)(0xa0 | length);
        head = 1;
    } else if (length < 256) {
        out[0] = 0xd9;
        out[1] = (uint8_t)length;
        head = 2;
    } else {
        out[0] = 0xda;
        out[1] = (uint8_t)(length >> 8);
        out[2] = (uint8_t)length;
        head = 3;
    }
    copy(out + head, bytes, length);
    return head + length;
}

/* ---- requests ------------------------------------------------------------------------------ */

static inline size_t finish(uint8_t *out, const uint8_t *request, uint32_t code, size_t body)
{
    memcpy(out, request, HEADER); /* func_id and request_id come back as they were */
    store_u32(out + 4, (uint32_t)body);
    store_u32(out + HEADER, code);
    return HEADER + 4 + body;
}

static size_t reply_error(uint8_t *out, const uint8_t *request, uint32_t code, const char *text)
{
    return finish(out, request, code, write_string(out + HEADER + 4, (const uint8_t *)text, (uint32_t)strlen(text)));
}

static inline size_t reply_nil(uint8_t *out, const uint8_t *request)
{
    out[HEADER + 4] = 0xc0;
    return finish(out, request, OK, 1);
}

static size_t reply_read(uint8_t *out, const uint8_t *request, const uint8_t *body, size_t size)
{
    uint32_t index;
    size_t used = read_index(body, size, &index);
    if (used == 0 || used != size)
        return reply_error(out, request, ILLEGAL_PARAMS, "STORAGE_READ takes one integer");
    if (index >= SLOTS)
        return reply_error(out, request, NUMBER_OUT_OF_RANGE, "index must be 0..999");
    if (store->state == SWITCH_MAINTENANCE)
        return reply_error(out, request, LOCKED, "storage is in MAINTENANCE");
    return finish(out, request, OK, write_string(out + HEADER + 4, store->slots[index].bytes, store->slots[index].size));
}

static size_t reply_replace(uint8_t *out, const uint8_t *request, const uint8_t *body, size_t size)
{
    uint32_t index, length;
    const uint8_t *bytes;
    size_t used = read_index(body, size, &index);
    if (used == 0 || !read_string(body + used, size - used, &bytes, &length))
        return reply_error(out, request, ILLEGAL_PARAMS, "STORAGE_REPLACE takes an integer and a string");
    if (length > MAX_STRING)
        return reply_error(out, request, ILLEGAL_PARAMS, "string must be at most 256 bytes");
    if (index >= SLOTS)
        return reply_error(out, request, NUMBER_OUT_OF_RANGE, "index must be 0..999");
    if (store->state == SWITCH_MAINTENANCE)
        return reply_error(out, request, LOCKED, "storage is in MAINTENANCE");
    if (store->state == SWITCH_READONLY)
        return reply_error(out, request, READ_ONLY, "storage is READ_ONLY");
    copy(store->slots[index].bytes, bytes, length);
    store->slots[index].size = (uint16_t)length;
    return reply_nil(out, request);
}

static size_t reply_to(struct connection *c, uint8_t *out, const uint8_t *request, size_t size)
{
    const uint8_t *body = request + HEADER;
    uint32_t func_id = load_u32(request);
    switch (func_id) {
    case READ:
        return reply_read(out, request, body, size);
    case REPLACE:
        return reply_replace(out, request, body, size);
    case SWITCH_READONLY:
    case SWITCH_READWRITE:
    case SWITCH_MAINTENANCE:
        if (size > 1 || (size == 1 && body[0] != 0xc0))
            return reply_error(out, request, ILLEGAL_PARAMS, "a switch takes nil");
        store->state = func_id;
        return reply_nil(out, request);
    case PING:
    case SHUTDOWN:
        if (size != 0)
            return reply_error(out, request, ILLEGAL_PARAMS, "takes an empty body");
        c->closing = func_id == SHUTDOWN;
        memcpy(out, request, HEADER); /* a bare header: no return code */
        return HEADER;
    default:
        return reply_error(out, request, UNSUPPORTED_COMMAND, "no such function");
    }
}

/* Answers every whole frame; returns the size of the replies, and in *used that of the frames. */
static size_t answer(struct connection *c, const uint8_t *p, size_t size, size_t *used)
{
    size_t at = 0, replied = 0;
    while (!c->closing && size - at >= HEADER) {
        uint32_t body = load_u32(p + at + 4);
        if (body > MAX_BODY) { /* can't be trusted to be skipped */
            replied += reply_error(reply_buffer + replied, p + at, ILLEGAL_PARAMS, "body_length must be at most 4096");
            c->closing = true;
            break;
        }
        if (size - at - HEADER < body)
            break;
        replied += reply_to(c, reply_buffer + replied, p + at, body);
        at += HEADER + body;
    }
    *used = at;
    return replied;
}

/* ---- connections --------------------------------------------------------------------------- */

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void drop(struct connection *c)
{
    close(c->fd);
    free(c->pending);
    free(c);
}

/* Ends our side; on_readable then throws away what comes until the peer has ended its own. To
 * close at once would reset the connection, and the last reply could be lost with it. */
static void end_stream(struct connection *c)
{
    shutdown(c->fd, SHUT_WR);
}

static void on_writable(struct connection *c)
{
    ssize_t sent = send(c->fd, c->pending + c->pending_sent, c->pending_size - c->pending_sent, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN && errno != EINTR)
            drop(c);
        return;
    }
    c->pending_sent += (size_t)sent;
    if (c->pending_sent < c->pending_size)
        return;
    free(c->pending);
    c->pending = NULL;
    watch(c, EPOLLIN);
    if (c->closing)
        end_stream(c);
}

static void on_readable(struct connection *c)
{
    memcpy(receive_buffer, c->carry, c->carry_size);
    ssize_t got = recv(c->fd, receive_buffer + c->carry_size, RECEIVE_CHUNK, 0);
    if (got <= 0) {
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            drop(c);
        return;
    }
    if (c->closing)
        return;
    size_t size = c->carry_size + (size_t)got, used;
    size_t replied = answer(c, receive_buffer, size, &used);
    if (!c->closing) {
        c->carry_size = (uint16_t)(size - used);
        memcpy(c->carry, receive_buffer + used, size - used);
    }
    if (replied == 0)
        return;

    ssize_t sent = send(c->fd, reply_buffer, replied, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        drop(c);
        return;
    }
    size_t taken = sent > 0 ? (size_t)sent : 0;
    if (taken == replied) {
        if (c->closing)
            end_stream(c);
        return;
    }
    c->pending = malloc(replied - taken);
    if (!c->pending) {
        drop(c);
        return;
    }
    memcpy(c->pending, reply_buffer + taken, replied - taken);
    c->pending_size = replied - taken;
    c->pending_sent = 0;
    watch(c, EPOLLOUT);
}

static void on_connection(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    struct connection *c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return;
    }
    c->fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
        drop(c);
}

static unsigned long number(const char *option, const char *text, unsigned long most)
{
    char *rest;
    unsigned long value = strtoul(text, &rest, 10);
    if (*rest || value < 1 || value > most) {
        fprintf(stderr, "epoll_server: --%s %s: not a number from 1 to %lu\n", option, text, most);
        exit(2);
    }
    return value;
}

static int open_listener(unsigned long port, bool share)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, share ? SO_REUSEPORT : SO_REUSEADDR, &(int){1}, sizeof(int));
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) != 0 || listen(fd, SOMAXCONN) != 0) {
        fprintf(stderr, "epoll_server: can't listen on 127.0.0.1:%lu: %s\n", port, strerror(errno));
        exit(1);
    }
    return fd;
}

/* Starts the other processes, each with a listener of its own, and returns this one's. */
static int start_processes(unsigned long port, unsigned long processes)
{
    for (unsigned long i = 1; i < processes; i++) {
        int listener = open_listener(port, true);
        pid_t child = fork();
        if (child < 0) {
            perror("epoll_server: fork");
            exit(1);
        }
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            return listener;
        }
        close(listener);
    }
    int listener = open_listener(port, processes > 1);
    puts("serving");
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv)
{
    bool several = argc == 5 && strcmp(argv[3], "--processes") == 0;
    if ((argc != 3 && !several) || strcmp(argv[1], "--port") != 0) {
        fprintf(stderr, "usage: epoll_server --port PORT [--processes N]    (listens on 127.0.0.1)\n");
        return 2;
    }
    store = mmap(NULL, sizeof *store, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (store == MAP_FAILED) {
        perror("epoll_server: mmap");
        return 1;
    }
    store->state = SWITCH_READWRITE;
    int listener = start_processes(number("port", argv[2], 65535), several ? number("processes", argv[4], 64) : 1);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL}; /* no connection: the listener */
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event) != 0) {
        perror("epoll_server: epoll");
        return 1;
    }
    for (;;) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                on_connection(listener);
            else if (c->pending)
                on_writable(c);
            else
                on_readable(c);
        }
    }
}
