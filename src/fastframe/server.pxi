# ServerFrames: frames in, replies out.

@cython.final
cdef class ServerFrames:
    """The frames of one connection, on the server's side.

    Args:
        storage: what the built-in functions work on.
        mailru: whether body_length of a response counts its return_code.
        max_body: longest body taken, in bytes.
        max_calls: calls of user functions that may run at once; further ones wait.
        functions: func_id → user function; shared with other connections.
        budget: of the server's calls; a private one without limit if None.
        max_queue: bytes of the calls that wait, each with its body and 256 more; at
            the limit no further frame is looked at until one has started.
        queue_timeout: seconds that a call may wait; then it is answered OVERLOADED.
        turn: of the event loop; a private one if None.
        max_unsent: bytes of replies that may wait to be sent; a reply of a user
            function over it is dropped (``HAS_OVERFLOWED``), unless it is the only one.
        guard: what this client may do; None: all. ``functions`` are those that it may call.
        account: its place in the table of clients, for the limits of ``guard``.
        peer: what ``calling_peer`` returns while a call of this connection runs.
        net_rpc: whether the client is one of Go's net/rpc, and not of iproto.

    An exception out of a method that executes or answers (out of memory, most likely)
    breaks the stream: ``status`` has ``IS_BROKEN``, nothing is executed or sent any
    more, and the connection must be closed.

    Not for use by two threads at once.
    """

    cdef readonly Storage storage
    cdef worker_t* me  # the storage's counters of this worker
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
    # Replies that the socket did not take yet, and those of user functions until
    # the end of the loop's turn.
    cdef Buffer output
    # What the caller has to look after: the bits above.
    cdef readonly int status
    # Calls of user functions. Those that wait are in `queue` from `queue_at` on; how many
    # run, and how many of both are not answered yet.
    cdef CallBudget budget
    cdef list queue
    cdef Py_ssize_t queue_at
    cdef size_t queued  # bytes
    cdef size_t max_queue
    cdef uint64_t queue_ns
    cdef size_t max_unsent
    cdef readonly uint32_t running
    cdef readonly uint32_t unanswered
    cdef bint calling  # start_calls is at work
    cdef bint discarded  # see discard()
    # Set with IS_CLOSING: why, and the last bytes to send.
    cdef readonly object close_reason
    cdef bytes final_bytes
    # Why, where the reason does not tell it: for the log.
    cdef readonly str close_text
    # Where a stream of gob stands; NULL where it is frames.
    cdef NetRpc* net_rpc
    # The first header that came, and whether the client has the mark of those that
    # understand a SHUTDOWN which they did not ask for.
    cdef uint8_t[HEADER_BYTES] first_header
    cdef readonly bint knows_shutdown
    # What this client may do.
    cdef guard_t guard
    cdef Guard kind
    cdef Account account
    cdef object peer
    # Bytes received in all, and how many there will be when a drain is done.
    cdef readonly uint64_t received
    cdef readonly uint64_t pings  # requests that ask for nothing
    cdef uint64_t drain_at
    cdef bint draining
    cdef object drain_reason
    # Of the chunk being executed: built-in frames by row, other frames, replies, clock.
    cdef Done done
    cdef uint32_t others
    cdef uint8_t* out
    cdef uint64_t arrived
    # Of the event loop, and the last one in which this connection was served; bytes of
    # replies that a chunk may build.
    cdef Turn turn
    cdef uint32_t last_turn
    cdef size_t share
    # While a chunk is executed: see forbid_reentry.
    cdef bint busy

    def __cinit__(self, Storage storage not None, *, bint mailru, uint32_t max_body,
                  uint32_t max_calls, dict functions not None, CallBudget budget=None,
                  size_t max_queue=DEFAULT_QUEUE, double queue_timeout=10.0,
                  size_t max_unsent=DEFAULT_UNSENT, Turn turn=None, Guard guard=None,
                  Account account=None, peer=None, bint net_rpc=False):
        self.storage = storage
        self.me = storage.handle.me
        self.mailru = mailru
        self.max_body = max_body
        self.max_calls = max_calls
        self.functions = functions
        self.budget = CallBudget(0xFFFFFFFF) if budget is None else budget
        self.queue = []
        self.max_queue = max_queue
        self.queue_ns = <uint64_t>(queue_timeout * 1e9)
        self.max_unsent = max_unsent
        self.kind = guard
        self.account = account
        self.peer = peer
        begin_guard(&self.guard, guard, account)
        self.final_bytes = b""
        self.turn = Turn() if turn is None else turn
        self.share = LARGE_SHARE
        self.traffic_ns = clock_ns()
        if net_rpc:
            self.net_rpc = new_net_rpc()

    def __dealloc__(self):
        free(self.net_rpc)
        free(self.input.data)
        free(self.output.data)

    def receive(self, int fd, /):
        """Takes what a non-blocking socket has, executes it, sends the replies.

        Returns:
            ``status``: 0 if there is nothing to look after.
        """
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = NULL
        cdef uint8_t* chunk
        cdef ssize_t got
        cdef ssize_t work = SERVICE_WORK
        cdef size_t built
        cdef int _try
        cdef bint whole = False
        self.busy = True
        try:
            scratch = acquire_scratch(&self.storage.scratch)
            chunk = scratch + LARGE_SHARE + REPLY_LIMIT
            self.share = take_share(self)
            self.status &= ~INPUT
            # Once, as a rule. A chunk that brings no reply is followed by
            # another look: a reset behind it would otherwise go unnoticed, for
            # uvloop stops watching a socket after it reported an error, and
            # only a read or a send tells which.
            for _try in range(RECEIVE_TRIES):
                got = recv(fd, chunk, self.share, MSG_DONTWAIT)
                if got <= 0:
                    if got == 0:
                        self.status |= ENDED
                    elif not is_transient(errno):
                        self.status |= BROKEN
                    break
                built = self._take_in(chunk, got, scratch)
                work += got + built
                if built:
                    send_or_keep(fd, scratch, built, &self.output, &self.status)
                if got == <ssize_t>self.share:
                    self.status |= INPUT
                if built or self.status & (INPUT | MORE | CLOSING):
                    break
            self.turn.left -= work
            whole = True
        finally:
            self._end_chunk(scratch, whole)
        if self.status == 0:
            return 0  # to Cython a constant; status would be made an object
        if self.status & CALLS:
            self._run_plain(fd)
        return self.status

    cdef int _run_plain(self, int fd) except -1:
        """Runs the calls of plain functions that come next, and sends their replies."""
        run_calls(self, None)
        if self.output.end and not self.status & UNSENT:
            self.flush(fd)
        return 0

    def resume(self, int fd, /):
        """Goes on with what a bound left (``HAS_MORE``); as ``receive``."""
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = NULL
        cdef size_t built
        cdef bint whole = False
        self.busy = True
        try:
            scratch = acquire_scratch(&self.storage.scratch)
            self.share = take_share(self)
            self.arrived = clock_ns()
            built = self._execute_input(scratch)
            self.turn.left -= SERVICE_WORK + built
            send_or_keep(fd, scratch, built, &self.output, &self.status)
            whole = True
        finally:
            self._end_chunk(scratch, whole)
        return self.status

    def flush(self, int fd, /):
        """Sends what waits to be sent; clears ``HAS_UNSENT`` when all is gone."""
        if self.output.end and send_kept(fd, &self.output, &self.status):
            self.traffic_ns = clock_ns()

    def feed(self, bytes data not None, /):
        """As ``receive``, for streams that are not sockets: bytes in, bytes out.

        Returns:
            All replies as one ``bytes``, or None if there is none to send.
            Look at ``status`` after it, and go on with ``feed(b"")``.
        """
        forbid_reentry(self.busy)
        cdef uint8_t* scratch = NULL
        cdef size_t built
        cdef bint whole = False
        self.busy = True
        try:
            scratch = acquire_scratch(&self.storage.scratch)
            if PyBytes_GET_SIZE(data):
                built = self._take_in(<const uint8_t*>PyBytes_AS_STRING(data),
                                      PyBytes_GET_SIZE(data), scratch)
            else:
                self.arrived = clock_ns()
                built = self._execute_input(scratch)
            self.turn.left -= SERVICE_WORK + PyBytes_GET_SIZE(data) + built
            replies = PyBytes_FromStringAndSize(<char*>scratch, built) if built else None
            whole = True
            return replies
        finally:
            self._end_chunk(scratch, whole)

    cdef inline void _end_chunk(self, uint8_t* scratch, bint whole) noexcept:
        """A chunk is executed, or (not whole) an exception came in between."""
        self.busy = False
        release_scratch(&self.storage.scratch, scratch)
        if not whole:
            break_stream(self)

    cdef inline size_t _take_in(self, const uint8_t* chunk, size_t size,
                                uint8_t* scratch) except? 0:
        """Executes a received chunk; returns how many bytes of replies it built."""
        cdef size_t used = 0
        cdef size_t built
        self.traffic_ns = self.arrived = clock_ns()
        self.me.bytes_in += size
        if self.received < HEADER_BYTES:
            self._look_for_mark(chunk, size)
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

    cdef void _look_for_mark(self, const uint8_t* chunk, size_t size) noexcept:
        """Sets knows_shutdown by the connection's first request_id, once that is complete."""
        cdef size_t taken = min(size, <size_t>(HEADER_BYTES - self.received))
        memcpy(self.first_header + self.received, chunk, taken)
        if self.received + taken == HEADER_BYTES and self.net_rpc == NULL:
            # The ids of the mark, 0xff010000..0xff01ffff, begin with SHUTDOWN's number.
            self.knows_shutdown = load_le32(self.first_header + 8) >> 16 == SHUTDOWN

    cdef size_t _execute_input(self, uint8_t* scratch) except? 0:
        cdef size_t used = 0
        cdef size_t built
        if self.status & CLOSING:
            return 0
        built = self._execute(bytes_of(&self.input), size_of(&self.input), &used, scratch)
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
        self.status &= ~(MORE | FULL | PAUSED)
        memset(&self.done, 0, sizeof(Done))
        self.out = scratch
        if unlikely_so(self.net_rpc != NULL):
            used[0] = scan_calls(self, data, size, scratch + self.share)
        else:
            used[0] = scan_permitted(self, data, size, scratch + self.share)
        built = self.out - scratch
        observe(self.me, &self.done, clock_ns() - self.arrived)
        self.me.bytes_out += built
        if self.draining and self.received >= self.drain_at and not self.status & (MORE | CLOSING):
            begin_close(self, self.drain_reason)
            used[0] = size
        return built

    def start_calls(self, start):
        """Starts calls that wait, in their order, as many as a turn of the loop may have.

        A plain function runs at once. Clears ``HAS_CALLS`` if no more may start now.

        Args:
            start: takes the ``Call`` of any other function and its arguments; the
                call runs until ``answer`` or ``fail``.
        """
        run_calls(self, start)

    def answer(self, Call call not None, value, /):
        """Answers a call that runs: puts the reply where ``flush`` takes it.

        A value that the function cannot pack is a failure of the call. A call that was
        answered before stays as it was.

        Returns:
            Whether much waits to be sent, so that it should not wait for the turn's end.
        """
        if end_call(self, call) and not self.discarded:
            try:
                put_value(self, call, value)
            except BaseException as error:
                fail_call(self, call, error)
        return self.output.end - self.output.start >= OUTPUT_LIMIT

    def fail(self, Call call not None, error, /):
        """As ``answer``, with what the function makes of an exception."""
        if call.budget is not None:
            fail_call(self, call, error)
        return self.output.end - self.output.start >= OUTPUT_LIMIT

    def expire_calls(self):
        """Answers OVERLOADED to the calls that have waited for ``queue_timeout``.

        Returns:
            Seconds until the next one will have; 0.0 if none waits.
        """
        return expire_calls(self)

    def discard(self):
        """The connection is gone: drops all that waits, in and out. No call starts any more."""
        drop_all(self)

    def drain(self, uint64_t unread, reason=CloseReason.DRAIN):
        """Closes once ``unread`` more bytes have been received and executed.

        Args:
            unread: how many.
            reason: of the close.
        """
        forbid_reentry(self.busy)
        self.draining = True
        self.drain_reason = CloseReason(reason)
        self.drain_at = self.received + unread
        if unread == 0 and not self.status & (MORE | CLOSING):
            self.close(self.drain_reason)

    def finish(self):
        """Everything is answered: puts the last bytes, a SHUTDOWN or none, behind it.

        A drain is announced to a client that understands it.

        Raises:
            MemoryError: they are not behind it.
        """
        if self.knows_shutdown and self.draining and self.close_reason is self.drain_reason:
            announce_end(self)
        append(&self.output, <const uint8_t*>PyBytes_AS_STRING(self.final_bytes),
               PyBytes_GET_SIZE(self.final_bytes))
        self.final_bytes = b""

    def take(self):
        """What ``flush`` would send, for streams that are not sockets."""
        return take_all(&self.output)

    # For streams that are not sockets: events that only their owner sees.

    def take_share(self):
        """Bytes to receive in this turn of the loop; so many of replies ``feed`` makes next."""
        self.share = take_share(self)
        return self.share

    def set_input(self, bint more):
        """Says whether the stream had its share, and may have more: ``HAS_INPUT``."""
        if more:
            self.status |= INPUT
        else:
            self.status &= ~INPUT

    def end_input(self):
        """The client sends no more: sets ``HAS_ENDED``."""
        self.status |= ENDED

    def break_off(self, reason):
        """The stream broke: sets ``IS_BROKEN``. Nothing is executed any more."""
        self.close(reason)
        self.status |= BROKEN

    def set_unsent(self, bint unsent):
        """Says whether the stream takes no more: ``HAS_UNSENT``."""
        if unsent:
            self.status |= UNSENT
        else:
            self.status &= ~UNSENT

    def note_traffic(self):
        """Bytes went."""
        self.traffic_ns = clock_ns()

    @property
    def looks_like_tls(self):
        """Whether the client began as one does that speaks TLS: with a ClientHello."""
        return (self.received >= HEADER_BYTES and self.first_header[0] == 0x16
                and self.first_header[1] == 3 and self.first_header[5] == 1)

    def pause_seconds(self):
        """Until the client's rate permits the next request: with ``IS_PAUSED``."""
        if self.guard.arrival == NULL:
            return 0.0
        return rate_wait(self.guard.arrival, &self.guard.rate, clock_ns()) / 1e9

    def clear_refused(self):
        """Clears ``HAS_REFUSED``."""
        self.status &= ~REFUSED

    def close(self, reason):
        """From now on nothing is executed; what was not, and what comes, is dropped."""
        forbid_reentry(self.busy)
        if not self.status & CLOSING:
            begin_close(self, CloseReason(reason))
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
