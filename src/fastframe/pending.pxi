# Requests that wait for replies, and the ids that match the two.

# Stands for a result that has not come, in what fail_all() gives of a bulk.
UNANSWERED = object()

cdef uint32_t FIRST_ID = 0xFF010000


@cython.final
@cython.freelist(64)
cdef class Pending:
    """What waits for one reply, or for those of ``count`` requests in a row."""

    cdef object waiter
    cdef double deadline
    cdef int outcome
    cdef uint32_t func_id
    cdef uint32_t first
    cdef uint32_t count
    cdef uint32_t unanswered
    # Bytes of the body, of the longest one's in a bulk.
    cdef size_t size
    # Ids given out before its own: up to `taken`, and it has left.
    cdef uint64_t place
    # Of a bulk: a result for each request, and the error of the first that failed.
    cdef list results
    cdef object error


@cython.final
cdef class PendingRequests:
    """All of one connection: single ones by id, and bulks.

    Wherever a Python object is made or dropped, the garbage collector may run, and
    any ``__del__`` may come back to this very connection. So each method leaves all
    in order before it does either, and goes by what it finds after.
    """

    # Single ones by their id less `base`, the first one: small numbers are quicker keys.
    cdef dict single
    cdef list bulks
    cdef uint32_t base
    cdef uint32_t next_id
    # What is taken out, and its outcome not handed out yet: no waiter may be lost.
    cdef Pending popped
    # Ids given out so far, in the order of the numbers, those that were passed over
    # included; up to `taken` of them have left through take().
    cdef uint64_t issued
    cdef uint64_t taken
    # Requests that no call waits for any more: as many replies may still come.
    cdef uint64_t forgotten

    def __cinit__(self):
        self.single = {}
        self.bulks = []
        # The mark of a client that understands SHUTDOWN unasked, then 16 random bits: a
        # reply to a request of an earlier connection fits none of this one.
        self.base = FIRST_ID + <uint32_t>int.from_bytes(os.urandom(2), "little")
        self.next_id = self.base

    cdef inline int reserve_ids(self, size_t count) except -1:
        """Makes sure that ``count`` ids from ``next_id`` on are free."""
        # Shifts, for 0xFFFFFFFF is a Python object to Cython.
        if (<uint32_t>(self.next_id - 1) + <uint64_t>count | self.issued + count) >> 32:
            return self.come_round(count)
        return 0

    cdef int come_round(self, size_t count) except -1:
        # No request has the id 0, which an unasked SHUTDOWN has.
        if (<uint32_t>(self.next_id - 1) + <uint64_t>count) >> 32:
            self.issued += <uint32_t>(1 - self.next_id)
            self.next_id = 1
        return self.skip_used(count) if (self.issued + count) >> 32 else 0

    cdef int skip_used(self, size_t count) except -1:
        """Passes over ids that calls still wait for, until this many in a row are free."""
        cdef size_t unused = 0
        cdef uint32_t candidate
        while unused < count and (self.single or self.bulks):
            candidate = self.next_id + <uint32_t>unused
            unused += 1
            key = <uint32_t>(candidate - self.base)
            if candidate == 0 or key in self.single or self.bulk_of(candidate) is not None:
                self.next_id += <uint32_t>unused
                self.issued += unused
                unused = 0
        return 0

    cdef object add(self, Pending entry):
        """Gives a single request its id, and returns it; runs no other code."""
        self.reserve_ids(1)
        request_id = self.next_id
        self.single[<uint32_t>(self.next_id - self.base)] = entry
        entry.first = self.next_id
        entry.place = self.issued
        self.next_id += 1
        self.issued += 1
        return request_id

    cdef object add_bulk(self, Pending entry):
        """Gives a bulk its ids, and returns the first; runs no other code."""
        self.reserve_ids(entry.count)
        key = self.next_id
        self.bulks.append(entry)
        entry.first = self.next_id
        entry.place = self.issued
        self.next_id += entry.count
        self.issued += entry.count
        return key

    cdef inline Pending pop(self, uint32_t request_id):
        """What waits for the reply to this id, a single request's taken out; None: nothing does."""
        cdef Pending entry = None
        if self.single:
            entry = self.single.pop(<uint32_t>(request_id - self.base), None)
        self.popped = entry
        return self.bulk_of(request_id) if entry is None else entry

    cdef Pending bulk_of(self, uint32_t request_id):
        cdef Pending bulk
        for bulk in self.bulks:
            if request_id - bulk.first < bulk.count:
                return bulk
        return None

    cdef bint pop_bulk(self, Pending entry) except -1:
        """Takes out a bulk; False: it is not there any more."""
        cdef Py_ssize_t position
        for position in range(len(self.bulks)):
            if self.bulks[position] is entry:
                del self.bulks[position]
                return True
        return False

    cdef bint was_sent(self, uint32_t request_id) noexcept:
        """Whether a request of this id has left."""
        cdef uint32_t age = self.next_id - 1 - request_id
        return age < self.issued and self.issued - 1 - age < self.taken

    cdef int forget(self, uint32_t request_id) except -1:
        cdef Pending entry = self.single.pop(<uint32_t>(request_id - self.base), None)
        if entry is not None:
            self.forgotten += 1
            return 0
        entry = self.bulk_of(request_id)
        if entry is not None and entry.first == request_id and self.pop_bulk(entry):
            self.forgotten += entry.unanswered
        return 0

    cdef list all(self):
        return [*self.single.values(), *self.bulks]

    cdef list take_all(self, bint with_popped):
        # Nothing below makes an object after the first line, or drops the last of one.
        entries = self.all()
        if with_popped and self.popped is not None:
            entries.append(self.popped)
            self.popped = None
        self.single.clear()
        self.bulks.clear()
        return entries


cdef inline Pending new_pending(uint32_t func_id, int outcome, waiter, double deadline):
    """A single request."""
    check_outcome(outcome)
    cdef Pending entry = Pending.__new__(Pending)
    entry.waiter = waiter
    entry.deadline = deadline
    entry.outcome = outcome
    entry.func_id = func_id
    entry.count = entry.unanswered = 1
    return entry


cdef Pending new_bulk(uint32_t func_id, int outcome, waiter, double deadline, Py_ssize_t count):
    """Requests of one kind in a row."""
    if count == 0:
        raise ValueError("a bulk of no requests would never be answered")
    if count > 0x7FFFFFFF:
        raise ValueError(f"{count} requests are more than there are ids for")
    cdef list results = [UNANSWERED] * count
    cdef Pending entry = new_pending(func_id, outcome, waiter, deadline)
    entry.count = entry.unanswered = <uint32_t>count
    entry.results = results
    return entry
