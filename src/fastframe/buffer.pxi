# A growing buffer.
#
# Bytes from `start` to `end`; both ends of a connection keep partial frames in
# one, and clients build requests in one. It grows by what was really received
# or built, never by what a peer claims.

cdef struct Buffer:
    uint8_t* data
    size_t start
    size_t end
    size_t capacity


cdef inline size_t size_of(const Buffer* b) noexcept nogil:
    return b.end - b.start


cdef inline const uint8_t* bytes_of(const Buffer* b) noexcept nogil:
    """Where they begin; never NULL, for C forbids even NULL + 0."""
    return b.data + b.start if b.data != NULL else <const uint8_t*>b""


cdef bytes take_all(Buffer* b):
    """All of them, which leaves it empty."""
    taken = PyBytes_FromStringAndSize(<const char*>bytes_of(b), size_of(b))
    consume(b, size_of(b))
    return taken


cdef int reserve(Buffer* b, size_t more) except -1:
    """Makes room for this many bytes at the end."""
    cdef size_t held = size_of(b)
    cdef size_t capacity
    cdef uint8_t* data
    if b.capacity - b.end >= more:
        return 0
    if b.start:
        memmove(b.data, b.data + b.start, held)
        b.start = 0
        b.end = held
        if b.capacity - held >= more:
            return 0
    capacity = max(held + more, 2 * b.capacity, <size_t>256)
    data = <uint8_t*>realloc(b.data, capacity)
    if data == NULL:
        raise MemoryError
    b.data = data
    b.capacity = capacity
    return 0


cdef int append(Buffer* b, const uint8_t* data, size_t size) except -1:
    if size:  # memcpy may not be given NULL, even for no bytes
        reserve(b, size)
        memcpy(b.data + b.end, data, size)
        b.end += size
    return 0


cdef void consume(Buffer* b, size_t size) noexcept nogil:
    """Drops bytes at the start; an emptied buffer gives its memory back."""
    b.start += size
    if b.start == b.end:
        free(b.data)
        b.data = NULL
        b.start = b.end = b.capacity = 0
