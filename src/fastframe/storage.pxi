cdef extern from "<unistd.h>" nogil:
    int getpid() noexcept

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MS_SYNC
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MAP_FIXED
    void* MAP_FAILED
    int msync(void* start, size_t size, int flags) noexcept
    void* map_memory "mmap"(void* start, size_t size, int protection, int flags, int fd,
                            long offset) noexcept


@cython.final
cdef class Storage:
    """1000 slots and a state, over a buffer, behind a read-write lock.

    Args:
        buffer: writable memory of at least ``Storage.size_for(workers)`` bytes,
            aligned to 128 bytes (an ``mmap`` is): zeros, which are laid out
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

    cdef handle_t handle
    cdef Scratch scratch
    cdef Py_buffer view
    cdef bint has_view
    # Counter row → name, of the user functions that were given one.
    cdef readonly dict row_names

    def __cinit__(self, buffer=None, *, int workers=1, int worker=0, bint checked=False):
        if not 1 <= workers <= WORKERS_LIMIT:
            raise ValueError(f"workers is {workers}; it must be 1..{WORKERS_LIMIT}")
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
        if <size_t>self.view.buf % STORE_ALIGNMENT:
            raise ValueError(
                f"the buffer must be aligned to {STORE_ALIGNMENT} bytes, as an mmap is"
            )
        cdef store_t* store = <store_t*>self.view.buf
        if store.magic == 0:
            lay_out(store, workers, checked)
        # What counts from here on is this copy of the header and the handle: others
        # may write into the memory.
        cdef store_t found
        copy_bytes(&found, store, sizeof(store_t))
        check_header(&found, self.view.len)
        if found.workers != <uint32_t>workers:
            raise ValueError(
                f"the store was made for {found.workers} workers; expected {workers}"
            )
        self.handle = attach(store, workers, worker, found.checked)
        check_heads(&self.handle)
        self.handle.my_reader.pid = getpid()
        self.row_names = {}
        self.scratch.shared = new_scratch()

    def __dealloc__(self):
        free(self.scratch.shared)
        if self.has_view:
            PyBuffer_Release(&self.view)

    @staticmethod
    def size_for(workers=1):
        """Bytes that a store for this many workers takes; for 0, those before their areas.

        Raises:
            ValueError: the number of workers is outside 0..1024.
        """
        cdef int64_t count = as_int64(workers)
        if not 0 <= count <= WORKERS_LIMIT:
            raise ValueError(f"workers is {workers}; a store is for 0..{WORKERS_LIMIT}")
        return store_size(<uint32_t>count)

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
        cdef handle_t h
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            attach_for_check(&view, &h)
            check_heads(&h)
            check_slots(&h)
            return h.workers, state_of(&h)
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
        cdef handle_t h
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            attach_for_check(&view, &h)
            return repair_slots(&h)
        finally:
            PyBuffer_Release(&view)

    def flush(self):
        """Waits until the memory is in the file that it is mapped from, if it is.

        Raises:
            OSError: the system cannot; EINVAL if the memory does not begin at a page.
        """
        cdef int failed
        with nogil:
            failed = msync(self.handle.store, self.handle.size, MS_SYNC)
        if failed:
            raise OSError(errno, os.strerror(errno))

    def read(self, index):
        """The bytes of a slot.

        Args:
            index: 0..999.

        Raises:
            OutOfRangeError: no such slot.
            LockedError: the storage is in MAINTENANCE.
            InternalError: the slot or the state is damaged.
            OverloadedError: the lock could not be taken.
        """
        cdef Op op
        op.row = ROW_READ
        op.index = as_int64(index)
        return execute_alone(&self.handle, &op)

    def replace(self, index, bytes content not None):
        """Writes a slot.

        Args:
            index: 0..999.
            content: at most 256 bytes.

        Raises:
            OutOfRangeError: no such slot.
            IllegalParamsError: the content is too long.
            ReadOnlyError, LockedError: the state forbids it.
            InternalError: the state is damaged.
            OverloadedError: the lock could not be taken.
        """
        cdef Op op
        op.row = ROW_REPLACE
        op.index = as_int64(index)
        op.text = <const uint8_t*>PyBytes_AS_STRING(content)
        op.length = PyBytes_GET_SIZE(content)
        execute_alone(&self.handle, &op)

    @property
    def state(self):
        """State of the storage. Once a switch has returned, no operation that it
        forbids succeeds any more, on any connection.

        Raises:
            InternalError: the storage is damaged, and its state none of the three.
        """
        return state_of(&self.handle)

    def switch(self, state):
        """Switches the state; works in every state.

        Raises:
            ValueError: not a state.
            OverloadedError: the lock could not be taken.
        """
        cdef Op op
        op.row = ROW_OF_SWITCH[State(state)]
        execute_alone(&self.handle, &op)

    def recover(self, worker):
        """Frees what a worker that is dead left locked, and closes its connections' books.

        Call it only when ``wait`` has reported the worker's death: it
        writes the worker's own area.

        Args:
            worker: index of its area.

        Returns:
            Whether it died holding the lock.
        """
        return recover_area(&self.handle, self._area(worker))

    def detach(self):
        """In a child process that fork made: the memory becomes a private copy, in its place.

        The child can read and write it as before, and changes nothing for others.

        Raises:
            OSError: the system has no memory for it.
        """
        if not isinstance(<object>self.view.obj, mmap.mmap):
            return  # fork has made it private
        cdef size_t size = self.view.len
        cdef void* copy = malloc(size)
        if copy == NULL:
            raise MemoryError
        memcpy(copy, self.view.buf, size)
        cdef void* mapped = map_memory(self.view.buf, size, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
        if mapped != MAP_FAILED:
            memcpy(self.view.buf, copy, size)
        free(copy)
        if mapped == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))

    def heartbeat(self, double lag, uint64_t tasks):
        """The event loop of this worker ran.

        Args:
            lag: seconds that its timer was late.
            tasks: asyncio tasks that run now.
        """
        # Bounded: more does not fit into the integer.
        cdef uint64_t late = <uint64_t>(min(lag, 1e9) * 1e9) if lag > 0 else 0
        self.handle.me.lag_buckets[lag_bucket(late)] += 1
        self.handle.me.lag_nanoseconds += late
        self.handle.me.tasks = tasks
        self.handle.me.alive_ns = clock_ns()

    def silent_seconds(self, worker):
        """Since a worker's event loop last ran; 0.0 if it never did."""
        cdef uint64_t alive = load_counter(&self.handle.areas[self._area(worker)].alive_ns)
        return (clock_ns() - alive) / 1e9 if alive else 0.0

    def connections(self, worker):
        """How many connections a worker has open."""
        return open_connections(&self.handle.areas[self._area(worker)])

    def counters(self, worker=None):
        """The counters of a worker, or the sums of all, as a dict of numbers and lists.

        ``requests[row][column]`` counts by ``ROWS`` and ``CODE_COLUMNS``,
        ``buckets[row]`` by ``BUCKET_BOUNDS`` and ``lag_buckets`` by
        ``LAG_BUCKET_BOUNDS`` (not cumulative).

        Args:
            worker: index of the worker's area; None for the sums.
        """
        cdef uint32_t first = 0
        cdef uint32_t last = self.handle.workers
        if worker is not None:
            first = self._area(worker)
            last = first + 1
        return counters_of(self.handle.areas, first, last)

    def row_for(self, str name not None):
        """The counter row of user functions of this name, the same each time it is asked.

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
        self.handle.me.opened += 1

    def count_closed(self, reason):
        """A connection ended, for this :class:`iproto.wire.CloseReason`."""
        cdef int column = CloseReason(reason)
        self.handle.me.closed[column] += 1

    def count_dropped_lines(self, uint32_t count):
        """``count`` lines had no room in this process's log."""
        self.handle.me.dropped_lines += count

    cdef int _area(self, worker) except -1:
        """Index of a worker's area."""
        cdef int64_t value = as_int64(worker)
        if not 0 <= value < self.handle.workers:
            raise ValueError(f"worker is {worker}; it must be 0..{self.handle.workers - 1}")
        return <int>value
