# Bodies of the built-in functions: what they may look like.

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
