# clients.h: what each client may still do, over all workers.

from libc.stdint cimport UINT32_MAX, uint16_t

cdef extern from "<sys/mman.h>" nogil:
    enum:
        MADV_REMOVE
    int madvise(void* start, size_t size, int advice) noexcept

cdef extern from "clients.h" nogil:
    enum:
        CLIENT_SETS
        CLIENT_WAYS
        CLIENTS
        CLIENT_KEY_BYTES
    const uint64_t CLIENTS_MAGIC

    ctypedef struct client_t:
        uint64_t tag
        uint64_t requests
        uint64_t connects

    ctypedef struct share_t:
        uint16_t connections
        uint16_t calls

    ctypedef struct shares_t:
        uint32_t connections
        share_t* of

    ctypedef struct clients_t:
        uint64_t magic
        uint64_t size
        uint32_t areas
        unsigned char key[CLIENT_KEY_BYTES]
        client_t* clients

    ctypedef struct rate_limit_t:
        uint64_t interval
        uint64_t ahead

    size_t clients_size(uint32_t areas) noexcept
    shares_t* shares_at(clients_t* table, uint32_t area) noexcept
    uint32_t client_claim(clients_t* table, uint32_t areas, uint64_t tag, uint64_t now) noexcept
    uint32_t client_connections(clients_t* table, uint32_t areas, uint32_t place) noexcept
    bint client_begin_call(clients_t* table, uint32_t areas, shares_t* mine, uint32_t place,
                           uint32_t limit) noexcept
    void client_end_call(shares_t* mine, uint32_t place) noexcept
    uint32_t rate_take(uint64_t* arrival, const rate_limit_t* limit, uint64_t now,
                       uint32_t wanted) noexcept
    void rate_give_back(uint64_t* arrival, const rate_limit_t* limit, uint64_t then, uint64_t now,
                        uint32_t unused) noexcept
    uint64_t rate_wait(const uint64_t* arrival, const rate_limit_t* limit, uint64_t now) noexcept


@cython.final
cdef class RateLimit:
    """So many a second, and so many at once.

    Args:
        rate: 0.001..1e9 a second.
        burst: 1..1000000, how many at once after a pause.
    """

    cdef rate_limit_t limit

    def __cinit__(self, double rate, uint64_t burst):
        if not 0.001 <= rate <= 1e9 or not 1 <= burst <= 1_000_000:
            raise ValueError(f"a rate of {rate} a second, and {burst} at once, is out of range")
        cdef double interval = 1e9 / rate
        self.limit.interval = <uint64_t>interval
        if self.limit.interval < interval:  # never more than the rate
            self.limit.interval += 1
        self.limit.ahead = burst * self.limit.interval


