# ClientFrames: requests out, replies in.

# Made beforehand, for where it is needed there may be no memory.
cdef object CUT_SHORT = IprotoError(
    "the replies cannot be read on: an error within the client, out of memory most likely"
)


@cython.final
cdef class ClientFrames:
    """The frames of one connection, on the client's side.

    A request is given a ``waiter``, any object, which comes back with its
    outcome: from ``feed`` when the reply came, from ``expire`` when its
    deadline passed, from ``fail_all`` when the connection ended.

    Args:
        mailru: the server's dialect, or None to let the first reply, which must
            be one of STORAGE_READ, tell.
        max_body: longest reply body taken, in bytes; a longer one is skipped, and
            fails its own request.
        max_request: longest body built into a request, in bytes.

    Not for use by two threads at once. Any method but ``feed`` may be called while
    another is at work, by a ``__del__`` that the garbage collector runs.
    """

    cdef uint32_t max_body
    cdef uint32_t max_request
    cdef int dialect
    cdef Buffer output
    cdef Buffer input
    cdef PendingRequests requests
    # Requests that were replied to; replies to those that had one already, or that
    # nobody waits for any more; and how often each return_code but 0 came, the
    # first MOST_REFUSALS of them apart, the others together under -1: a peer can
    # invent four billion.
    cdef readonly uint64_t answered
    cdef readonly uint64_t unexpected_replies
    cdef readonly dict refusals
    # Set when the stream cannot be trusted any more: what to tell the callers.
    cdef readonly object broken
    # Whether the peer announced its end: what is unanswered was not executed.
    cdef readonly bint shut_down
    # Whether the peer is about to close, by what it answered: no further call fits.
    cdef readonly bint retired
    # Bytes still to come of a reply that is skipped.
    cdef uint64_t to_skip
    # While a chunk is read: see forbid_reentry.
    cdef bint feeding

    def __cinit__(self, *, mailru, uint32_t max_body, uint32_t max_request=0xFFFFFFFF):
        self.dialect = DIALECT_UNKNOWN if mailru is None else 1 if mailru else 0
        self.max_body = max_body
        self.max_request = max_request
        self.requests = PendingRequests()
        self.refusals = {}

    def __dealloc__(self):
        free(self.output.data)
        free(self.input.data)

    # Requests. Each returns the request's id (the first of a bulk's), for forget().

    def request(self, uint32_t func_id, bytes body not None, int outcome, waiter,
                double deadline, /):
        """Adds a request with this body."""
        cdef size_t size = PyBytes_GET_SIZE(body)
        check_size(size, self.max_request)
        cdef Pending entry = new_pending(func_id, outcome, waiter, deadline)
        entry.size = size
        reserve(&self.output, HEADER_BYTES + size)
        key = self.requests.add(entry)
        put_request(&self.output, func_id, entry.first, PyBytes_AS_STRING(body), <uint32_t>size)
        return key

    def read(self, index, int outcome, waiter, double deadline, /):
        """Adds a STORAGE_READ."""
        cdef int64_t slot = slot_index(index)
        cdef Pending entry = new_pending(READ, outcome, waiter, deadline)
        reserve(&self.output, READ_FRAME)
        key = self.requests.add(entry)
        put_read(&self.output, entry.first, slot)
        return key

    def replace(self, index, content, waiter, double deadline, /):
        """Adds a STORAGE_REPLACE; the content is str or bytes."""
        cdef Content written
        set_content(&written, index, content)
        if written.size + REPLACE_FRAME > self.max_request:
            check_size(replace_size(&written), self.max_request)
        cdef Pending entry = new_pending(REPLACE, NOTHING, waiter, deadline)
        entry.size = written.size
        reserve(&self.output, REPLACE_FRAME + written.size)
        key = self.requests.add(entry)
        put_replace(&self.output, entry.first, &written)
        return key

    def read_many(self, list indexes not None, int outcome, waiter, double deadline, /):
        """Adds a STORAGE_READ for each; the outcome is the list of results."""
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(indexes)
        cdef Py_ssize_t count = len(own)
        cdef Pending entry = new_bulk(READ, outcome, waiter, deadline, count)
        cdef Py_ssize_t position = 0
        cdef int64_t* slots = <int64_t*>malloc(count * sizeof(int64_t))
        if slots == NULL:
            raise MemoryError
        try:
            for index in own:
                slots[position] = slot_index(index)
                position += 1
            reserve(&self.output, count * READ_FRAME)
            key = self.requests.add_bulk(entry)
            for position in range(count):
                put_read(&self.output, entry.first + <uint32_t>position, slots[position])
            return key
        finally:
            free(slots)

    def replace_many(self, list items not None, waiter, double deadline, /):
        """Adds a STORAGE_REPLACE for each tuple ``(index, content)``."""
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(items)
        cdef Py_ssize_t count = len(own)
        cdef Pending entry = new_bulk(REPLACE, NOTHING, waiter, deadline, count)
        cdef Py_ssize_t position = 0
        cdef size_t size = count * REPLACE_FRAME
        cdef Content* contents = <Content*>malloc(count * sizeof(Content))
        if contents == NULL:
            raise MemoryError
        try:
            for item in own:
                self._set_item(&contents[position], item, position)
                size += contents[position].size
                entry.size = max(entry.size, contents[position].size)
                position += 1
            reserve(&self.output, size)
            key = self.requests.add_bulk(entry)
            for position in range(count):
                put_replace(&self.output, entry.first + <uint32_t>position, &contents[position])
            return key
        finally:
            free(contents)

    cdef int _set_item(self, Content* to, item, Py_ssize_t position) except -1:
        # A tuple keeps what it holds, whatever code runs.
        if not isinstance(item, tuple) or len(<tuple>item) != 2:
            raise TypeError(f"item {position} is not a tuple (index, content): {item!r}")
        set_content(to, (<tuple>item)[0], (<tuple>item)[1])
        if to.size + REPLACE_FRAME > self.max_request:
            try:
                check_size(replace_size(to), self.max_request)
            except IllegalParamsError as error:
                error.item = position
                raise
        return 0

    def take(self):
        """The requests built since the last time, to be sent."""
        data = take_all(&self.output)
        self.requests.taken = self.requests.issued
        return data

    def forget(self, uint32_t request_id, /):
        """Nobody waits for this request (or bulk) any more; its reply is dropped."""
        self.requests.forget(request_id)

    def expire(self, double now, /):
        """Takes out what is past its deadline.

        Returns:
            The waiters, and the earliest deadline left (infinity if none is).
        """
        cdef Pending entry
        late = [e for e in self.requests.all() if (<Pending>e).deadline <= now]
        for entry in late:
            self.requests.forget(entry.first)
        cdef double earliest = float("inf")
        for entry in self.requests.all():
            earliest = min(earliest, entry.deadline)
        return [(<Pending>e).waiter for e in late], earliest

    def fail_all(self):
        """Takes out everything.

        Returns:
            ``(waiter, may_have_executed, partial)`` of each. ``may_have_executed`` is
            False where the request (no request of the bulk) ever left through
            ``take``, and for all if the peer has announced its end. ``partial`` is
            None, or of a bulk its results, with UNANSWERED where there is none, and
            the error of the first that failed, or None.
        """
        cdef Pending entry
        cdef list failed = []
        for entry in self.requests.take_all(not self.feeding):
            may_have_executed = not self.shut_down and entry.place < self.requests.taken
            partial = None if entry.results is None else (entry.results, entry.error)
            failed.append((entry.waiter, may_have_executed, partial))
        return failed

    @property
    def waiting(self):
        """How many requests or bulks wait for replies."""
        return len(self.requests.single) + len(self.requests.bulks)

    @property
    def mailru(self):
        """The server's dialect; None while it is not known."""
        return None if self.dialect == DIALECT_UNKNOWN else self.dialect == DIALECT_MAILRU

    @property
    def bytes_missing(self):
        """Bytes still to come of a reply that was begun; 0: there is none, or no telling."""
        cdef const uint8_t* frame = bytes_of(&self.input)
        cdef size_t held = size_of(&self.input)
        cdef size_t size
        if self.to_skip:
            return self.to_skip
        if held < HEADER_BYTES or self.dialect == DIALECT_UNKNOWN:
            return 0
        size = HEADER_BYTES + <size_t>load_le32(frame + 4)
        if self.dialect == DIALECT_VK:
            size += 4
        return size - held

    # Replies.

    def feed(self, bytes data not None, /):
        """Matches the replies of a received chunk.

        Returns:
            A list of ``(waiter, error, result)``, with None for what there is
            not. If ``broken`` is set afterwards, by the peer or for want of memory,
            the stream is lost from there on and the connection must be closed.
        """
        forbid_reentry(self.feeding)
        cdef size_t size = PyBytes_GET_SIZE(data)
        cdef size_t used
        cdef const uint8_t* chunk = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef list outcomes = []
        if self.broken is not None or self.shut_down:
            return outcomes
        if self.to_skip:
            used = min(size, self.to_skip)
            self.to_skip -= used
            chunk += used
            size -= used
        self.feeding = True
        try:
            if size_of(&self.input):
                append(&self.input, chunk, size)
                used = scan_replies(self, bytes_of(&self.input), size_of(&self.input), outcomes)
                consume(&self.input, used)
            else:
                used = scan_replies(self, chunk, size, outcomes)
                if used < size:
                    append(&self.input, chunk + used, size - used)
        except ProtocolError as error:
            self.broken = error
            consume(&self.input, size_of(&self.input))
        except BaseException as error:
            self.broken = CUT_SHORT
            if not isinstance(error, Exception):
                raise
        finally:
            self.feeding = False
        return outcomes

    def _set_ids(self, uint32_t next_id, uint64_t issued=0):
        """For tests: the next request's id, and how many count as sent before."""
        self.requests.next_id = next_id
        self.requests.issued = self.requests.taken = issued
