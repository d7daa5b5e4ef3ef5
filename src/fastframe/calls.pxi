# Calls of user functions on one connection: they wait in its queue, run and are answered.
# Functions of ServerFrames whose class would be too long with them.

cdef inline size_t queue_cost(Call call) noexcept:
    return PyBytes_GET_SIZE(call.body) + CALL_OVERHEAD


cdef int queue_call(ServerFrames self, UserFunction function, const Request* request) except -1:
    """Puts a call behind those that wait; 0: the queue is full."""
    cdef Call call
    if self.queued >= self.max_queue:
        self.status |= MORE | FULL
        return 0
    call = Call.__new__(Call)
    call.function = function
    call.request_id = request.request_id
    if self.net_rpc != NULL:
        call.seq = self.net_rpc.seq
    call.body = PyBytes_FromStringAndSize(<const char*>request.body, request.length)
    call.arrived = self.arrived
    self.queue.append(call)
    self.queued += queue_cost(call)
    self.unanswered += 1
    self.others += 1
    if self.running < self.max_calls:
        self.status |= CALLS
    return 1


cdef inline Call first_call(ServerFrames self):
    return <Call>PyList_GET_ITEM(self.queue, self.queue_at)


cdef int drop_first(ServerFrames self, Call call) except -1:
    """The first call of the queue waits no more."""
    self.queued -= queue_cost(call)
    call.body = None
    self.queue_at += 1
    if self.queue_at == PyList_GET_SIZE(self.queue):
        self.queue.clear()
        self.queue_at = 0
    elif self.queue_at >= QUEUE_SLACK:
        del self.queue[:self.queue_at]
        self.queue_at = 0
    if self.queued < self.max_queue:
        self.status &= ~FULL
    return 0


cdef void note_startable(ServerFrames self) noexcept:
    """Whether a call of the queue may start, as far as the connection's own limit goes."""
    if PyList_GET_SIZE(self.queue) and self.running < self.max_calls:
        self.status |= CALLS
    else:
        self.status &= ~CALLS


# Whose calls run now, and in which thread. Others may ask, too.
cdef struct caller_t:
    PyObject* frames
    unsigned long thread

cdef caller_t CALLER
CALLER.frames = NULL


def calling_peer():
    """The peer whose call runs in this thread now; None outside of calls, and once one waits."""
    if CALLER.frames == NULL or CALLER.thread != PyThread_get_thread_ident():
        return None
    return (<ServerFrames>CALLER.frames).peer


cdef int run_calls(ServerFrames self, start) except -1:
    """Starts calls of the queue in their order, as many as a turn of the loop may have.

    A plain function runs at once; for any other ``start`` is called with the call and
    its arguments. Without ``start`` it stops before the first such call.
    """
    cdef uint64_t began = clock_ns()
    cdef uint64_t now = began
    cdef uint64_t time = time_for_calls(self.turn)
    cdef uint32_t left = CALLS_A_TURN if has_room(self.turn) else SMALL_CALLS
    cdef Call call
    cdef bytes body
    cdef bint whole = False
    global CALLER
    cdef caller_t before = CALLER
    if self.calling:
        return 0  # a function that runs asks for more of them
    self.calling = True
    CALLER.frames = <PyObject*>self
    CALLER.thread = PyThread_get_thread_ident()
    try:
        while (left and PyList_GET_SIZE(self.queue) and self.running < self.max_calls
               and not self.status & UNSENT and not self.discarded
               and self.output.end - self.output.start < OUTPUT_LIMIT):
            call = first_call(self)
            if start is None and call.function.is_async:
                break
            body = call.body
            drop_first(self, call)
            run_call(self, call, body, start)
            left -= 1
            now = clock_ns()
            if now - began > time:
                break
        whole = True
    finally:
        self.calling = False
        CALLER = before
        self.turn.left -= (now - began) / NS_A_BYTE
        if whole:
            note_startable(self)
        else:
            break_stream(self)
    return 0


cdef int run_call(ServerFrames self, Call call, bytes body, start) except -1:
    cdef UserFunction function = call.function
    cdef CallBudget budget = self.budget
    if budget.running >= budget.limit:
        text = f"{budget.limit} calls are running on this server, its limit; try again"
        refuse_call(self, call, OVERLOADED, text)
        return 0
    try:
        arguments = read_arguments(function, body)
        if function.is_async:
            if call_limit(self) and not begin_call(self.account, call_limit(self)):
                text = f"{call_limit(self)} calls of this client are running, its limit; try again"
                refuse_call(self, call, OVERLOADED, text)
                return 0
            call.budget = budget
            budget.running += 1
            self.running += 1
            self.turn.left -= TASK_WORK
            start(call, arguments)
        else:
            put_value(self, call, function.call(*<tuple>arguments))
    except BaseException as error:
        fail_call(self, call, error)
    return 0


cdef bint end_call(ServerFrames self, Call call) noexcept:
    """Gives back the place of a call that runs; False: it was answered before."""
    if call.budget is None:
        return False
    call.budget.running -= 1
    call.budget = None
    self.running -= 1
    if call_limit(self):
        end_call_of(self.account)
    note_startable(self)
    return True