@cython.final
cdef class Clients:
    """What each client may still do, in memory that workers may share.

    Args:
        buffer: writable memory of ``Clients.size_for(areas)`` bytes, of zeros or from
            another worker; None for memory of its own.
        areas: of workers, 1..1024; as in the storage.
        area: that this worker counts in.

    Raises:
        ValueError: the buffer is too small, or holds something else.
    """

    cdef clients_t* table
    cdef shares_t* mine
    cdef uint32_t areas
    cdef Py_buffer view
    cdef bint has_view
    cdef bint detached

    def __cinit__(self, buffer=None, *, int areas=1, int area=0):
        if not 1 <= areas <= WORKERS_LIMIT or not 0 <= area < areas:
            raise ValueError(f"area {area} of {areas} is outside 0..{WORKERS_LIMIT - 1}")
        cdef size_t needed = clients_size(areas)
        if buffer is None:
            buffer = mmap.mmap(-1, needed, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.has_view = True
        if <size_t>self.view.len < needed or <size_t>self.view.buf % 64:
            raise ValueError(
                f"the table for {areas} areas takes {needed} bytes, aligned to 64; "
                f"the buffer has {self.view.len}"
            )
        self.table = <clients_t*>self.view.buf
        if self.table.magic == 0:
            key = os.urandom(CLIENT_KEY_BYTES)
            memcpy(self.table.key, PyBytes_AS_STRING(key), CLIENT_KEY_BYTES)
            self.table.areas = areas
            self.table.size = needed
            self.table.magic = CLIENTS_MAGIC
        if self.table.magic != CLIENTS_MAGIC or self.table.areas != <uint32_t>areas:
            raise ValueError(f"the buffer holds no table of clients for {areas} areas")
        self.areas = areas
        self.mine = shares_at(self.table, area)

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    @staticmethod
    def size_for(uint32_t areas=1):
        """Bytes of a table for the workers of this many areas; few are in use at a time."""
        return clients_size(areas)

    @property
    def key(self):
        """16 random bytes, for the hash that makes tags."""
        return PyBytes_FromStringAndSize(<char*>self.table.key, CLIENT_KEY_BYTES)

    @property
    def connections(self):
        """Those of all clients and all workers, as far as they were claimed here."""
        cdef uint32_t area
        cdef uint64_t sum = 0
        for area in range(self.areas):
            sum += load_relaxed(&shares_at(self.table, area).connections)
        return sum

    def claim(self, uint64_t tag):
        """Takes in a connection of a client; one worker at a time may call it.

        Args:
            tag: 1..2**64-1, the same for each connection of the client.
        """
        if tag == 0:
            raise ValueError("a tag of 0 stands for no client")
        cdef Account account = Account.__new__(Account)
        account.place = client_claim(self.table, self.areas, tag, clock_ns())
        if self.mine.of[account.place].connections == 0xFFFF:
            raise OverflowError("65535 connections of one client are all that one worker counts")
        account.clients = self
        account.is_open = True
        self.mine.of[account.place].connections += 1
        self.mine.connections += 1
        return account

    def detach(self):
        """In a child process: accounts that go change nothing in the table any more."""
        self.detached = True

    def recover(self, uint32_t area):
        """A worker is dead: it has no connections and no calls any more."""
        if area >= self.areas:
            raise ValueError(f"area {area} is outside 0..{self.areas - 1}")
        cdef shares_t* shares = shares_at(self.table, area)
        # What is given back to the system is zeros when it is read again.
        if madvise(shares, clients_size(1) - clients_size(0), MADV_REMOVE):
            memset(shares, 0, clients_size(1) - clients_size(0))


@cython.final
cdef class Account:
    """One connection's place in the table of clients; ``Clients.claim`` makes it."""

    cdef Clients clients
    cdef uint32_t place
    cdef bint is_open

    def __init__(self):
        raise TypeError("Clients.claim makes accounts")

    def __dealloc__(self):
        if self.clients is not None:
            release_account(self)

    def release(self):
        """The connection is closed."""
        release_account(self)

    @property
    def connections(self):
        """Those of the client, this one included, over all workers."""
        return client_connections(self.clients.table, self.clients.areas, self.place)

    def take_connect(self, RateLimit limit not None):
        """Whether one more connection is within the client's rate; it counts if it is."""
        cdef uint64_t* arrival = &self.clients.table.clients[self.place].connects
        return rate_take(arrival, &limit.limit, clock_ns(), 1) == 1

    def connect_wait(self, RateLimit limit not None):
        """Seconds until one more connection is within the client's rate."""
        cdef uint64_t* arrival = &self.clients.table.clients[self.place].connects
        return rate_wait(arrival, &limit.limit, clock_ns()) / 1e9


cdef void release_account(Account self) noexcept:
    if self.is_open and not self.clients.detached:
        self.is_open = False
        self.clients.mine.of[self.place].connections -= 1
        self.clients.mine.connections -= 1


cdef inline uint64_t* request_arrival(Account self) noexcept:
    return &self.clients.table.clients[self.place].requests


cdef inline bint begin_call(Account self, uint32_t limit) noexcept:
    """A call of the client begins, unless so many run."""
    return client_begin_call(self.clients.table, self.clients.areas, self.clients.mine, self.place,
                             limit)


cdef inline void end_call_of(Account self) noexcept:
    client_end_call(self.clients.mine, self.place)
