# Requests to bytes, at the end of a buffer. What callers give is looked at first, and
# may run any code; then room is made; then the frame is written, which cannot fail.

cdef enum:
    # Bytes of a frame at most, less those of a string.
    READ_FRAME = HEADER_BYTES + 9
    REPLACE_FRAME = HEADER_BYTES + 9 + 5


cdef struct Content:
    # A string for a slot; the bytes are those of a Python object.
    int64_t slot
    const char* text
    size_t size


cdef int set_content(Content* to, index, content) except -1:
    """Looks at what a caller gives for a slot."""
    cdef Py_ssize_t size
    to.slot = slot_index(index)
    if isinstance(content, str):
        to.text = PyUnicode_AsUTF8AndSize(content, &size)
    elif isinstance(content, bytes):
        to.text = PyBytes_AS_STRING(content)
        size = PyBytes_GET_SIZE(content)
    else:
        raise TypeError(f"a slot holds str or bytes, not {type(content).__name__}")
    to.size = size
    return 0


cdef int check_size(size_t size, size_t limit) except -1:
    """Refuses a body that is longer than the server takes."""
    if size > limit:
        raise IllegalParamsError(
            f"the request's body of {size} bytes is over the client's limit of {limit} "
            "(max_request) and was not sent; if the server takes more, give the client more"
        )
    return 0


cdef size_t replace_size(const Content* content) noexcept:
    """Bytes of a REPLACE's body."""
    cdef uint8_t head[14]
    return put_str_head(put_int(head, content.slot), <uint32_t>content.size) - head + content.size


cdef void put_request(Buffer* output, uint32_t func_id, uint32_t request_id,
                      const char* body, uint32_t size) noexcept:
    cdef uint8_t* out = put_header(output.data + output.end, func_id, size, request_id)
    memcpy(out, body, size)
    output.end += HEADER_BYTES + size


cdef void put_read(Buffer* output, uint32_t request_id, int64_t slot) noexcept:
    cdef uint8_t* frame = output.data + output.end
    cdef uint8_t* end = put_int(frame + HEADER_BYTES, slot)
    put_header(frame, READ, <uint32_t>(end - frame - HEADER_BYTES), request_id)
    output.end += end - frame


cdef void put_replace(Buffer* output, uint32_t request_id, const Content* content) noexcept:
    cdef uint8_t* frame = output.data + output.end
    cdef uint8_t* end = put_int(frame + HEADER_BYTES, content.slot)
    end = put_str_head(end, <uint32_t>content.size)
    memcpy(end, content.text, content.size)
    end += content.size
    put_header(frame, REPLACE, <uint32_t>(end - frame - HEADER_BYTES), request_id)
    output.end += end - frame
