cdef extern from *:
    """
    #include <sys/socket.h>
    #ifndef MSG_NOSIGNAL
    #define MSG_NOSIGNAL 0  /* macOS; Python ignores SIGPIPE anyway */
    #endif
    """
    enum:
        MSG_DONTWAIT
        MSG_NOSIGNAL
    ssize_t recv(int fd, void* data, size_t size, int flags) noexcept nogil
    ssize_t send(int fd, const void* data, size_t size, int flags) noexcept nogil


# Texts of error replies. Those with numbers in them are made on the spot.
cdef bytes READ_ONLY_TEXT = (
    b"storage is READ_ONLY: writes are refused until it is switched to READ_WRITE (0x00010002)"
)
cdef bytes MAINTENANCE_TEXT = (
    b"storage is in MAINTENANCE: reads and writes are refused until it is switched to "
    b"READ_WRITE (0x00010002) or READ_ONLY (0x00010001)"
)
cdef bytes LOCK_TEXT = b"the storage's lock was not to be had within a second, try again"
cdef bytes SWITCH_PARAMS_TEXT = b"the storage switches take nil or an empty body"
cdef bytes REPLACE_PARAMS_TEXT = (
    b"STORAGE_REPLACE takes a MsgPack int and str, one after the other, "
    b'as [int, str] or as {"ID": int, "S": str}, and nothing else'
)
cdef bytes READ_PARAMS_TEXT = (
    b'STORAGE_READ takes a MsgPack int, as itself, as [int] or as {"ID": int}, and nothing else'
)
cdef bytes PING_PARAMS_TEXT = b"PING takes an empty body"
cdef bytes SHUTDOWN_PARAMS_TEXT = b"SHUTDOWN takes an empty body"

cdef enum:
    HOLDS_NOTHING = 0
    HOLDS_READ = 1
    HOLDS_WRITE = 2


cdef uint8_t* put_header(uint8_t* out, uint32_t func_id, uint32_t length,
                         uint32_t request_id) noexcept nogil:
    store_le32(out, func_id)
    store_le32(out + 4, length)
    store_le32(out + 8, request_id)
    return out + HEADER_BYTES


cdef struct Request:
    uint32_t func_id
    uint32_t request_id
    const uint8_t* body
    uint32_t length