cdef int fail_call(ServerFrames self, Call call, error) except -1:
    """Answers a call with what its function makes of an exception."""
    cdef bint whole = False
    end_call(self, call)
    try:
        if not self.discarded:
            code, body = call.function.fail(error)
            put_body(self, call, code, body)
        whole = True
    finally:
        if not whole:  # its reply would be missing for ever
            break_stream(self)
    return 0


cdef int refuse_call(ServerFrames self, Call call, uint32_t code, str text) except -1:
    cdef bytes content = text.encode()
    cdef uint32_t length = <uint32_t>PyBytes_GET_SIZE(content)
    cdef uint8_t* out = begin_body(self, call, code, str_head_size(length) + length)
    if out != NULL:
        memcpy(put_str_head(out, length), PyBytes_AS_STRING(content), length)
    return 0


cdef int put_value(ServerFrames self, Call call, value) except -1:
    """Answers a call with a result: what is simple is written as it is."""
    cdef const char* text
    cdef Py_ssize_t length
    cdef uint8_t* out
    cdef int64_t number
    cdef int overflow = 0
    cdef uint8_t[10] head
    if PyUnicode_CheckExact(value):
        text = PyUnicode_AsUTF8AndSize(value, &length)
        if length <= 0xFFFF:
            out = begin_body(self, call, OK, str_head_size(length) + length)
            if out != NULL:
                memcpy(put_str_head(out, <uint32_t>length), text, length)
            return 0
    elif value is None or value is True or value is False:
        out = begin_body(self, call, OK, 1)
        if out != NULL:
            out[0] = 0xC0 if value is None else 0xC3 if value is True else 0xC2
        return 0
    elif PyLong_CheckExact(value):
        number = PyLong_AsLongLongAndOverflow(value, &overflow)
        if not overflow:
            length = put_int(head, number) - head
            out = begin_body(self, call, OK, length)
            if out != NULL:
                memcpy(out, head, length)
            return 0
    put_body(self, call, OK, call.function.pack(value))
    return 0


cdef int put_body(ServerFrames self, Call call, uint32_t code, bytes body) except -1:
    cdef size_t size = PyBytes_GET_SIZE(body)
    cdef uint8_t* out
    if size > (MAX_REPLY_BODY if self.net_rpc == NULL else GOB_MOST_BODY):
        raise ValueError(f"a result of {size} bytes does not fit into a frame")
    out = begin_body(self, call, code, size)
    if out != NULL:
        memcpy(out, PyBytes_AS_STRING(body), size)
    return 0


cdef uint8_t* begin_body(ServerFrames self, Call call, uint32_t code, size_t size) except? NULL:
    """Answers a call up to its body, and counts it; returns where the body goes.

    NULL: the connection is gone, or too much waits to be sent on it already.
    """
    cdef int row = call.function.row
    cdef uint64_t elapsed
    cdef size_t whole = size + (HEADER_BYTES + 4 if self.net_rpc == NULL else AROUND_REPLY)
    cdef size_t waiting = self.output.end - self.output.start
    cdef uint8_t* begin
    cdef uint8_t* out
    if self.discarded:
        return NULL
    # An answer is traffic, though it is sent only at the end of the turn: the idle
    # time-out must not come between the two.
    self.traffic_ns = clock_ns()
    elapsed = self.traffic_ns - call.arrived
    if waiting and waiting + whole > self.max_unsent:
        self.status |= OVERFULL
        return NULL
    reserve(&self.output, whole)
    begin = self.output.data + self.output.end
    if self.net_rpc == NULL:
        out = put_response(begin, call.function.func_id, call.request_id, code, <uint32_t>size,
                           self.mailru)
    else:
        out = begin_reply(self, begin, call.seq, call.function.func_id, call.request_id, code,
                          <uint32_t>size)
        out[size] = 0
        whole = out + size + 1 - begin
    self.output.end += whole
    self.unanswered -= 1
    self.me.requests[row][column_of(code)] += 1
    self.me.buckets[row][service_bucket(elapsed)] += 1
    self.me.nanoseconds[row] += elapsed
    self.me.bytes_out += whole
    return out


cdef double expire_calls(ServerFrames self) except -1:
    """Answers OVERLOADED to calls that waited too long; seconds until the next, 0 if none."""
    cdef uint64_t now = clock_ns()
    cdef double left = 0.0
    cdef bint whole = False
    try:
        left = expire_until(self, now)
        whole = True
    finally:
        if not whole:
            break_stream(self)
    return left


cdef double expire_until(ServerFrames self, uint64_t now) except -1:
    cdef Call call
    while PyList_GET_SIZE(self.queue):
        call = first_call(self)
        if now - call.arrived < self.queue_ns:
            return (call.arrived + self.queue_ns - now) / 1e9
        drop_first(self, call)
        refuse_call(self, call, OVERLOADED,
                    f"waited {self.queue_ns / 1e9:g} s behind {self.running} calls of this "
                    "connection that run, the limit; not executed, try again")
    return 0.0
