# Results to bytes, and into the counters.

cdef uint8_t* put_header(uint8_t* out, uint32_t func_id, uint32_t length,
                         uint32_t request_id) noexcept nogil:
    store_le32(out, func_id)
    store_le32(out + 4, length)
    store_le32(out + 8, request_id)
    return out + HEADER_BYTES


cdef inline uint8_t* put_response(uint8_t* out, uint32_t func_id, uint32_t request_id,
                                  uint32_t code, uint32_t length, bint mailru) noexcept nogil:
    """Writes header and return_code of a response; returns where the body goes."""
    out = put_header(out, func_id, length + 4 if mailru else length, request_id)
    store_le32(out, code)
    return out + 4


cdef inline uint8_t* put_result(uint8_t* out, const Request* request, const Result* result,
                                bint mailru) noexcept nogil:
    """Writes the reply to a request; returns its end."""
    cdef uint32_t length = result.length
    if result.text == NULL:
        out = put_response(out, request.func_id, request.request_id, result.code, 1, mailru)
        out[0] = 0xC0
        return out + 1
    out = put_response(out, request.func_id, request.request_id, result.code,
                       str_head_size(length) + length, mailru)
    out = put_str_head(out, length)
    copy_bytes(out, result.text, length)
    return out + length
