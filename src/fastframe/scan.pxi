# Chunks to requests, and who answers each. Functions of ServerFrames whose class would
# be too long with them.

cdef enum:
    FRAME
    PARTIAL  # its end has not come yet
    TOO_LONG

# A name of its own: looking it up in the enum could fail where this is needed.
cdef object FAILED = CloseReason.FAILED

cdef const char* PING_PARAMS_TEXT = b"PING takes an empty body"
cdef const char* SHUTDOWN_PARAMS_TEXT = b"SHUTDOWN takes an empty body"


cdef inline int next_frame(const uint8_t* data, size_t left, uint32_t max_body,
                           Request* request) noexcept nogil:
    """Looks at the frame that the data begins with: FRAME, PARTIAL or TOO_LONG."""
    if left < HEADER_BYTES:
        return PARTIAL
    request.func_id = load_le32(data)
    request.length = load_le32(data + 4)
    request.request_id = load_le32(data + 8)
    request.body = data + HEADER_BYTES
    if request.length > max_body:
        return TOO_LONG
    return FRAME if left - HEADER_BYTES >= request.length else PARTIAL


cdef size_t scan(ServerFrames self, const uint8_t* data, size_t size,
                 uint8_t* out_limit) except? 0:
    """Answers frame after frame; returns the bytes that it is done with."""
    cdef const handle_t* h = &self.storage.handle
    cdef size_t at = 0
    cdef Request request
    cdef Hold hold
    cdef int found, row
    begin_hold(&hold, self.guard.forbidden)
    try:
        while True:
            found = next_frame(data + at, size - at, self.max_body, &request)
            if self.out >= out_limit and size - at >= HEADER_BYTES:
                self.status |= MORE
                break
            if found != FRAME:
                if found == TOO_LONG:
                    let_go(&hold, h)
                    refuse_body(self, &request)
                break
            row = row_of_storage(request.func_id)
            if row >= 0:
                answer(self, h, &request, row, &hold)
            else:
                # Python objects are made in here: not under the lock.
                let_go(&hold, h)
                if not answer_other(self, &request):
                    break
            at += HEADER_BYTES + request.length
    finally:
        let_go(&hold, h)
    self.status |= hold.refused
    return size if self.status & CLOSING else at


cdef inline void answer(ServerFrames self, const handle_t* h, const Request* request, int row,
                        Hold* hold) noexcept:
    """A function over the store: decode, execute, reply."""
    cdef Op op
    cdef Result result
    if decode(request, row, &op, &result):
        hold_for(hold, h, row)
        execute(h, &op, hold, &result)
    reply(self, request, row, &result)


cdef inline void reply(ServerFrames self, const Request* request, int row,
                       const Result* result) noexcept:
    self.out = put_result(self.out, request, result, self.mailru)
    count(self, row, COLUMN_OK if result.code == OK else column_of(result.code))


cdef inline void count(ServerFrames self, int row, int column) noexcept:
    self.me.requests[row][column] += 1
    if row < FIRST_USER:
        self.done.frames[row] += 1
    else:  # calls of user functions are timed when they are answered
        self.others += 1


cdef void fail(ServerFrames self, const Request* request, int row, uint32_t code,
               const char* text) noexcept:
    cdef Result result
    refuse(&result, code, text)
    reply(self, request, row, &result)


cdef bint answer_other(ServerFrames self, const Request* request) except -1:
    """PING, SHUTDOWN, user functions and unknown ones; False: stop here."""
    cdef PyObject* function
    cdef char[ERROR_TEXT] text
    if request.func_id == PING:
        if request.length:
            fail(self, request, ROW_PING, ILLEGAL_PARAMS, PING_PARAMS_TEXT)
        else:
            self.out = put_header(self.out, PING, 0, request.request_id)
            count(self, ROW_PING, COLUMN_OK)
            self.pings += 1
        return True
    if request.func_id == SHUTDOWN:
        self.knows_shutdown = True
        if request.length:
            fail(self, request, ROW_SHUTDOWN, ILLEGAL_PARAMS, SHUTDOWN_PARAMS_TEXT)
            return True
        count(self, ROW_SHUTDOWN, COLUMN_OK)
        self.final_bytes = PyBytes_FromStringAndSize(
            <const char*>request.body - HEADER_BYTES, HEADER_BYTES
        )
        self.me.bytes_out += HEADER_BYTES
        begin_close(self, CloseReason.SHUTDOWN)
        return False
    function = PyDict_GetItem(self.functions, request.func_id) if self.functions else NULL
    if function == NULL:
        if not permits(self, request.func_id):
            return refuse_right(self, request)
        snprintf(text, ERROR_TEXT, b"no function 0x%08x here", request.func_id)
        fail(self, request, ROW_UNKNOWN, UNSUPPORTED_COMMAND, text)
        return True
    return queue_call(self, <UserFunction?>function, request)


cdef int begin_close(ServerFrames self, reason) except -1:
    """No frame after this one is looked at."""
    self.status = (self.status | CLOSING) & ~(MORE | FULL | PAUSED)
    self.close_reason = reason
    return 0


cdef int announce_end(ServerFrames self) except -1:
    """Makes an unasked SHUTDOWN the last bytes: what is unanswered was not executed."""
    cdef uint8_t[HEADER_BYTES] header
    put_header(header, SHUTDOWN, 0, 0)
    self.final_bytes = PyBytes_FromStringAndSize(<const char*>header, HEADER_BYTES)
    self.me.bytes_out += HEADER_BYTES
    return 0


cdef void drop_all(ServerFrames self) noexcept:
    """Drops all that waits, in and out. Nothing is executed, called or sent any more."""
    self.discarded = True
    self.queue.clear()
    self.queue_at = 0
    self.status = (self.status | CLOSING) & ~(MORE | FULL | PAUSED | CALLS | UNSENT)
    self.frame_ns = 0
    if not self.busy:  # else what calls this stands in the middle of it
        consume(&self.input, size_of(&self.input))
    consume(&self.output, size_of(&self.output))


cdef void break_stream(ServerFrames self) noexcept:
    """An exception left the place in the stream unknown, or a reply cut or missing.

    What is kept would be executed again, or stand behind a gap.
    """
    drop_all(self)
    self.status |= BROKEN
    self.close_reason = FAILED
    self.final_bytes = b""


cdef int refuse_body(ServerFrames self, const Request* request) except -1:
    cdef char[ERROR_TEXT] text
    snprintf(text, ERROR_TEXT,
             b"body of %u bytes is over the limit of %u; closing the connection, "
             b"for what follows cannot be told apart", request.length, self.max_body)
    fail(self, request, row_of(known_functions(self), request.func_id), ILLEGAL_PARAMS, text)
    if looks_like_net_rpc(self.first_header):
        self.close_text = SPEAKS_NET_RPC
    return begin_close(self, CloseReason.BODY_TOO_LARGE)


cdef int row_of(dict functions, uint32_t func_id) except -1:
    """Counter row of any function."""
    cdef PyObject* function
    if row_of_storage(func_id) >= 0:
        return row_of_storage(func_id)
    if func_id == PING or func_id == SHUTDOWN:
        return ROW_PING + (func_id - PING)
    function = PyDict_GetItem(functions, func_id)
    return (<UserFunction?>function).row if function != NULL else ROW_UNKNOWN
