# Requests to operations: which bodies the built-in functions over the store take.

cdef struct Request:
    uint32_t func_id
    uint32_t request_id
    const uint8_t* body
    uint32_t length

cdef const char* SWITCH_PARAMS_TEXT = b"the storage switches take nil or an empty body"
cdef const char* REPLACE_PARAMS_TEXT = (
    b"STORAGE_REPLACE takes a MsgPack int and str, one after the other, "
    b'as [int, str], as {"ID": int, "S": str} or as {"Idx": int, "Str": str}, and nothing else'
)
cdef const char* READ_PARAMS_TEXT = (
    b'STORAGE_READ takes a MsgPack int, as itself, as [int], as {"ID": int} or as {"Idx": int}, '
    b"and nothing else"
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
    cdef uint32_t length = 0
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


# Keys of arguments in a map: those of Go clients' structs. Another public client of this
# protocol has the longer pair; a map with one key of each pair is nobody's.
cdef enum:
    KEY_UNKNOWN = 0
    KEY_ID = 1
    KEY_S = 2
    KEY_IDX = 4
    KEY_STR = 8


cdef int key_of(const uint8_t* text, uint32_t length) noexcept nogil:
    if length == 2 and memcmp(text, b"ID", 2) == 0:
        return KEY_ID
    if length == 1 and text[0] == c"S":
        return KEY_S
    if length == 3 and memcmp(text, b"Idx", 3) == 0:
        return KEY_IDX
    if length == 3 and memcmp(text, b"Str", 3) == 0:
        return KEY_STR
    return KEY_UNKNOWN


cdef bint decode_read(const uint8_t* body, uint32_t size, int64_t* index) noexcept nogil:
    """``int``, ``[int]``, ``{"ID": int}`` or ``{"Idx": int}``, and nothing else."""
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
    return (key_of(key, length) & (KEY_ID | KEY_IDX) != 0 and read_int(&c, index) == 0
            and c.at == c.end)


cdef inline bint decode_replace(const uint8_t* body, uint32_t size, int64_t* index,
                                const uint8_t** text, uint32_t* length) noexcept nogil:
    """``int str``, ``[int, str]`` or a map of one of the two pairs of keys, and nothing else."""
    cdef cursor_t c
    cdef const uint8_t* key
    cdef uint32_t key_length
    cdef int _i, key_found
    cdef int keys = 0  # found so far
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
        key_found = key_of(key, key_length)
        keys |= key_found
        if key_found & (KEY_ID | KEY_IDX):
            if read_int(&c, index) != 0:
                return False
        elif key_found == KEY_UNKNOWN or read_str(&c, text, length) != 0:
            return False
    return (keys == KEY_ID | KEY_S or keys == KEY_IDX | KEY_STR) and c.at == c.end
