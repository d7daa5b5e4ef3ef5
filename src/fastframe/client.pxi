cdef enum:
    DIALECT_UNKNOWN = -1
    DIALECT_VK = 0
    DIALECT_MAILRU = 1

# Return codes that a client's side counts apart.
cdef enum:
    MOST_REFUSALS = 64


cdef str NOTHING_TO_ASK = "a bulk of no requests would never be answered"

# Stands for a result that has not come yet.
cdef object UNANSWERED = object()


@cython.final
cdef class Pending:
    """What waits for one reply, or for those of ``count`` requests in a row."""

    cdef object waiter
    cdef double deadline
    cdef int outcome
    cdef uint32_t func_id
    cdef uint32_t first
    cdef uint32_t count
    cdef uint32_t missing
    # Ids given out before its own: up to `taken`, and it has left.
    cdef uint64_t place
    cdef list results
    cdef object error


@cython.final
cdef class ClientFrames:
    """The frames of one connection, on the client's side.

    A request is given a ``waiter``, any object, which comes back with its
    outcome: from ``feed`` when the reply came, from ``expire`` when its
    deadline passed, from ``fail_all`` when the connection ended.

    Args:
        mailru: the server's dialect, or None to let the first reply, which must
            be one of STORAGE_READ, tell.
        max_body: longest reply body taken, in bytes; a longer claim is an error.

    Not for use by two threads at once.
    """

    cdef uint32_t max_body
    cdef int dialect
    cdef Buffer output
    cdef Buffer input
    cdef dict pending
    cdef list bulks
    cdef public uint32_t _next_id  # public for tests: 2**32 requests take too long
    # Whether ids have come round: only then the next one may be in use.
    cdef bint wrapped
    # Ids given out so far; up to `taken` of them have left through take().
    cdef uint64_t issued
    cdef uint64_t taken
    # Requests that were replied to; replies to those that had one already, or that
    # nobody waits for any more; and how often each return_code but 0 came, the
    # first MOST_REFUSALS of them apart, the others together under -1: a peer can
    # invent four billion.
    cdef readonly uint64_t answered
    cdef readonly uint64_t surplus
    cdef readonly dict refusals
    # Set when the stream cannot be trusted any more: what to tell the callers.
    cdef readonly object broken
    # While a bulk is built, and while a chunk is read: see forbid_reentry.
    cdef bint building
    cdef bint feeding

    def __cinit__(self, *, mailru, uint32_t max_body):
        self.dialect = DIALECT_UNKNOWN if mailru is None else 1 if mailru else 0
        self.max_body = max_body
        self.pending = {}
        self.bulks = []
        self.refusals = {}
        self._next_id = 1

    def __dealloc__(self):
        free(self.output.data)
        free(self.input.data)

    # Requests. Each returns the request's id (the first of a bulk's), for forget().

    def request(self, uint32_t func_id, bytes body not None, int outcome, waiter,
                double deadline):
        """Adds a request with this body."""
        forbid_reentry(self.building)
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef uint8_t* out
        if size > 0xFFFFFFFF:
            raise ValueError(f"a body of {size} bytes does not fit into a frame")
        if self.wrapped:
            self._skip_used(1)
        reserve(&self.output, HEADER_BYTES + size)
        out = put_header(self.output.data + self.output.end, func_id, <uint32_t>size,
                         self._next_id)
        memcpy(out, PyBytes_AS_STRING(body), size)
        self.output.end += HEADER_BYTES + size
        return self._await_one(func_id, outcome, waiter, deadline)

    def read(self, index, int outcome, waiter, double deadline):
        """Adds a STORAGE_READ."""
        forbid_reentry(self.building)
        if self.wrapped:
            self._skip_used(1)
        self._put_read(index)
        return self._await_one(READ, outcome, waiter, deadline)

    def replace(self, index, content, waiter, double deadline):
        """Adds a STORAGE_REPLACE; the content is str or bytes."""
        forbid_reentry(self.building)
        if self.wrapped:
            self._skip_used(1)
        self._put_replace(index, content)
        return self._await_one(REPLACE, NOTHING, waiter, deadline)

    def read_many(self, list indexes not None, int outcome, waiter, double deadline):
        """Adds a STORAGE_READ for each; the outcome is the list of results."""
        forbid_reentry(self.building)
        cdef size_t start = self.output.end - self.output.start
        cdef uint32_t first
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(indexes)
        if not own:
            raise ValueError(NOTHING_TO_ASK)
        first = self._row_of_ids(len(own))
        self.building = True
        try:
            for index in own:
                self._put_read(index)
                self._next_id += 1
            return self._await_many(READ, outcome, waiter, deadline, first, len(own))
        except BaseException:
            self._take_back(start, first)
            raise
        finally:
            self.building = False

    def replace_many(self, list items not None, waiter, double deadline):
        """Adds a STORAGE_REPLACE for each ``(index, content)``."""
        forbid_reentry(self.building)
        cdef size_t start = self.output.end - self.output.start
        cdef uint32_t first
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(items)
        if not own:
            raise ValueError(NOTHING_TO_ASK)
        first = self._row_of_ids(len(own))
        self.building = True
        try:
            for index, content in own:
                self._put_replace(index, content)
                self._next_id += 1
            return self._await_many(REPLACE, NOTHING, waiter, deadline, first, len(own))
        except BaseException:
            self._take_back(start, first)
            raise
        finally:
            self.building = False

    cdef uint32_t _row_of_ids(self, size_t count) except? 0:
        """The first of so many ids in a row for a bulk."""
        if self._next_id + <uint64_t>count > 0xFFFFFFFF:
            self.wrapped = True
        if self.wrapped:
            self._skip_used(count)
        return self._next_id

    cdef int _skip_used(self, size_t count) except -1:
        """Passes over ids that calls still wait for, until so many in a row are free."""
        cdef size_t unused = 0
        cdef uint32_t candidate
        while unused < count and (self.pending or self.bulks):
            candidate = self._next_id + <uint32_t>unused
            unused += 1
            if candidate in self.pending or self._bulk_of(candidate) is not None:
                self._next_id += <uint32_t>unused
                self.issued += unused
                unused = 0
        return 0

    cdef int _take_back(self, size_t start, uint32_t first) except -1:
        """Unbuilds a bulk that one of its items spoiled."""
        self.output.end = self.output.start + start
        self._next_id = first
        return 0

    cdef int _put_read(self, index) except -1:
        cdef int64_t slot = slot_index(index)
        cdef uint8_t* frame
        cdef uint8_t* end
        reserve(&self.output, HEADER_BYTES + 9)
        frame = self.output.data + self.output.end
        end = put_int(frame + HEADER_BYTES, slot)
        put_header(frame, READ, <uint32_t>(end - frame - HEADER_BYTES), self._next_id)
        self.output.end += end - frame
        return 0

    cdef int _put_replace(self, index, content) except -1:
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
        reserve(&self.output, HEADER_BYTES + 9 + 5 + size)
        frame = self.output.data + self.output.end
        end = put_int(frame + HEADER_BYTES, slot)
        end = put_str_head(end, <uint32_t>size)
        memcpy(end, text, size)
        end += size
        put_header(frame, REPLACE, <uint32_t>(end - frame - HEADER_BYTES), self._next_id)
        self.output.end += end - frame
        return 0

    cdef object _await_one(self, uint32_t func_id, int outcome, waiter, double deadline):
        cdef Pending entry = Pending.__new__(Pending)
        cdef uint32_t request_id = self._next_id
        entry.waiter = waiter
        entry.deadline = deadline
        entry.outcome = outcome
        entry.func_id = func_id
        entry.first = request_id
        entry.count = 1
        entry.place = self.issued
        self._next_id += 1
        if self._next_id == 0:
            self.wrapped = True
        self.issued += 1
        key = request_id
        self.pending[key] = entry
        return key

    cdef object _await_many(self, uint32_t func_id, int outcome, waiter, double deadline,
                            uint32_t first, uint32_t count):
        cdef Pending entry = Pending.__new__(Pending)
        entry.waiter = waiter
        entry.deadline = deadline
        entry.outcome = outcome
        entry.func_id = func_id
        entry.first = first
        entry.count = entry.missing = count
        entry.results = [UNANSWERED] * count
        entry.place = self.issued
        self.issued += count
        self.bulks.append(entry)
        return first

    def take(self):
        """The requests built since the last time, to be sent."""
        forbid_reentry(self.building)
        cdef size_t size = self.output.end - self.output.start
        data = PyBytes_FromStringAndSize(<char*>self.output.data + self.output.start, size)
        consume(&self.output, size)
        self.taken = self.issued
        return data

    def forget(self, request_id):
        """Nobody waits for this request (or bulk) any more; its reply is dropped."""
        if self.pending.pop(request_id, None) is None:
            self.bulks = [bulk for bulk in self.bulks if (<Pending>bulk).first != request_id]

    def expire(self, double now):
        """Takes out what is past its deadline.

        Returns:
            The waiters, and the earliest deadline left (infinity if none is).
        """
        cdef Pending entry
        late = [e for e in self._waiting() if (<Pending>e).deadline <= now]
        for entry in late:
            self.forget(entry.first)
        cdef double earliest = float("inf")
        for entry in self._waiting():
            earliest = min(earliest, entry.deadline)
        return [(<Pending>e).waiter for e in late], earliest

    def fail_all(self):
        """Takes out everything.

        Returns:
            ``(waiter, may_have_executed)`` of each; False where the request
            (no request of the bulk) ever left through ``take``.
        """
        failed = [
            ((<Pending>e).waiter, (<Pending>e).place < self.taken)
            for e in self._waiting()
        ]
        self.pending = {}
        self.bulks = []
        return failed

    @property
    def waiting(self):
        """How many requests or bulks wait for replies."""
        return len(self.pending) + len(self.bulks)

    @property
    def mailru(self):
        """The server's dialect; None while it is not known."""
        return None if self.dialect == DIALECT_UNKNOWN else self.dialect == DIALECT_MAILRU

    @property
    def missing(self):
        """Bytes still to come of a reply that was begun; 0: there is none, or no telling."""
        cdef const uint8_t* frame = self.input.data + self.input.start
        cdef size_t held = self.input.end - self.input.start
        cdef size_t size
        if held < HEADER_BYTES or self.dialect == DIALECT_UNKNOWN:
            return 0
        size = HEADER_BYTES + <size_t>load_le32(frame + 4)
        if self.dialect == DIALECT_VK:
            size += 4
        return size - held

    cdef list _waiting(self):
        return [*self.pending.values(), *self.bulks]

    cdef uint64_t _age(self, uint32_t request_id) noexcept:
        """How many ids were given out after this one; huge if it never was."""
        cdef uint32_t age = self._next_id - 1 - request_id
        return age if age < self.issued else 0xFFFFFFFFFFFFFFFF

    # Replies.

    def feed(self, bytes data not None):
        """Matches the replies of a received chunk.

        Returns:
            A list of ``(waiter, error, result)``, with None for what there is
            not. If ``broken`` is set afterwards, the stream is lost from there
            on and the connection must be closed.
        """
        forbid_reentry(self.feeding)
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef size_t used
        cdef const uint8_t* chunk = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef list outcomes = []
        if self.broken is not None:
            return outcomes
        self.feeding = True
        try:
            if self.input.end != self.input.start:
                append(&self.input, chunk, size)
                used = self._scan(self.input.data + self.input.start,
                                  self.input.end - self.input.start, outcomes)
                consume(&self.input, used)
            else:
                used = self._scan(chunk, size, outcomes)
                if used < size:
                    append(&self.input, chunk + used, size - used)
        finally:
            self.feeding = False
        return outcomes

    cdef size_t _scan(self, const uint8_t* data, size_t size, list outcomes) except? 0:
        cdef size_t at = 0
        cdef size_t left
        cdef uint32_t func_id, length, request_id, code
        cdef const uint8_t* frame
        try:
            while size - at >= HEADER_BYTES:
                frame = data + at
                left = size - at
                func_id = load_le32(frame)
                length = load_le32(frame + 4)
                request_id = load_le32(frame + 8)
                if length == 0 and (func_id == PING or func_id == SHUTDOWN):
                    self._settle(func_id, length, request_id, 0, NULL, 0, outcomes)
                    at += HEADER_BYTES
                    continue
                if not self._fits_dialect(func_id, length, frame, left):
                    break
                if self.dialect == DIALECT_MAILRU:
                    length -= 4
                if length > self.max_body:
                    raise ProtocolError(
                        f"reply body of {length} bytes is over the limit of {self.max_body}"
                    )
                if left < HEADER_BYTES + 4 + <size_t>length:
                    break
                code = load_le32(frame + HEADER_BYTES)
                self._settle(func_id, load_le32(frame + 4), request_id, code,
                             frame + HEADER_BYTES + 4, length, outcomes)
                at += HEADER_BYTES + 4 + length
        except ProtocolError as error:
            self.broken = error
            return size
        return at

    cdef bint _fits_dialect(self, uint32_t func_id, uint32_t length, const uint8_t* frame,
                            size_t left) except -1:
        """Whether the frame can be read on; finds out the dialect if it must.

        The body of a built-in function's reply is one str or nil, never empty,
        so its first bytes tell how long it is, whatever the header counts.
        """
        cdef uint64_t body = 0
        if is_storage_function(func_id):
            body = leading_object_size(frame, left)
        if self.dialect == DIALECT_UNKNOWN:
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
            self.dialect = DIALECT_VK if length == body else DIALECT_MAILRU
        elif self.dialect == DIALECT_VK:
            if body and body != ANOTHER_TYPE and length == body + 4:
                raise DialectError(
                    "the server's body_length counts the return_code: it speaks dialect=mailru, "
                    "the client was told dialect=vk"
                )
        elif length < 4 or (body and length == body) or (
            length == 4 and is_storage_function(func_id)  # whose body is never empty
        ):
            raise DialectError(
                "the server's body_length does not count the return_code: it speaks dialect=vk, "
                "the client was told dialect=mailru"
            )
        return True

    cdef int _settle(self, uint32_t func_id, uint32_t length, uint32_t request_id,
                     uint32_t code, const uint8_t* body, uint32_t size,
                     list outcomes) except -1:
        """Finds who waits for a reply, and gives them what they asked for."""
        cdef Pending entry = self.pending.pop(request_id, None) if self.pending else None
        cdef object error = None
        cdef object result = None
        cdef uint32_t position
        if entry is None:
            entry = self._bulk_of(request_id)
            if entry is None:
                if self._age(request_id) == 0xFFFFFFFFFFFFFFFF:
                    raise ProtocolError(f"reply to request_id {request_id}, which was never sent")
                self.surplus += 1
                return 0  # Its caller gave up, or it was answered already.
        try:
            if func_id != entry.func_id:
                raise ProtocolError(
                    f"reply to request_id {request_id} is of function {func_id:#x}, "
                    f"asked was {entry.func_id:#x}"
                )
            if entry.outcome == RESPONSE:
                result = Response(Header(func_id, length, request_id), code, body[:size])
            elif code != 0:
                error = error_from_reply(code, error_text(body, size))
            elif body != NULL:
                result = decode_result(entry.outcome, body, size)
        except ProtocolError as broken:
            # The waiter hears of it too: it is not pending any more.
            if entry.results is None:
                outcomes.append((entry.waiter, broken, None))
            raise
        except TextError as not_text:
            error = not_text
        if entry.results is None:
            self.answered += 1
            if code != 0:
                self._count_refusal(code)
            outcomes.append((entry.waiter, error, result))
            return 0
        position = request_id - entry.first
        if entry.results[position] is not UNANSWERED:
            self.surplus += 1
            return 0
        self.answered += 1
        if code != 0:
            self._count_refusal(code)
        if error is not None:
            error.item = position
            if entry.error is None or position < entry.error.item:
                entry.error = error
        entry.results[position] = result
        entry.missing -= 1
        if entry.missing == 0:
            self.bulks.remove(entry)
            outcomes.append((entry.waiter, entry.error, entry.results))
        return 0

    cdef int _count_refusal(self, uint32_t code) except -1:
        cdef object key = code
        if key not in self.refusals and len(self.refusals) >= MOST_REFUSALS:
            key = -1
        self.refusals[key] = self.refusals.get(key, 0) + 1
        return 0

    cdef Pending _bulk_of(self, uint32_t request_id):
        cdef Pending bulk
        for bulk in self.bulks:
            if request_id - bulk.first < bulk.count:
                return bulk
        return None


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


cdef object decode_result(int outcome, const uint8_t* body, uint32_t size):
    """The body of a successful reply, as it was asked for."""
    cdef cursor_t c
    cdef const uint8_t* text = NULL
    cdef uint32_t length = 0
    if outcome == BODY:
        return body[:size]
    if outcome == NOTHING:
        if size != 1 or body[0] != 0xC0:
            raise ProtocolError(f"reply body of {size} bytes where nil was expected")
        return None
    c.at = body
    c.end = body + size
    if read_str(&c, &text, &length) != 0 or c.at != c.end:
        raise ProtocolError(f"reply body of {size} bytes is not the MsgPack str that was expected")
    if outcome == BYTES:
        return text[:length]
    try:
        return PyUnicode_DecodeUTF8(<const char*>text, length, NULL)
    except UnicodeDecodeError as error:
        raise TextError(
            f"the slot's {length} bytes are not UTF-8 (byte {error.start}); "
            "read them with the bytes variant of the call"
        ) from None


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
