# User functions: what the server knows of each, how their bodies are read, and a call of one.

cdef frozenset BUILT_IN_IDS = frozenset(map(int, FuncID))


@cython.final
cdef class UserFunction:
    """A user function, as the server calls it.

    Args:
        func_id: its number on the wire, 0..2**32-1.
        row: of the counters, FIRST_USER_ROW..ROW_COUNT-1.
        name: for error texts.
        call: the function.
        decoders: by number of arguments: each takes a MsgPack array of that many
            objects and returns the arguments as a tuple.
        least: fewest arguments of a call, 0..len(decoders) - 1.
        refuse: takes an exception of a decoder, and returns the one to raise.
        pack: takes a result, and returns its MsgPack.
        fail: takes an exception of a call, and returns return code and body of the reply.
        is_async: whether ``call`` returns what must be awaited.
        timeout: seconds that a call may take, for who runs it; None for no limit.
        counted: which array elements count as map keys do: 0 none, 1 all but str
            and bin, 2 all.
        max_objects: MsgPack objects of a body, nested ones and keys included.
        max_depth: arrays and maps within one another, 1..MAX_DEPTH_CEILING.

    Raises:
        ValueError: an argument is outside its range.
    """

    cdef readonly uint32_t func_id
    cdef readonly int row
    cdef readonly str name
    cdef readonly object call
    cdef readonly bint is_async
    cdef readonly object timeout
    cdef tuple decoders
    cdef object refuse
    cdef object pack
    cdef object fail
    cdef uint32_t least
    cdef uint32_t most
    cdef body_limits_t limits

    def __cinit__(self, func_id, row, str name not None, call, tuple decoders not None,
                  uint32_t least, refuse, pack, fail, *, bint is_async, timeout, int counted,
                  uint32_t max_objects, uint32_t max_depth):
        cdef int64_t number = as_int64(func_id)
        cdef int64_t counter = as_int64(row)
        if not 0 <= number <= 0xFFFFFFFF:
            raise ValueError(f"func_id {func_id} is outside 0..{0xFFFFFFFF:#x}")
        if number in BUILT_IN_IDS:
            raise ValueError(f"func_id {number:#010x} is a built-in function")
        if not FIRST_USER <= counter < FUNCTIONS:
            raise ValueError(f"counter row {row} is outside {FIRST_USER}..{FUNCTIONS - 1}")
        if not (least < len(decoders) <= MOST_ARGUMENTS + 1):
            raise ValueError(f"{name} takes {least} to {len(decoders) - 1} arguments, "
                             f"which must be 0..{MOST_ARGUMENTS}")
        if not COUNT_NONE <= counted <= COUNT_ALL:
            raise ValueError(f"counted is {counted}; it must be {COUNT_NONE}..{COUNT_ALL}")
        if not 1 <= max_depth <= BODY_DEPTH_CEILING:
            raise ValueError(f"max_depth is {max_depth}; it must be 1..{BODY_DEPTH_CEILING}")
        self.func_id = <uint32_t>number
        self.row = <int>counter
        self.name = name
        self.call = call
        self.is_async = is_async
        self.timeout = timeout
        self.decoders = decoders
        self.refuse = refuse
        self.pack = pack
        self.fail = fail
        self.least = least
        self.most = <uint32_t>(len(decoders) - 1)
        self.limits.counted = counted
        self.limits.max_objects = max_objects
        self.limits.max_depth = max_depth
        self.limits.max_keys = MAX_NUMBER_KEYS

    def arguments(self, bytes body not None):
        """The arguments in a body: objects one after the other, or one array of them.

        Where both readings are possible (a function with one list parameter), the
        array of arguments goes first.

        Raises:
            IllegalParamsError: they do not fit the function; the text says which.
        """
        return read_arguments(self, body)


@cython.final
cdef class CallBudget:
    """How many calls of user functions may run at once, over all connections of a server.

    Args:
        limit: 1..2**32-1; a call over it is answered OVERLOADED.
    """

    cdef readonly uint32_t limit
    cdef readonly uint32_t running

    def __cinit__(self, uint32_t limit):
        self.limit = limit


@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Call:
    """One call of a user function."""

    cdef readonly UserFunction function
    cdef readonly uint32_t request_id
    cdef uint64_t seq  # of a call by net/rpc
    cdef bytes body  # until its arguments are read
    cdef uint64_t arrived  # CLOCK_MONOTONIC, ns
    cdef CallBudget budget  # of which it has a place while it runs


cdef object read_arguments(UserFunction self, bytes body):
    cdef body_shape_t shape
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef int found
    if size > INT32_MAX:
        raise IllegalParamsError(f"body of {size} bytes is over the limit of {INT32_MAX}")
    found = check_body(<const uint8_t*>PyBytes_AS_STRING(body), <uint32_t>size, &self.limits,
                       &shape)
    if found != BODY_FITS:
        raise IllegalParamsError(refusal_text(found, <uint32_t>size, &self.limits, &shape))
    if shape.objects != 1 or not shape.is_array:
        return decode_arguments(self, within_array(body, shape.objects), shape.objects)
    try:
        return decode_arguments(self, body, shape.elements)
    except IllegalParamsError:
        if not self.least <= 1 <= self.most:
            raise
        try:
            return decode_arguments(self, within_array(body, 1), 1)
        except IllegalParamsError:
            pass
        raise  # of the reading that goes first


cdef object decode_arguments(UserFunction self, bytes array, uint32_t count):
    if not self.least <= count <= self.most:
        takes = f"{self.most}" if self.least == self.most else f"{self.least} to {self.most}"
        raise IllegalParamsError(f"{self.name} takes {takes} arguments, got {count}")
    try:
        return (<object>PyTuple_GET_ITEM(self.decoders, count))(array)
    except Exception as error:
        raise self.refuse(error) from None


cdef bytes within_array(bytes body, uint32_t count):
    """The body behind the head of an array of this many objects."""
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef uint8_t* out
    if count > MOST_ARGUMENTS:
        return body  # refused by its number
    array = PyBytes_FromStringAndSize(NULL, size + 3)
    out = <uint8_t*>PyBytes_AS_STRING(array)
    out[0] = 0xDC
    store_be(out + 1, count, 2)
    memcpy(out + 3, PyBytes_AS_STRING(body), size)
    return array
