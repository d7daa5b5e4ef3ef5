# Requests to operations: which bodies the built-in functions over the store take.

cdef struct Request:
    uint32_t func_id
    uint32_t request_id
    const uint8_t* body
    uint32_t length

cdef const char* SWITCH_PARAMS_TEXT = b"the storage switches take nil or an empty body"
cdef const char* REPLACE_PARAMS_TEXT = (
    b"STORAGE_REPLACE takes a MsgPack int and str, one after the other, "
    b'as [int, str] or as {"ID": int, "S": str}, and nothing else'
)
cdef const char* READ_PARAMS_TEXT = (
    b'STORAGE_READ takes a MsgPack int, as itself, as [int] or as {"ID": int}, and nothing else'
)


cdef inline int row_of_storage(uint32_t func_id) noexcept nogil:
    """Counter row of a function over the store; -1 if it is none."""
    if func_id == READ:
        return ROW_READ
    if func_id == REPLACE:
        return ROW_REPLACE
    if SWITCH_READONLY <= func_id <= SWITCH_MAINTENANCE:
        return ROW_SWITCH_READONLY + <int>(func_id - SWITCH_READONLY)
    return -1


cdef inline bint decode(const Request* request, int row, Op* op, Result* refusal) noexcept nogil:
    """The operation that a request of this counter row asks for; False: it is refused."""
    cdef uint32_t length
    op.row = row
    if row == ROW_READ:
        op.index = short_uint(request.body, request.length)
        if op.index >= 0 or decode_read(request.body, request.length, &op.index):
            return True
        refuse(refusal, ILLEGAL_PARAMS, READ_PARAMS_TEXT)
    elif row == ROW_REPLACE:
        if decode_replace(request.body, request.length, &op.index, &op.text, &length):
            op.length = length
            return True
        refuse(refusal, ILLEGAL_PARAMS, REPLACE_PARAMS_TEXT)
    else:
        if request.length == 0 or (request.length == 1 and request.body[0] == 0xC0):
            return True
        refuse(refusal, ILLEGAL_PARAMS, SWITCH_PARAMS_TEXT)
    return False


cdef bint is_key(const uint8_t* text, uint32_t length, const char* key) noexcept nogil:
    return length == strlen(key) and memcmp(text, key, length) == 0


cdef bint decode_read(const uint8_t* body, uint32_t size, int64_t* index) noexcept nogil:
    """``int``, ``[int]`` or ``{"ID": int}``, and nothing else."""
    cdef cursor_t c
    cdef const uint8_t* key
    cdef uint32_t length
    c.at = body
    c.end = body + size
    if read_int(&c, index) == 0:
        return c.at == c.end
    if read_container(&c, 0x90, 0xDC) == 1:
        return read_int(&c, index) == 0 and c.at == c.end
    c.at = body
    if read_container(&c, 0x80, 0xDE) != 1 or read_str(&c, &key, &length) != 0:
        return False
    return is_key(key, length, b"ID") and read_int(&c, index) == 0 and c.at == c.end


cdef inline bint decode_replace(const uint8_t* body, uint32_t size, int64_t* index,
                                const uint8_t** text, uint32_t* length) noexcept nogil:
    """``int str``, ``[int, str]`` or ``{"ID": int, "S": str}``, and nothing else."""
    cdef cursor_t c
    cdef const uint8_t* key
    cdef uint32_t key_length
    cdef int _i
    cdef bint has_index = False, has_text = False
    c.at = body
    c.end = body + size
    if read_int(&c, index) == 0:
        return read_str(&c, text, length) == 0 and c.at == c.end
    if read_container(&c, 0x90, 0xDC) == 2:
        return (read_int(&c, index) == 0 and read_str(&c, text, length) == 0
                and c.at == c.end)
    c.at = body
    if read_container(&c, 0x80, 0xDE) != 2:
        return False
    for _i in range(2):
        if read_str(&c, &key, &key_length) != 0:
            return False
        if not has_index and is_key(key, key_length, b"ID"):
            has_index = read_int(&c, index) == 0
            if not has_index:
                return False
        elif not has_text and is_key(key, key_length, b"S"):
            has_text = read_str(&c, text, length) == 0
            if not has_text:
                return False
        else:
            return False
    return c.at == c.end
