/* Connecting, and the first writes. */
#include "load.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    PREFILL_BATCH = 50,
    WAIT_SECONDS = 5, /* for a connection, and for a prefill's replies */
    MAX_GREETING = 256,
};

int open_socket(void)
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
    uint8_t greeting[MAX_GREETING];
    size_t wanted = options.protocol->greeting;
    if (wanted && recv(fd, greeting, wanted, MSG_WAITALL) != (ssize_t)wanted)
        die(1, "no greeting from the server");
    return fd;
}

/* Writes each slot once, so that every read of the run returns value_size bytes. */
void prefill(void)
{
    struct tape fill = make_prefill_tape();
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
            uint8_t reply[MAX_FRAME];
            const struct expected *want = &fill.expected[j];
            ssize_t got = recv(fd, reply, want->size, MSG_WAITALL);
            if (got < 0)
                die(1, "prefill: %s", errno == EAGAIN ? "no reply in time" : strerror(errno));
            if (!options.protocol->matches(reply, (size_t)got, want)) {
                if (options.protocol == &IPROTO && got >= HEADER + 4)
                    die(1, "prefill: slot %u: func_id 0x%08x, body_length %u, return code 0x%04x", j,
                        load_u32(reply), load_u32(reply + 4), load_u32(reply + HEADER));
                die(1, "prefill: slot %u: %s", j, got ? printable(reply, (size_t)got) : "connection closed");
            }
        }
    }
    close(fd);
    free_tape(&fill);
}
