# Which dialect a server speaks, and whether its replies go on speaking it.

cdef enum:
    DIALECT_UNKNOWN = -1
    DIALECT_VK = 0
    DIALECT_MAILRU = 1


cdef bint fits_dialect(int* dialect, uint32_t func_id, uint32_t length, const uint8_t* frame,
                       size_t left) except -1:
    """Whether the frame can be read on; finds out the dialect if it must.

    The body of a built-in function's reply is one str or nil, never empty,
    so its first bytes tell how long it is, whatever the header counts.
    """
    cdef uint64_t body = 0
    if is_storage_function(func_id):
        body = leading_object_size(frame, left)
    if dialect[0] == DIALECT_UNKNOWN:
        if not is_storage_function(func_id):
            raise DialectError(
                f"cannot tell the server's dialect by a reply of function {func_id:#x}; "
                "name it: dialect=vk or dialect=mailru"
            )
        if length == 0:
            body = 0  # No room for a return_code in it.
        elif body == 0:
            return False
        elif body == ANOTHER_TYPE:
            raise DialectError(
                "cannot tell the server's dialect: its answer to a STORAGE_READ is "
                "neither MsgPack str nor nil; name it: dialect=vk or dialect=mailru"
            )
        if length != body and length != body + 4:
            raise DialectError(
                f"cannot tell the server's dialect: body_length is {length}, "
                f"but the body is one object of {body} bytes"
            )
        dialect[0] = DIALECT_VK if length == body else DIALECT_MAILRU
    elif dialect[0] == DIALECT_VK:
        if body and body != ANOTHER_TYPE and length == body + 4:
            raise DialectError(
                "the server's body_length counts the return_code: it speaks dialect=mailru, "
                "the client has dialect=vk"
            )
    elif length < 4 or (body and length == body) or (
        length == 4 and is_storage_function(func_id)  # whose body is never empty
    ):
        raise DialectError(
            "the server's body_length does not count the return_code: it speaks dialect=vk, "
            "the client has dialect=mailru"
        )
    return True


cdef bint is_storage_function(uint32_t func_id) noexcept nogil:
    return (func_id == READ or func_id == REPLACE
            or SWITCH_READONLY <= func_id <= SWITCH_MAINTENANCE)


cdef uint64_t ANOTHER_TYPE = 0xFFFFFFFFFFFFFFFF


cdef uint64_t leading_object_size(const uint8_t* frame, size_t left) noexcept nogil:
    """Bytes of the str or nil that begins a reply's body; 0: not there yet."""
    cdef const uint8_t* head = frame + HEADER_BYTES + 4
    cdef int width
    if left < HEADER_BYTES + 4 + 1:
        return 0
    if head[0] == 0xC0:
        return 1
    if 0xA0 <= head[0] <= 0xBF:
        return 1 + (head[0] & 0x1F)
    if not 0xD9 <= head[0] <= 0xDB:
        return ANOTHER_TYPE
    width = 1 << (head[0] - 0xD9)
    if left < <size_t>(HEADER_BYTES + 4 + 1 + width):
        return 0
    return 1 + width + load_be(head + 1, width)
