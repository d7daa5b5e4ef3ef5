# Bytes to replies, and replies to the outcomes of the requests that wait for them.
# Functions of ClientFrames whose class would be too long with them.

# Return codes that a client's side counts apart.
cdef enum:
    MOST_REFUSALS = 64
    # Replies of one connection, beyond those to requests that nobody waits for any
    # more, to requests that were answered already.
    MOST_DUPLICATES = 1000
    # Bytes of a body that no server refuses, whatever its limit.
    SMALL_BODY = 1024


cdef size_t scan_replies(ClientFrames self, const uint8_t* data, size_t size,
                         list outcomes) except? 0:
    """Settles reply after reply; returns the bytes that it is done with.

    Raises:
        ProtocolError: the stream cannot be read on.
    """
    cdef size_t at = 0
    cdef size_t left
    cdef uint32_t func_id, length, request_id, code
    cdef const uint8_t* frame
    while size - at >= HEADER_BYTES:
        frame = data + at
        left = size - at
        func_id = load_le32(frame)
        length = load_le32(frame + 4)
        request_id = load_le32(frame + 8)
        if length == 0 and (func_id == PING or func_id == SHUTDOWN):
            if func_id == SHUTDOWN:
                self.retired = True
                if request_id == 0:  # unasked: the last bytes
                    self.shut_down = True
                    return size
            settle(self, func_id, length, request_id, 0, NULL, 0, outcomes)
            at += HEADER_BYTES
            continue
        if not fits_dialect(&self.dialect, func_id, length, frame, left):
            break
        if self.dialect == DIALECT_MAILRU:
            length -= 4
        if length > self.max_body:
            settle_unread(self, func_id, request_id, length, outcomes)
            if left < HEADER_BYTES + 4 + <size_t>length:
                self.to_skip = HEADER_BYTES + 4 + <uint64_t>length - left
                return size
            at += HEADER_BYTES + 4 + length
            continue
        if left < HEADER_BYTES + 4 + <size_t>length:
            break
        code = load_le32(frame + HEADER_BYTES)
        settle(self, func_id, load_le32(frame + 4), request_id, code,
               frame + HEADER_BYTES + 4, length, outcomes)
        at += HEADER_BYTES + 4 + length
    return at


cdef int settle(ClientFrames self, uint32_t func_id, uint32_t length, uint32_t request_id,
                uint32_t code, const uint8_t* body, uint32_t size, list outcomes) except -1:
    """Finds what waits for a reply, and adds its outcome when it is complete."""
    cdef Pending entry = self.requests.pop(request_id)
    cdef object error = None
    cdef object result = None
    cdef bint failed = False
    if entry is None:
        return count_unexpected(self, request_id)
    if func_id != entry.func_id:
        return fail_stream(self, entry, another_function(entry, request_id, func_id), outcomes)
    if entry.outcome == RESPONSE:
        # Not body[:size]: a reply that is a header alone has no body to point at.
        content = PyBytes_FromStringAndSize(<const char*>body, size)
        result = Response(Header(func_id, length, request_id), code, content)
    elif code != 0:
        error = error_from_reply(code, error_text(body, size))
    elif body != NULL:
        result = decode_result(entry.outcome, body, size, &failed)
        if failed:
            error = result
            result = None
            if isinstance(error, ProtocolError):
                return fail_stream(self, entry, error, outcomes)
    if code == ILLEGAL_PARAMS and entry.size > SMALL_BODY:
        # A body that is over the server's limit is the last that the server reads.
        self.retired = True
    return deliver(self, entry, request_id, code, error, result, outcomes)


cdef int settle_unread(ClientFrames self, uint32_t func_id, uint32_t request_id,
                       uint32_t length, list outcomes) except -1:
    """Fails the request whose reply is too long to be taken."""
    cdef Pending entry = self.requests.pop(request_id)
    if entry is None:
        return count_unexpected(self, request_id)
    if func_id != entry.func_id:
        return fail_stream(self, entry, another_function(entry, request_id, func_id), outcomes)
    error = ReplyTooLongError(
        f"the reply's body of {length} bytes is over the client's limit of {self.max_body} "
        "(max_body) and was dropped",
        may_have_executed=True,
    )
    return deliver(self, entry, request_id, 0, error, None, outcomes)


