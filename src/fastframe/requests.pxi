# Requests to bytes, at the end of a buffer.

cdef int put_request(Buffer* output, uint32_t func_id, uint32_t request_id,
                     bytes body) except -1:
    cdef size_t size = PyBytes_GET_SIZE(body)
    cdef uint8_t* out
    if size > 0xFFFFFFFF:
        raise ValueError(f"a body of {size} bytes does not fit into a frame")
    reserve(output, HEADER_BYTES + size)
    out = put_header(output.data + output.end, func_id, <uint32_t>size, request_id)
    memcpy(out, PyBytes_AS_STRING(body), size)
    output.end += HEADER_BYTES + size
    return 0


cdef int put_read(Buffer* output, uint32_t request_id, index) except -1:
    cdef int64_t slot = slot_index(index)
    cdef uint8_t* frame
    cdef uint8_t* end
    reserve(output, HEADER_BYTES + 9)
    frame = output.data + output.end
    end = put_int(frame + HEADER_BYTES, slot)
    put_header(frame, READ, <uint32_t>(end - frame - HEADER_BYTES), request_id)
    output.end += end - frame
    return 0


cdef int put_replace(Buffer* output, uint32_t request_id, index, content) except -1:
    cdef int64_t slot = slot_index(index)
    cdef Py_ssize_t size
    cdef const char* text
    cdef uint8_t* frame
    cdef uint8_t* end
    if isinstance(content, str):
        text = PyUnicode_AsUTF8AndSize(content, &size)
    elif isinstance(content, bytes):
        text = PyBytes_AS_STRING(content)
        size = PyBytes_GET_SIZE(content)
    else:
        raise TypeError(f"a slot holds str or bytes, not {type(content).__name__}")
    if size > 0xFFFFFFF0:
        raise ValueError(f"a string of {size} bytes does not fit into a frame")
    reserve(output, HEADER_BYTES + 9 + 5 + size)
    frame = output.data + output.end
    end = put_int(frame + HEADER_BYTES, slot)
    end = put_str_head(end, <uint32_t>size)
    memcpy(end, text, size)
    end += size
    put_header(frame, REPLACE, <uint32_t>(end - frame - HEADER_BYTES), request_id)
    output.end += end - frame
    return 0
