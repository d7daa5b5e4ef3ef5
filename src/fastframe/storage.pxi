cdef extern from "<sys/mman.h>" nogil:
    enum:
        MS_SYNC
    int msync(void* start, size_t size, int flags) noexcept


@cython.final
cdef class Storage:
    """1000 slots and a state, over a buffer, behind a read-write lock.

    Args:
        buffer: writable memory of at least ``Storage.size_for(workers)`` bytes,
            aligned to 64 bytes (an ``mmap`` is): zeros, which are laid out
            anew, or a store of this version, which is attached. The memory is
            kept alive. None: anonymous memory of its own.
        workers: worker areas in the store, 1..1024; must match on attaching.
        worker: index of the area that this object counts and locks in.
        checked: whether a store that is laid out anew keeps a hash of each
            slot, by which ``check`` notices damage later. A write takes some
            20 ns more for it.

    Raises:
        ValueError: the buffer is too small, misaligned, or holds something else.
    """

    cdef store_t* store
    cdef worker_t* areas
    cdef worker_t* me
    cdef slot_t* slots
    cdef uint32_t mine
    cdef Py_buffer view
    cdef bint has_view
    # Where replies are built (OUTPUT_LIMIT plus one reply), and behind it where
    # chunks are received: shared by all connections, and so warm in the cache.
    # Taken while in use: a thread that gives up the GIL to wait for the lock
    # must not see another work in it.
    cdef uint8_t* scratch
    cdef bint scratch_taken
    # Counter row → name, of the users' functions that were given one.
    cdef readonly dict row_names

    def __cinit__(self, buffer=None, *, int workers=1, int worker=0, bint checked=False):
        if not 1 <= workers <= 1024:
            raise ValueError(f"workers is {workers}; it must be 1..1024")
        if not 0 <= worker < workers:
            raise ValueError(f"worker is {worker}; it must be 0..{workers - 1}")
        cdef size_t needed = store_size(workers)
        if buffer is None:
            # Private: a forked child must not share the slots behind its parent's back.
            buffer = mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.has_view = True
        if <size_t>self.view.len < needed:
            raise ValueError(
                f"a store for {workers} workers takes {needed} bytes; "
                f"the buffer has {self.view.len}"
            )
        if <size_t>self.view.buf % 64:
            raise ValueError("the buffer must be aligned to 64 bytes, as an mmap is")
        self.store = <store_t*>self.view.buf
        self.slots = slots_of(self.store)
        self.areas = <worker_t*>(self.slots + SLOTS)
        self.me = self.areas + worker
        self.mine = 1 + worker
        self.row_names = {}
        if self.store.magic == 0:
            self.store.version = STORE_VERSION
            self.store.slots = SLOTS
            self.store.slot_bytes = SLOT_BYTES
            self.store.workers = workers
            self.store.size = needed
            self.store.checked = checked
            self.store.state = READ_WRITE
            if checked:
                for i in range(SLOTS):
                    self.slots[i].check[0] = slot_hash(i, self.slots[i].bytes[0], 0)
            self.store.magic = STORE_MAGIC
        check_header(self.store, self.view.len)
        check_heads(self.store)
        if self.store.workers != <uint32_t>workers:
            raise ValueError(
                f"the store was made for {self.store.workers} workers; expected {workers}"
            )
        self.scratch = <uint8_t*>malloc(OUTPUT_LIMIT + REPLY_LIMIT + RECEIVE_LIMIT)
        if self.scratch == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.scratch)
        if self.has_view:
            PyBuffer_Release(&self.view)

    @staticmethod
    def size_for(int workers=1):
        """Bytes that a store for so many workers takes; for 0, those before their areas."""
        return store_size(workers)

    @staticmethod
    def check(buffer):
        """Checks a store that nobody uses, and that was made ``checked``.

        Args:
            buffer: what ``Storage`` takes; the workers' areas may be missing.

        Returns:
            How many worker areas it was made with, and its state.

        Raises:
            ValueError: it is no store of this version, or damaged; the text says
                where. The copies of slots that are not current do not count.
        """
        cdef Py_buffer view
        cdef store_t* store
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            store = checked_store(&view)
            check_heads(store)
            check_slots(store)
            return store.workers, STATE_OF[store.state]
        finally:
            PyBuffer_Release(&view)

    @staticmethod
    def repair(buffer):
        """Makes every slot whole in a store that nobody uses, and that was made ``checked``.

        A slot whose current copy is damaged gets its other copy, if that is whole, and
        is empty otherwise. All else stays as it is.

        Args:
            buffer: as for ``check``; it must be writable.

        Returns:
            For each slot that was damaged its index, and how many bytes the copy has
            that it got; None if it is empty now.

        Raises:
            ValueError: it is no store of this version, or damaged elsewhere.
        """
        cdef Py_buffer view
        cdef store_t* store
        cdef slot_t* slots
        cdef uint32_t i
        cdef int whole
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            store = checked_store(&view)
            slots = slots_of(store)
            damaged = []
            for i in range(SLOTS):
                if has_head(&slots[i]) and is_whole(&slots[i], i, slots[i].current & 1):
                    continue
                whole = whole_copy(&slots[i], i)
                if whole < 0:
                    memset(&slots[i], 0, sizeof(slot_t))
                    slots[i].check[0] = slot_hash(i, slots[i].bytes[0], 0)
                    damaged.append((i, None))
                else:
                    slots[i].current = <uint32_t>-whole
                    damaged.append((i, slots[i].length[whole]))
            return damaged
        finally:
            PyBuffer_Release(&view)

    def flush(self):
        """Waits until the memory is in the file that it is mapped from, if it is.

        Raises:
            OSError: the system cannot; EINVAL if the memory does not begin at a page.
        """
        cdef int failed
        with nogil:
            failed = msync(self.store, self.store.size, MS_SYNC)
        if failed:
            raise OSError(errno, os.strerror(errno))

    def read(self, index):
        """The bytes of a slot.

        Args:
            index: 0..999.

        Raises:
            OutOfRangeError: no such slot.
            LockedError: the storage is in MAINTENANCE.
            OverloadedError: the lock was not to be had within a second.
        """
        cdef int i = self._index(index)
        cdef uint8_t[SLOT_BYTES] copy
        cdef uint32_t length = 0
        if not self.lock_read():
            raise OverloadedError(LOCK_TEXT.decode())
        cdef uint32_t state = load_relaxed(&self.store.state)
        if state != MAINTENANCE:
            length = slot_length(&self.slots[i])
            memcpy(copy, slot_bytes(&self.slots[i]), length)
        self.unlock_read()
        if state == MAINTENANCE:
            raise LockedError(MAINTENANCE_TEXT.decode())
        return PyBytes_FromStringAndSize(<char*>copy, length)

    def replace(self, index, bytes content not None):
        """Writes a slot.

        Args:
            index: 0..999.
            content: at most 256 bytes.

        Raises:
            OutOfRangeError: no such slot.
            ValueError: the content is too long.
            ReadOnlyError, LockedError: the state forbids it.
            OverloadedError: the lock was not to be had within a second.
        """
        cdef int i = self._index(index)
        if len(content) > SLOT_BYTES:
            raise ValueError(f"string of {len(content)} bytes is over the limit of {SLOT_BYTES}")
        if not self.lock_write():
            raise OverloadedError(LOCK_TEXT.decode())
        cdef uint32_t state = load_relaxed(&self.store.state)
        if state == READ_WRITE:
            slot_write(self.store, self.slots, i, <const uint8_t*>PyBytes_AS_STRING(content),
                       <uint32_t>PyBytes_GET_SIZE(content))
        self.unlock_write()
        if state == READ_ONLY:
            raise ReadOnlyError(READ_ONLY_TEXT.decode())
        if state == MAINTENANCE:
            raise LockedError(MAINTENANCE_TEXT.decode())

    @property
    def state(self):
        """State of the storage. Once a switch has returned, no operation that it
        forbids succeeds any more, on any connection."""
        return STATE_OF[load_seq_cst(&self.store.state)]

    def switch(self, state):
        """Switches the state; works in every state.

        Raises:
            ValueError: not a state.
            OverloadedError: the lock was not to be had within a second.
        """
        cdef uint32_t wanted = WORD_OF[State(state)]
        if not self.lock_write():
            raise OverloadedError(LOCK_TEXT.decode())
        store_release(&self.store.state, wanted)
        self.unlock_write()

    def recover(self, worker):
        """Frees what a worker that is dead left locked, and closes its connections' books.

        Call it only when the system has said that the worker is dead: it
        writes the worker's own area.

        Args:
            worker: index of its area.

        Returns:
            Whether it died holding the lock.
        """
        cdef uint32_t index = self._area(worker)
        area = &self.areas[index]
        cdef bint held = load_relaxed(&area.readers) != 0
        store_release(&area.readers, 0)
        held = release_if_owner(&self.store.writer, 1 + index) or held
        cdef uint64_t closed = 0
        cdef int reason
        for reason in range(REASONS):
            closed += area.closed[reason]
        cdef int killed = CloseReason.KILLED
        area.closed[killed] += area.opened - closed
        area.tasks = 0
        area.alive_ns = 0
        return held

    def beat(self, double lag, uint64_t tasks):
        """The event loop of this worker ran.

        Args:
            lag: seconds that its timer was late.
            tasks: asyncio tasks that run now.
        """
        cdef uint64_t late = <uint64_t>(lag * 1e9) if lag > 0 else 0
        self.me.lag_buckets[bucket_of(late)] += 1
        self.me.lag_nanoseconds += late
        self.me.tasks = tasks
        self.me.alive_ns = clock_ns()

    def silent_seconds(self, worker):
        """Since a worker's event loop last ran; 0.0 if it never did."""
        cdef uint64_t alive = load_counter(&self.areas[self._area(worker)].alive_ns)
        return (clock_ns() - alive) / 1e9 if alive else 0.0

    def counters(self, worker=None):
        """The counters of a worker, or the sums of all, as a dict of numbers and lists.

        ``requests[row][column]`` counts by ``ROWS`` and ``CODE_COLUMNS``,
        ``buckets[row]`` and ``lag_buckets`` by ``BUCKET_BOUNDS`` (not cumulative).

        Args:
            worker: index of the worker's area; None for the sums.
        """
        cdef uint32_t first = 0
        cdef uint32_t last = self.store.workers
        if worker is not None:
            first = self._area(worker)
            last = first + 1
        return self._counters(first, last)

    cdef dict _counters(self, uint32_t first, uint32_t last):
        area = self.areas
        return {
            "opened": self._sum(first, last, &area.opened, 1)[0],
            "bytes_in": self._sum(first, last, &area.bytes_in, 1)[0],
            "bytes_out": self._sum(first, last, &area.bytes_out, 1)[0],
            "closed": self._sum(first, last, &area.closed[0], REASONS),
            "requests": [
                self._sum(first, last, &area.requests[row][0], CODES) for row in range(FUNCTIONS)
            ],
            "buckets": [
                self._sum(first, last, &area.buckets[row][0], BUCKETS) for row in range(FUNCTIONS)
            ],
            "nanoseconds": self._sum(first, last, &area.nanoseconds[0], FUNCTIONS),
            "lag_buckets": self._sum(first, last, &area.lag_buckets[0], BUCKETS),
            "lag_nanoseconds": self._sum(first, last, &area.lag_nanoseconds, 1)[0],
            "tasks": self._sum(first, last, &area.tasks, 1)[0],
        }

    cdef list _sum(self, uint32_t first, uint32_t last, uint64_t* words, int count):
        """Sums each of so many words, which stand here in the first area, over the workers."""
        cdef list sums = []
        cdef uint64_t total
        cdef uint32_t worker
        cdef int i
        for i in range(count):
            total = 0
            for worker in range(first, last):
                total += load_counter(<uint64_t*>(<char*>(words + i) + worker * sizeof(worker_t)))
            sums.append(total)
        return sums

    def row_for(self, str name not None):
        """The counter row of users' functions of this name, the same each time it is asked.

        When the rows are used up, functions share the last one, named "other".
        """
        for row, taken in self.row_names.items():
            if taken == name:
                return row
        row = min(FIRST_USER + len(self.row_names), FUNCTIONS - 1)
        self.row_names[row] = "other" if row == FUNCTIONS - 1 else name
        return row

    def count_opened(self):
        """A connection was accepted."""
        self.me.opened += 1

    def count_closed(self, reason):
        """A connection ended, for this :class:`iproto.wire.CloseReason`."""
        cdef int column = CloseReason(reason)
        self.me.closed[column] += 1

    cdef int _index(self, index) except -1:
        index = PyNumber_Index(index)
        cdef int64_t value = as_int64(index)
        if not 0 <= value < SLOTS:
            raise OutOfRangeError(f"index {index} is outside 0..{SLOTS - 1}")
        return <int>value

    cdef int _area(self, worker) except -1:
        """Index of a worker's area."""
        cdef int64_t value = as_int64(worker)
        if not 0 <= value < self.store.workers:
            raise ValueError(f"worker is {worker}; it must be 0..{self.store.workers - 1}")
        return <int>value

    cdef bint lock_read(self) noexcept:
        cdef int _spin
        cdef uint64_t deadline = 0
        while True:
            for _spin in range(SPINS_WITH_GIL):
                if try_read(self.store, self.me):
                    return True
                spin_hint()
            if not self._wait(&deadline):
                return False

    cdef void unlock_read(self) noexcept:
        release_read(self.me)

    cdef bint lock_write(self) noexcept:
        cdef int _spin
        cdef uint64_t deadline = 0
        while True:
            for _spin in range(SPINS_WITH_GIL):
                if try_write(self.store, self.areas, self.mine):
                    return True
                spin_hint()
            if not self._wait(&deadline):
                return False

    cdef bint _wait(self, uint64_t* deadline) noexcept:
        """Gives up the GIL for a while; False when the lock was waited for long enough."""
        cdef uint64_t now = clock_ns()
        if deadline[0] == 0:
            deadline[0] = now + LOCK_WAIT_NS
        elif now > deadline[0]:
            return False
        with nogil:
            wait_for_writer(self.store, deadline[0])
        return True

    cdef void unlock_write(self) noexcept:
        release_write(self.store)

    cdef uint8_t* acquire_scratch(self) except NULL:
        cdef uint8_t* own
        if not self.scratch_taken:
            self.scratch_taken = True
            return self.scratch
        own = <uint8_t*>malloc(OUTPUT_LIMIT + REPLY_LIMIT + RECEIVE_LIMIT)
        if own == NULL:
            raise MemoryError
        return own

    cdef void release_scratch(self, uint8_t* scratch) noexcept:
        if scratch == self.scratch:
            self.scratch_taken = False
        else:
            free(scratch)