cdef inline int deliver(ClientFrames self, Pending entry, uint32_t request_id, uint32_t code,
                        error, result, list outcomes) except -1:
    """Keeps what came for a request; adds the outcome when nothing is missing."""
    cdef uint32_t position
    if entry.results is None:
        count_answer(self, code)
        outcomes.append((entry.waiter, error, result))
        self.requests.popped = None
        return 0
    position = request_id - entry.first
    if entry.results[position] is not UNANSWERED:
        return count_unexpected(self, request_id)
    count_answer(self, code)
    if error is not None:
        error.item = position
        if entry.error is None or position < entry.error.item:
            entry.error = error
    entry.results[position] = result
    entry.unanswered -= 1
    # It may have been forgotten while its objects were made.
    if entry.unanswered == 0 and self.requests.pop_bulk(entry):
        self.requests.popped = entry
        outcomes.append((entry.waiter, entry.error, entry.results))
        self.requests.popped = None
    return 0


cdef int fail_stream(ClientFrames self, Pending entry, error, list outcomes) except -1:
    """Raises an error of the stream, which is also the outcome of the request that it
    came for: that is not pending any more."""
    if entry.results is None:
        outcomes.append((entry.waiter, error, None))
        self.requests.popped = None
    raise error


cdef object another_function(Pending entry, uint32_t request_id, uint32_t func_id):
    return ProtocolError(
        f"reply to request_id {request_id} is of function {func_id:#x}, "
        f"asked was {entry.func_id:#x}"
    )


cdef int count_unexpected(ClientFrames self, uint32_t request_id) except -1:
    """A reply that nothing waits for: its caller gave up, or it came before."""
    if not self.requests.was_sent(request_id):
        raise ProtocolError(f"reply to request_id {request_id}, which was never sent")
    self.unexpected_replies += 1
    if self.unexpected_replies > self.requests.forgotten + MOST_DUPLICATES:
        raise ProtocolError(
            f"over {MOST_DUPLICATES} replies to requests that were answered already, "
            f"the last to request_id {request_id}"
        )
    return 0


cdef inline int count_answer(ClientFrames self, uint32_t code) except -1:
    self.answered += 1
    return count_refusal(self.refusals, code) if code != 0 else 0


cdef int count_refusal(dict refusals, uint32_t code) except -1:
    cdef object key = code
    if key not in refusals and len(refusals) >= MOST_REFUSALS:
        key = -1
    refusals[key] = refusals.get(key, 0) + 1
    return 0


# Without an exception set aside: a `try` costs more than most of what is decoded here.
cdef extern from "Python.h":
    PyObject* decode_utf8 "PyUnicode_DecodeUTF8"(const char* text, Py_ssize_t length,
                                                 const char* errors) noexcept


cdef object decode_result(int outcome, const uint8_t* body, uint32_t size, bint* failed):
    """The body of a successful reply, as it was asked for; or, ``failed``, the error."""
    cdef cursor_t c
    cdef const uint8_t* text = NULL
    cdef uint32_t length = 0
    if outcome == BODY:
        return body[:size]
    if outcome == NOTHING:
        if size != 1 or body[0] != 0xC0:
            failed[0] = True
            return ProtocolError(f"reply body of {size} bytes where nil was expected")
        return None
    c.at = body
    c.end = body + size
    if read_str(&c, &text, &length) != 0 or c.at != c.end:
        failed[0] = True
        return ProtocolError(f"reply body of {size} bytes is not the MsgPack str that was expected")
    if outcome == BYTES:
        return text[:length]
    cdef PyObject* decoded = decode_utf8(<const char*>text, length, NULL)
    if decoded == NULL:
        PyErr_Clear()
        return decode_anew(text, length, failed)
    result = <object>decoded
    Py_DECREF(result)  # the reference that was new
    return result


cdef object decode_anew(const uint8_t* text, uint32_t length, bint* failed):
    """As text what could not be decoded: for want of memory, or it is not UTF-8."""
    try:
        return text[:length].decode()
    except UnicodeDecodeError as error:
        failed[0] = True
        return TextError(
            f"the slot's {length} bytes are not UTF-8 (byte {error.start}); "
            "read them with the bytes variant of the call"
        )


cdef str error_text(const uint8_t* body, uint32_t size):
    """The text of an error reply; whatever a peer put there, some text comes out."""
    cdef cursor_t c
    cdef const uint8_t* text = NULL
    cdef uint32_t length = 0
    c.at = body
    c.end = body + size
    if body == NULL or read_str(&c, &text, &length) != 0:
        return f"(the reply has no text, but {size} other bytes)" if size else "(no text)"
    if length <= PEER_TEXT:
        return text[:length].decode("utf-8", "backslashreplace")
    cdef uint32_t kept = PEER_TEXT
    while text[kept] & 0xC0 == 0x80 and kept > PEER_TEXT - 4:  # not within a character
        kept -= 1
    return text[:kept].decode("utf-8", "backslashreplace") + f"... (cut: {length} bytes in all)"
