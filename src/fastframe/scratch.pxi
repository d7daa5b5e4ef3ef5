# Memory in which replies are built (LARGE_SHARE plus one reply), and behind it
# chunks are received: one for all connections of a storage, and so warm in the
# cache. A thread that gives up the GIL to wait for the lock must not see another
# at work in it, so who comes while it is in use gets memory of their own.

cdef struct Scratch:
    uint8_t* shared
    bint in_use


cdef uint8_t* new_scratch() except NULL:
    cdef uint8_t* memory = <uint8_t*>malloc(LARGE_SHARE + REPLY_LIMIT + LARGE_SHARE)
    if memory == NULL:
        raise MemoryError
    return memory


cdef uint8_t* acquire_scratch(Scratch* scratch) except NULL:
    if scratch.in_use:
        return new_scratch()
    scratch.in_use = True
    return scratch.shared


cdef void release_scratch(Scratch* scratch, uint8_t* memory) noexcept:
    if memory == scratch.shared:
        scratch.in_use = False
    else:
        free(memory)