@cython.final
cdef class ServerFrames:
    """The frames of one connection, on the server's side.

    Args:
        storage: what the built-in functions work on.
        mailru: whether body_length of a response counts its return_code.
        max_body: longest body taken, in bytes.
        max_calls: users' calls that may run at once; at the limit no further
            frame is looked at until one is answered.
        functions: func_id of each of the users' functions → its counter row.

    Not for use by two threads at once.
    """

    cdef readonly Storage storage
    cdef dict functions
    cdef uint32_t max_body
    cdef uint32_t max_calls
    cdef bint mailru
    # Input that is not executed yet: a partial frame, or what a bound left.
    cdef Buffer input
    # When bytes last came or went, and when the partial frame in `input` was
    # begun (0: there is none). CLOCK_MONOTONIC, ns.
    cdef uint64_t traffic_ns
    cdef uint64_t frame_ns
    # Replies that the socket did not take yet, and those of users' calls until
    # the end of the loop's turn.
    cdef Buffer output
    # What the caller has to look after: the bits above.
    cdef readonly int status
    # Users' frames to run, as (func_id, request_id, body, arrived): take_calls().
    cdef list calls
    # Users' calls not answered yet, those in `calls` included.
    cdef readonly uint32_t running
    # Set with IS_CLOSING: why, and the last bytes to send.
    cdef readonly object close_reason
    cdef bytes farewell
    # Bytes received in all, and how many there will be when a drain is done.
    cdef uint64_t received
    cdef uint64_t drain_at
    cdef bint draining
    # Of the chunk being executed: built-in frames by row, replies, clock.
    cdef uint32_t[FIRST_USER] done
    cdef uint8_t* out
    cdef uint64_t arrived
    # While a chunk is executed: see forbid_reentry.
    cdef bint busy

    def __cinit__(self, Storage storage not None, *, bint mailru, uint32_t max_body,
                  uint32_t max_calls, dict functions not None):
        cdef int64_t func_id, row
        cdef dict rows = {}  # not the caller's, who may put anything into it later
        for key, value in functions.items():
            func_id = as_int64(key)
            row = as_int64(value)
            if not 0 <= func_id <= 0xFFFFFFFF:
                raise ValueError(f"func_id {key} is outside 0..{0xFFFFFFFF:#x}")
            if not FIRST_USER <= row < FUNCTIONS:
                raise ValueError(f"counter row {value} is outside {FIRST_USER}..{FUNCTIONS - 1}")
            rows[func_id] = row
        self.storage = storage
        self.mailru = mailru
        self.max_body = max_body
        self.max_calls = max_calls
        self.functions = rows
        self.calls = []
        self.farewell = b""
        self.traffic_ns = clock_ns()

    def __dealloc__(self):
        free(self.input.data)
        free(self.output.data)

    def receive(self, int fd):
        """Takes what a non-blocking socket has, executes it, sends the replies.

        Returns:
            ``status``: 0 if there is nothing to look after.
        """
        forbid_reentry(self.busy)
        cdef Storage storage = self.storage
        cdef uint8_t* scratch = acquire_scratch(&storage.scratch)
        cdef uint8_t* chunk = scratch + OUTPUT_LIMIT + REPLY_LIMIT
        cdef ssize_t got
        cdef size_t built
        cdef int _try
        self.busy = True
        try:
            # Once, as a rule. A chunk that brings no reply is followed by
            # another look: a reset behind it would otherwise go unnoticed, for
            # uvloop stops watching a socket after it reported an error, and
            # only a read or a send tells which.
            for _try in range(RECEIVE_TRIES):
                got = recv(fd, chunk, RECEIVE_LIMIT, MSG_DONTWAIT)
                if got <= 0:
                    if got == 0:
                        self.status |= ENDED
                    elif not is_transient(errno):
                        self.status |= BROKEN
                    break
                built = self._take_in(chunk, got, scratch)
                if built:
                    self._send(fd, scratch, built)
                if built or got == RECEIVE_LIMIT or self.status & (MORE | CLOSING):
                    break
        finally:
            self.busy = False
            release_scratch(&storage.scratch, scratch)
        return self.status

    def resume(self, int fd):
        """Goes on with what a bound left (``HAS_MORE``); as ``receive``."""
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = acquire_scratch(&self.storage.scratch)
        self.busy = True
        try:
            self.arrived = clock_ns()
            self._send(fd, scratch, self._execute_input(scratch))
        finally:
            self.busy = False
            release_scratch(&self.storage.scratch, scratch)
        return self.status

    def flush(self, int fd):
        """Sends what waits to be sent; clears ``HAS_UNSENT`` when all is gone."""
        cdef size_t size = self.output.end - self.output.start
        cdef ssize_t sent
        if size == 0:
            return
        sent = send(fd, self.output.data + self.output.start, size, MSG_DONTWAIT | MSG_NOSIGNAL)
        if sent < 0:
            self.status |= UNSENT if is_transient(errno) else BROKEN
            return
        if sent:
            self.traffic_ns = clock_ns()
        consume(&self.output, sent)
        if self.output.end:
            self.status |= UNSENT
        else:
            self.status &= ~UNSENT

    cdef inline int _send(self, int fd, const uint8_t* data, size_t size) except -1:
        """Sends replies, or puts them behind those that wait."""
        cdef ssize_t sent = 0
        if size == 0:
            return 0
        if self.output.end == 0:
            sent = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL)
            if sent == <ssize_t>size:
                return 0
            if sent < 0:
                if not is_transient(errno):
                    self.status |= BROKEN
                    return 0
                sent = 0
            self.status |= UNSENT
        append(&self.output, data + sent, size - sent)
        return 0

    def feed(self, bytes data not None):
        """As ``receive``, for streams that are not sockets: bytes in, bytes out.

        Returns:
            All replies as one ``bytes``, or None if there is none to send.
            Look at ``status`` after it, and go on with ``feed(b"")``.
        """
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = acquire_scratch(&self.storage.scratch)
        cdef size_t built
        self.busy = True
        try:
            if PyBytes_GET_SIZE(data):
                built = self._take_in(<const uint8_t*>PyBytes_AS_STRING(data),
                                      PyBytes_GET_SIZE(data), scratch)
            else:
                self.arrived = clock_ns()
                built = self._execute_input(scratch)
            return PyBytes_FromStringAndSize(<char*>scratch, built) if built else None
        finally:
            self.busy = False
            release_scratch(&self.storage.scratch, scratch)

    cdef inline size_t _take_in(self, const uint8_t* chunk, size_t size,
                                uint8_t* scratch) except? 0:
        """Executes a received chunk; returns how many bytes of replies it built."""
        cdef size_t used
        cdef size_t built
        self.traffic_ns = self.arrived = clock_ns()
        self.storage.handle.me.bytes_in += size
        self.received += size
        if self.status & CLOSING:
            return 0
        if self.input.end != self.input.start:
            append(&self.input, chunk, size)
            return self._execute_input(scratch)
        built = self._execute(chunk, size, &used, scratch)
        if used < size:
            append(&self.input, chunk + used, size - used)
            self._date_partial(used)
        return built

    cdef size_t _execute_input(self, uint8_t* scratch) except? 0:
        cdef size_t used
        cdef size_t built
        if self.status & CLOSING:
            return 0
        built = self._execute(self.input.data + self.input.start,
                              self.input.end - self.input.start, &used, scratch)
        consume(&self.input, used)
        self._date_partial(used)
        return built

    cdef void _date_partial(self, size_t used) noexcept:
        if self.input.start == self.input.end or self.status & (MORE | CLOSING):
            self.frame_ns = 0
        elif used or self.frame_ns == 0:
            self.frame_ns = self.arrived

    cdef inline size_t _execute(self, const uint8_t* data, size_t size, size_t* used,
                                uint8_t* scratch) except? 0:
        """Runs what it may of the data; counts and times it."""
        cdef size_t built
        cdef int row
        self.status &= ~(MORE | FULL)
        for row in range(FIRST_USER):
            self.done[row] = 0
        self.out = scratch
        used[0] = self._scan(data, size, scratch + OUTPUT_LIMIT)
        built = self.out - scratch
        self._observe()
        self.storage.handle.me.bytes_out += built
        if self.draining and self.received >= self.drain_at and not self.status & (MORE | CLOSING):
            self._close(CloseReason.DRAIN)
            used[0] = size
        return built

    cdef inline void _observe(self) noexcept:
        """Service time of a chunk's built-in frames: their replies leave together."""
        cdef worker_t* me = self.storage.handle.me
        cdef uint64_t elapsed = clock_ns() - self.arrived
        cdef int bucket = bucket_of(elapsed)
        cdef int row
        for row in range(FIRST_USER):
            if self.done[row]:
                me.buckets[row][bucket] += self.done[row]
                me.nanoseconds[row] += elapsed * self.done[row]

    cdef size_t _scan(self, const uint8_t* data, size_t size, uint8_t* out_limit) except? 0:
        """Executes frame after frame; returns the bytes that it is done with."""
        cdef size_t at = 0
        cdef Request request
        cdef int holds = HOLDS_NOTHING
        cdef int held = 0
        cdef int reads = 0  # since the last write, under its lock
        # False once the lock was waited for in vain: the rest of the chunk is
        # answered OVERLOADED at once, not after a wait for each frame.
        cdef bint may_wait = True
        cdef bint proceed = True
        try:
            while size - at >= HEADER_BYTES:
                if self.out >= out_limit:
                    self.status |= MORE
                    break
                request.func_id = load_le32(data + at)
                request.length = load_le32(data + at + 4)
                request.request_id = load_le32(data + at + 8)
                request.body = data + at + HEADER_BYTES
                if request.length > self.max_body:
                    self._release(holds)
                    holds = HOLDS_NOTHING
                    self._refuse_body(&request)
                    break
                if size - at - HEADER_BYTES < request.length:
                    break
                if request.func_id == READ:
                    if holds != HOLDS_READ or held == FRAMES_A_HOLD:
                        if (holds == HOLDS_WRITE and held < FRAMES_A_HOLD
                                and reads < READS_A_WRITE):
                            reads += 1
                        else:
                            self._release(holds)
                            holds = HOLDS_NOTHING
                            if may_wait and acquire_read(&self.storage.handle):
                                holds = HOLDS_READ
                            may_wait = holds != HOLDS_NOTHING
                            held = 0
                    held += 1
                    self._read(&request, holds != HOLDS_NOTHING)
                elif request.func_id == REPLACE or (
                    SWITCH_READONLY <= request.func_id <= SWITCH_MAINTENANCE
                ):
                    if holds != HOLDS_WRITE or held == FRAMES_A_HOLD:
                        self._release(holds)
                        holds = HOLDS_NOTHING
                        if may_wait and acquire_write(&self.storage.handle):
                            holds = HOLDS_WRITE
                        may_wait = holds != HOLDS_NOTHING
                        held = 0
                    held += 1
                    reads = 0
                    if request.func_id == REPLACE:
                        self._replace(&request, holds == HOLDS_WRITE)
                    else:
                        self._switch(&request, holds == HOLDS_WRITE)
                else:
                    # Python objects are made in here: not under the lock.
                    self._release(holds)
                    holds = HOLDS_NOTHING
                    proceed = self._other(&request)
                    if not proceed:
                        break
                at += HEADER_BYTES + request.length
        finally:
            self._release(holds)
        return size if self.status & CLOSING else at

    cdef inline void _release(self, int holds) noexcept:
        if holds == HOLDS_READ:
            release_read(&self.storage.handle)
        elif holds == HOLDS_WRITE:
            release_write(&self.storage.handle)

    # Checked in this order: the body, the storage's state, the index. So a write
    # to an index that does not exist tells the state and changes nothing, which
    # is how `iproto state` finds it out.

    cdef void _read(self, Request* request, bint locked) noexcept:
        cdef slot_t* slot
        cdef int64_t index
        cdef uint32_t length
        cdef uint8_t* text
        index = short_uint(request.body, request.length)
        if index < 0 and not decode_read(request.body, request.length, &index):
            self._fail(request, ROW_READ, ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS, READ_PARAMS_TEXT)
        elif not locked:
            self._fail(request, ROW_READ, OVERLOADED, COLUMN_OVERLOADED, LOCK_TEXT)
        elif load_relaxed(&self.storage.handle.store.state) == MAINTENANCE:
            self._fail(request, ROW_READ, LOCKED, COLUMN_LOCKED, MAINTENANCE_TEXT)
        elif not 0 <= index < SLOTS:
            self._fail_index(request, ROW_READ, index)
        else:
            slot = &self.storage.handle.slots[index]
            length = slot_length(slot)
            text = self._put_reply(request, OK, str_head_size(length) + length)
            text = put_str_head(text, length)
            memcpy(text, slot_bytes(slot), length)
            self.out = text + length
            self._count(ROW_READ, COLUMN_OK)

    cdef void _replace(self, Request* request, bint locked) noexcept:
        cdef int64_t index
        cdef const uint8_t* text
        cdef uint32_t length
        cdef uint32_t state
        cdef char[ERROR_TEXT] said
        if not decode_replace(request.body, request.length, &index, &text, &length):
            self._fail(request, ROW_REPLACE, ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS,
                       REPLACE_PARAMS_TEXT)
            return
        if length > SLOT_BYTES:
            snprintf(said, ERROR_TEXT, b"string of %u bytes is over the limit of %d",
                     length, SLOT_BYTES)
            self._fail(request, ROW_REPLACE, ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS, said)
            return
        if not locked:
            self._fail(request, ROW_REPLACE, OVERLOADED, COLUMN_OVERLOADED, LOCK_TEXT)
            return
        state = load_relaxed(&self.storage.handle.store.state)
        if state == READ_ONLY:
            self._fail(request, ROW_REPLACE, READ_ONLY_CODE, COLUMN_READ_ONLY, READ_ONLY_TEXT)
        elif state == MAINTENANCE:
            self._fail(request, ROW_REPLACE, LOCKED, COLUMN_LOCKED, MAINTENANCE_TEXT)
        elif not 0 <= index < SLOTS:
            self._fail_index(request, ROW_REPLACE, index)
        else:
            slot_write(&self.storage.handle, <uint32_t>index, text, length)
            self._succeed(request, ROW_REPLACE)

    cdef void _switch(self, Request* request, bint locked) noexcept:
        cdef int row = request.func_id - SWITCH_READONLY
        cdef uint32_t state = READ_ONLY if row == 0 else READ_WRITE if row == 1 else MAINTENANCE
        if request.length and not (request.length == 1 and request.body[0] == 0xC0):
            self._fail(request, row, ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS, SWITCH_PARAMS_TEXT)
        elif not locked:
            self._fail(request, row, OVERLOADED, COLUMN_OVERLOADED, LOCK_TEXT)
        else:
            store_release(&self.storage.handle.store.state, state)
            self._succeed(request, row)

    cdef bint _other(self, Request* request) except -1:
        """PING, SHUTDOWN, users' functions and unknown ones; False: stop here."""
        cdef PyObject* row
        cdef char[ERROR_TEXT] said
        if request.func_id == PING:
            if request.length:
                self._fail(request, ROW_PING, ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS,
                           PING_PARAMS_TEXT)
            else:
                self.out = put_header(self.out, PING, 0, request.request_id)
                self._count(ROW_PING, COLUMN_OK)
            return True
        if request.func_id == SHUTDOWN:
            if request.length:
                self._fail(request, ROW_SHUTDOWN, ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS,
                           SHUTDOWN_PARAMS_TEXT)
                return True
            self._count(ROW_SHUTDOWN, COLUMN_OK)
            self.farewell = PyBytes_FromStringAndSize(
                <const char*>request.body - HEADER_BYTES, HEADER_BYTES
            )
            self.storage.handle.me.bytes_out += HEADER_BYTES
            self._close(CloseReason.SHUTDOWN)
            return False
        row = PyDict_GetItem(self.functions, request.func_id) if self.functions else NULL
        if row == NULL:
            snprintf(said, ERROR_TEXT, b"no function 0x%08x here", request.func_id)
            self._fail(request, ROW_UNKNOWN, UNSUPPORTED_COMMAND, COLUMN_UNSUPPORTED_COMMAND, said)
            return True
        if self.running >= self.max_calls:
            self.status |= MORE | FULL
            return False
        self.calls.append((
            request.func_id,
            request.request_id,
            PyBytes_FromStringAndSize(<const char*>request.body, request.length),
            self.arrived,
        ))
        self.running += 1
        self.status |= CALLS
        return True

    cdef void _close(self, reason) noexcept:
        """No frame after this one is looked at."""
        self.status = (self.status | CLOSING) & ~(MORE | FULL)
        self.close_reason = reason

    cdef int _refuse_body(self, Request* request) except -1:
        cdef char[ERROR_TEXT] text
        snprintf(text, ERROR_TEXT,
                 b"body of %u bytes is over the limit of %u; closing the connection, "
                 b"for what follows cannot be told apart", request.length, self.max_body)
        self._fail(request, self._row(request.func_id), ILLEGAL_PARAMS, COLUMN_ILLEGAL_PARAMS, text)
        self._close(CloseReason.BODY_TOO_LARGE)
        return 0

    cdef int _row(self, uint32_t func_id) except -1:
        """Counter row of any function."""
        cdef PyObject* row
        if SWITCH_READONLY <= func_id <= SWITCH_MAINTENANCE:
            return func_id - SWITCH_READONLY
        if func_id == REPLACE or func_id == READ:
            return ROW_REPLACE + (func_id - REPLACE)
        if func_id == PING or func_id == SHUTDOWN:
            return ROW_PING + (func_id - PING)
        row = PyDict_GetItem(self.functions, func_id)
        return <object>row if row != NULL else ROW_UNKNOWN

    cdef uint8_t* _put_reply(self, Request* request, uint32_t code, uint32_t length) noexcept:
        """Writes header and return_code; returns where the body goes."""
        return put_response(self.out, request.func_id, request.request_id, code, length,
                            self.mailru)

    cdef void _succeed(self, Request* request, int row) noexcept:
        """OK, with a nil body."""
        cdef uint8_t* body = self._put_reply(request, OK, 1)
        body[0] = 0xC0
        self.out = body + 1
        self._count(row, COLUMN_OK)

    cdef void _fail(self, Request* request, int row, uint32_t code, int column,
                    const char* text) noexcept:
        cdef uint32_t length = <uint32_t>strlen(text)
        cdef uint8_t* body = self._put_reply(request, code, str_head_size(length) + length)
        body = put_str_head(body, length)
        memcpy(body, text, length)
        self.out = body + length
        self._count(row, column)

    cdef void _fail_index(self, Request* request, int row, int64_t index) noexcept:
        cdef char[ERROR_TEXT] text
        if index == INT64_MAX:
            snprintf(text, ERROR_TEXT, b"index of 2^63-1 or more is outside 0..%d", SLOTS - 1)
        else:
            snprintf(text, ERROR_TEXT, b"index %lld is outside 0..%d", <long long>index, SLOTS - 1)
        self._fail(request, row, NUMBER_OUT_OF_RANGE, COLUMN_NUMBER_OUT_OF_RANGE, text)

    cdef void _count(self, int row, int column) noexcept:
        self.storage.handle.me.requests[row][column] += 1
        if row < FIRST_USER:  # users' calls are timed in reply()
            self.done[row] += 1

    def take_calls(self):
        """The users' frames to run, as ``(func_id, request_id, body, arrived)``.

        ``arrived`` goes back into ``reply``. Clears ``HAS_CALLS``.
        """
        calls = self.calls
        self.calls = []
        self.status &= ~CALLS
        return calls

    def reply(self, uint32_t func_id, uint32_t request_id, uint32_t code, bytes body not None,
              uint64_t arrived):
        """Answers a user's call: puts the reply where ``flush`` takes it.

        Args:
            func_id, request_id, arrived: as ``take_calls`` gave them.
            code: the return code.
            body: one MsgPack object.

        Raises:
            RuntimeError: there is no call left to answer.
        """
        if self.running == 0:
            raise RuntimeError("a reply too many: no call is running")
        cdef size_t size = PyBytes_GET_SIZE(body)
        cdef worker_t* me = self.storage.handle.me
        cdef int row = self._row(func_id)
        cdef int column = COLUMN_OK if code == OK else column_of(code)
        # An answer is traffic, though it is sent only at the end of the turn: the
        # idle time-out must not come between the two.
        self.traffic_ns = clock_ns()
        cdef uint64_t elapsed = self.traffic_ns - arrived
        cdef uint8_t* out
        if size > 0xFFFFFFFB:
            raise ValueError(f"a body of {size} bytes does not fit into a frame")
        reserve(&self.output, HEADER_BYTES + 4 + size)
        out = put_response(self.output.data + self.output.end, func_id, request_id, code,
                           <uint32_t>size, self.mailru)
        memcpy(out, PyBytes_AS_STRING(body), size)
        self.output.end += HEADER_BYTES + 4 + size
        self.running -= 1
        self.status &= ~FULL
        me.requests[row][column] += 1
        me.buckets[row][bucket_of(elapsed)] += 1
        me.nanoseconds[row] += elapsed
        me.bytes_out += HEADER_BYTES + 4 + size

    def drain(self, uint64_t unread):
        """Closes once so many more bytes have been received and executed."""
        forbid_reentry(self.busy)
        self.draining = True
        self.drain_at = self.received + unread
        if unread == 0 and not self.status & (MORE | CLOSING):
            self.close(CloseReason.DRAIN)

    def finish(self):
        """Everything is answered: puts the last bytes, SHUTDOWN's echo, behind it."""
        append(&self.output, <const uint8_t*>PyBytes_AS_STRING(self.farewell),
               PyBytes_GET_SIZE(self.farewell))
        self.farewell = b""

    def take(self):
        """What ``flush`` would send, for streams that are not sockets."""
        cdef size_t size = self.output.end - self.output.start
        data = PyBytes_FromStringAndSize(<char*>self.output.data + self.output.start, size)
        consume(&self.output, size)
        return data

    def close(self, reason):
        """From now on nothing is executed; what was not, and what comes, is dropped."""
        forbid_reentry(self.busy)
        if not self.status & CLOSING:
            self._close(CloseReason(reason))
        consume(&self.input, self.input.end - self.input.start)
        self.frame_ns = 0

    def touch(self):
        """Restarts the clocks: reading goes on after a pause that was ours."""
        self.traffic_ns = clock_ns()
        if self.frame_ns:
            self.frame_ns = self.traffic_ns

    def quiet_seconds(self):
        """Since bytes last came or went, or ``touch``."""
        return (clock_ns() - self.traffic_ns) / 1e9

    def partial_seconds(self):
        """Since the frame that is not complete yet was begun; 0.0 if there is none."""
        return (clock_ns() - self.frame_ns) / 1e9 if self.frame_ns else 0.0


cdef bint is_transient(int error) noexcept nogil:
    return error == EAGAIN or error == EINTR  # EWOULDBLOCK is EAGAIN on our systems


cdef inline uint8_t* put_response(uint8_t* out, uint32_t func_id, uint32_t request_id,
                                  uint32_t code, uint32_t length, bint mailru) noexcept nogil:
    """Writes header and return_code of a response; returns where the body goes."""
    out = put_header(out, func_id, length + 4 if mailru else length, request_id)
    store_le32(out, code)
    return out + 4
