# Requests that wait for replies, and the ids that match the two.

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
    cdef uint32_t unanswered
    # Ids given out before its own: up to `taken`, and it has left.
    cdef uint64_t place
    # Of a bulk: a result for each request, and the error of the first that failed.
    cdef list results
    cdef object error


@cython.final
cdef class PendingRequests:
    """All of one connection: single ones by id, and bulks."""

    cdef dict single
    cdef list bulks
    cdef uint32_t next_id
    # What is taken out, and its outcome not handed out yet: no waiter may be lost.
    cdef Pending popped
    # Whether ids have come round: only then the next one may be in use.
    cdef bint wrapped
    # Ids given out so far; up to `taken` of them have left through take().
    cdef uint64_t issued
    cdef uint64_t taken

    def __cinit__(self):
        self.single = {}
        self.bulks = []
        self.next_id = 1

    cdef int reserve_id(self) except -1:
        """Makes sure that ``next_id`` is free."""
        return self.skip_used(1) if self.wrapped else 0

    cdef uint32_t reserve_ids(self, size_t count) except? 0:
        """The first of so many ids in a row for a bulk."""
        if self.next_id + <uint64_t>count > 0xFFFFFFFF:
            self.wrapped = True
        if self.wrapped:
            self.skip_used(count)
        return self.next_id

    cdef int skip_used(self, size_t count) except -1:
        """Passes over ids that calls still wait for, until so many in a row are free."""
        cdef size_t unused = 0
        cdef uint32_t candidate
        while unused < count and (self.single or self.bulks):
            candidate = self.next_id + <uint32_t>unused
            unused += 1
            if candidate in self.single or self.bulk_of(candidate) is not None:
                self.next_id += <uint32_t>unused
                self.issued += unused
                unused = 0
        return 0

    cdef object add(self, uint32_t func_id, int outcome, waiter, double deadline):
        """One request of the id ``next_id``, which is returned."""
        cdef Pending entry = new_pending(func_id, outcome, waiter, deadline)
        cdef uint32_t request_id = self.next_id
        entry.first = request_id
        entry.count = 1
        entry.place = self.issued
        self.next_id += 1
        if self.next_id == 0:
            self.wrapped = True
        self.issued += 1
        key = request_id
        self.single[key] = entry
        return key

    cdef object add_bulk(self, uint32_t func_id, int outcome, waiter, double deadline,
                         uint32_t first, uint32_t count):
        cdef Pending entry = new_pending(func_id, outcome, waiter, deadline)
        entry.first = first
        entry.count = entry.unanswered = count
        entry.results = [UNANSWERED] * count
        entry.place = self.issued
        self.issued += count
        self.bulks.append(entry)
        return first

    cdef inline Pending pop(self, uint32_t request_id):
        """What waits for the reply to this id, a single request's taken out; None: nothing does."""
        cdef Pending entry = self.single.pop(request_id, None) if self.single else None
        self.popped = entry
        return self.bulk_of(request_id) if entry is None else entry

    cdef Pending bulk_of(self, uint32_t request_id):
        cdef Pending bulk
        for bulk in self.bulks:
            if request_id - bulk.first < bulk.count:
                return bulk
        return None

    cdef int pop_bulk(self, Pending entry) except -1:
        cdef Py_ssize_t position
        for position in range(len(self.bulks)):
            if self.bulks[position] is entry:
                del self.bulks[position]
                self.popped = entry
                break
        return 0

    cdef inline bint was_issued(self, uint32_t request_id) noexcept:
        cdef uint32_t age = self.next_id - 1 - request_id
        return age < self.issued

    cdef int forget(self, request_id) except -1:
        if self.single.pop(request_id, None) is None:
            self.bulks = [bulk for bulk in self.bulks if (<Pending>bulk).first != request_id]
        return 0

    cdef list all(self):
        return [*self.single.values(), *self.bulks]

    cdef list take_all(self):
        entries = self.all()
        if self.popped is not None:
            entries.append(self.popped)
            self.popped = None
        self.single.clear()
        self.bulks.clear()
        return entries


cdef inline Pending new_pending(uint32_t func_id, int outcome, waiter, double deadline):
    cdef Pending entry = Pending.__new__(Pending)
    entry.waiter = waiter
    entry.deadline = deadline
    entry.outcome = outcome
    entry.func_id = func_id
    return entry
