# What is asked of a non-blocking socket. An error that is not transient sets BROKEN.

cdef extern from *:
    """
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* macOS; Python ignores SIGPIPE anyway */
    #endif
    """
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    ssize_t recv(int fd, void* data, size_t size, int flags) noexcept nogil
    ssize_t send(int fd, const void* data, size_t size, int flags) noexcept nogil


cdef inline int send_or_keep(int fd, const uint8_t* data, size_t size, Buffer* output,
                             int* status) except -1:
    """Sends replies, or puts them behind those that wait."""
    cdef ssize_t sent = 0
    if size == 0:
        return 0
    if output.end == 0:
        sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent == <ssize_t>size:
            return 0
        if sent < 0:
            if not is_transient(errno):
                status[0] |= BROKEN
                return 0
            sent = 0
        status[0] |= UNSENT
    append(output, data + sent, size - sent)
    return 0


cdef ssize_t send_kept(int fd, Buffer* output, int* status) noexcept:
    """Sends what waits; returns how many bytes went, and keeps UNSENT true."""
    cdef size_t size = output.end - output.start
    cdef ssize_t sent
    if size == 0:
        return 0
    sent = send(fd, output.data + output.start, size, MSG_DONTWAIT | MSG_NOSIGNAL)
    if sent < 0:
        status[0] |= UNSENT if is_transient(errno) else BROKEN
        return 0
    consume(output, sent)
    if output.end:
        status[0] |= UNSENT
    else:
        status[0] &= ~UNSENT
    return sent


cdef bint is_transient(int error) noexcept nogil:
    return error == EAGAIN or error == EINTR  # EWOULDBLOCK is EAGAIN on our systems
