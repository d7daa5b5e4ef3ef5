# ClientFrames: requests out, replies in.

cdef str NOTHING_TO_ASK = "a bulk of no requests would never be answered"


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
        max_body: longest reply body taken, in bytes; a longer claim is an error.

    Not for use by two threads at once.
    """

    cdef uint32_t max_body
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
    # While a bulk is built, and while a chunk is read: see forbid_reentry.
    cdef bint building
    cdef bint feeding

    def __cinit__(self, *, mailru, uint32_t max_body):
        self.dialect = DIALECT_UNKNOWN if mailru is None else 1 if mailru else 0
        self.max_body = max_body
        self.requests = PendingRequests()
        self.refusals = {}

    def __dealloc__(self):
        free(self.output.data)
        free(self.input.data)

    # Requests. Each returns the request's id (the first of a bulk's), for forget().

    def request(self, uint32_t func_id, bytes body not None, int outcome, waiter,
                double deadline):
        """Adds a request with this body."""
        forbid_reentry(self.building)
        self.requests.reserve_id()
        put_request(&self.output, func_id, self.requests.next_id, body)
        return self.requests.add(func_id, outcome, waiter, deadline)

    def read(self, index, int outcome, waiter, double deadline):
        """Adds a STORAGE_READ."""
        forbid_reentry(self.building)
        self.requests.reserve_id()
        put_read(&self.output, self.requests.next_id, index)
        return self.requests.add(READ, outcome, waiter, deadline)

    def replace(self, index, content, waiter, double deadline):
        """Adds a STORAGE_REPLACE; the content is str or bytes."""
        forbid_reentry(self.building)
        self.requests.reserve_id()
        put_replace(&self.output, self.requests.next_id, index, content)
        return self.requests.add(REPLACE, NOTHING, waiter, deadline)

    def read_many(self, list indexes not None, int outcome, waiter, double deadline):
        """Adds a STORAGE_READ for each; the outcome is the list of results."""
        forbid_reentry(self.building)
        cdef size_t start = size_of(&self.output)
        cdef uint32_t first
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(indexes)
        if not own:
            raise ValueError(NOTHING_TO_ASK)
        first = self.requests.reserve_ids(len(own))
        self.building = True
        try:
            for index in own:
                put_read(&self.output, self.requests.next_id, index)
                self.requests.next_id += 1
            return self.requests.add_bulk(READ, outcome, waiter, deadline, first, len(own))
        except BaseException:
            self._undo_bulk(start, first)
            raise
        finally:
            self.building = False

    def replace_many(self, list items not None, waiter, double deadline):
        """Adds a STORAGE_REPLACE for each ``(index, content)``."""
        forbid_reentry(self.building)
        cdef size_t start = size_of(&self.output)
        cdef uint32_t first
        # A copy, for the caller's list can change below: an item may be any object.
        cdef list own = list(items)
        if not own:
            raise ValueError(NOTHING_TO_ASK)
        first = self.requests.reserve_ids(len(own))
        self.building = True
        try:
            for index, content in own:
                put_replace(&self.output, self.requests.next_id, index, content)
                self.requests.next_id += 1
            return self.requests.add_bulk(REPLACE, NOTHING, waiter, deadline, first, len(own))
        except BaseException:
            self._undo_bulk(start, first)
            raise
        finally:
            self.building = False

    def take(self):
        """The requests built since the last time, to be sent."""
        forbid_reentry(self.building)
        self.requests.taken = self.requests.issued
        return take_all(&self.output)

    def forget(self, request_id):
        """Nobody waits for this request (or bulk) any more; its reply is dropped."""
        self.requests.forget(request_id)

    cdef int _undo_bulk(self, size_t start, uint32_t first) except -1:
        """Takes back a bulk that one of its items spoiled."""
        self.output.end = self.output.start + start
        self.requests.next_id = first
        return 0

    def expire(self, double now):
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
            ``(waiter, may_have_executed)`` of each; False where the request
            (no request of the bulk) ever left through ``take``.
        """
        return [
            ((<Pending>e).waiter, (<Pending>e).place < self.requests.taken)
            for e in self.requests.take_all()
        ]

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
        if held < HEADER_BYTES or self.dialect == DIALECT_UNKNOWN:
            return 0
        size = HEADER_BYTES + <size_t>load_le32(frame + 4)
        if self.dialect == DIALECT_VK:
            size += 4
        return size - held

    # Replies.

    def feed(self, bytes data not None):
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
        if self.broken is not None:
            return outcomes
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
        except BaseException as error:
            self.broken = CUT_SHORT
            if not isinstance(error, Exception):
                raise
        finally:
            self.feeding = False
        return outcomes

    # For tests: 2**32 requests take too long.
    @property
    def _next_id(self):
        return self.requests.next_id

    @_next_id.setter
    def _next_id(self, uint32_t request_id):
        self.requests.next_id = request_id
