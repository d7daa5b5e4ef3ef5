# What a client may do: the functions that it may call, and its rate.
#
# Of the functions over the store those that it may not call are known to the hold of the lock,
# which asks when it is taken; of user functions it is given only those that it may call.

cdef struct guard_t:
    uint32_t forbidden  # a bit for each row of functions over the store
    uint32_t refused  # requests over the rate, without a chunk that was within it
    uint64_t* arrival  # of the client's requests, in the table; NULL: there is no rate
    rate_limit_t rate


@cython.final
cdef class Guard:
    """What the clients of one kind may do; connections share it.

    Args:
        permits: takes a func_id, and says whether it may be called.
        functions: all user functions by func_id, those that may not be called too.
        rate: of each client's requests; None for no limit. It needs an account.
        max_calls: calls of user functions of one client that may run at once; 0 for no limit.
            It needs an account, too.
    """

    cdef object permits
    cdef dict functions
    cdef RateLimit rate
    cdef uint32_t max_calls

    def __cinit__(self, permits not None, dict functions not None, RateLimit rate=None,
                  uint32_t max_calls=0):
        self.permits = permits
        self.functions = functions
        self.rate = rate
        self.max_calls = max_calls


cdef int begin_guard(guard_t* self, Guard guard, Account account) except -1:
    if guard is None:
        return 0
    for row in range(ROW_READ + 1):
        if not guard.permits(int(ROWS[row])):
            self.forbidden |= <uint32_t>1 << row
    if guard.rate is not None and account is not None:
        self.rate = guard.rate.limit
        self.arrival = request_arrival(account)
    return 0


cdef bint refuse_right(ServerFrames self, const Request* request) except -1:
    self.status |= REFUSED
    fail(self, request, row_of(known_functions(self), request.func_id), NOT_PERMITTED,
         NOT_PERMITTED_TEXT)
    return True


cdef inline dict known_functions(ServerFrames self):
    """All user functions, those too that this client may not call."""
    return self.functions if self.kind is None else self.kind.functions


cdef bint permits(ServerFrames self, uint32_t func_id) except -1:
    """Whether a function that is not among those that may be called is unknown, not forbidden."""
    return self.kind is None or self.kind.permits(func_id)


cdef inline uint32_t call_limit(ServerFrames self) noexcept:
    """How many calls of the client may run at once, over all its connections; 0: any number."""
    return 0 if self.kind is None or self.account is None else self.kind.max_calls
