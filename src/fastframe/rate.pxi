# Scanning no more than the client's rate permits. The scan itself knows nothing of it: it is
# given a window of so many bytes as cannot hold more frames than were taken from the rate.

cdef const char* RATE_LIMITED_TEXT = (
    b"over this client's rate; not executed; retry after %llu.%03llu s"
)

# Frames that the scan may answer, and the bytes that hold no more of them.
cdef struct window_t:
    size_t size
    uint32_t taken
    uint32_t answered_before


cdef inline size_t scan_permitted(ServerFrames self, const uint8_t* data, size_t size,
                                  uint8_t* out_limit) except? 0:
    """``scan``, within the client's rate if there is one."""
    if unlikely_so(self.guard.arrival != NULL):
        return scan_within_rate(self, data, size, out_limit)
    return scan(self, data, size, out_limit)


cdef size_t scan_within_rate(ServerFrames self, const uint8_t* data, size_t size,
                             uint8_t* out_limit) except? 0:
    """As ``scan``, window after window."""
    cdef size_t at = 0
    cdef window_t window
    if (is_one_frame(data, size)
            and rate_take(self.guard.arrival, &self.guard.rate, self.arrived, 1)):
        self.guard.refused = 0
        at = scan(self, data, size, out_limit)
        if at == 0:
            rate_give_back(self.guard.arrival, &self.guard.rate, self.arrived, clock_ns(), 1)
        return at
    while open_window(self, data, size, out_limit, &at, &window):
        at += scan(self, data + at, window.size, out_limit)
        if not close_window(self, &window):
            break
    return size if self.status & CLOSING else at


cdef bint open_window(ServerFrames self, const uint8_t* data, size_t size, uint8_t* out_limit,
                      size_t* at, window_t* window) except -1:
    """Takes from the rate what the next frames need, or refuses them; False: stop here."""
    cdef Request request
    cdef size_t left = size - at[0]
    cdef int found
    if left < HEADER_BYTES:
        return False
    window.taken = rate_take(self.guard.arrival, &self.guard.rate, self.arrived, most_frames(left))
    window.answered_before = answered(self)
    window.size = left
    if window.taken == left // HEADER_BYTES:
        self.guard.refused = 0
        return True
    if window.taken:
        window.size = <size_t>window.taken * HEADER_BYTES
        if next_frame(data + at[0], left, self.max_body, &request) == FRAME:
            window.size = max(window.size, frame_size(&request))
        return True
    while True:
        found = next_frame(data + at[0], size - at[0], self.max_body, &request)
        if found == PARTIAL:
            return False
        if found == TOO_LONG or request.func_id == SHUTDOWN:  # which end the connection
            window.size = size - at[0] if found == TOO_LONG else frame_size(&request)
            return True
        if self.out >= out_limit or self.guard.refused >= REFUSALS_IN_A_ROW:
            self.status |= MORE if self.out >= out_limit else MORE | PAUSED
            return False
        self.guard.refused += 1
        refuse_rate(self, &request)
        at[0] += frame_size(&request)


cdef bint close_window(ServerFrames self, window_t* window) noexcept:
    """Gives back what was taken and not needed; False: stop here."""
    cdef uint32_t needed = answered(self) - window.answered_before
    if needed < window.taken:
        rate_give_back(self.guard.arrival, &self.guard.rate, self.arrived, clock_ns(),
                       window.taken - needed)
    return needed and not self.status & (MORE | CLOSING)


cdef inline bint is_one_frame(const uint8_t* data, size_t size) noexcept nogil:
    return size >= HEADER_BYTES and size - HEADER_BYTES == load_le32(data + 4)


cdef inline uint32_t most_frames(size_t size) noexcept nogil:
    """How many requests may be in so many bytes, as far as one window goes."""
    return FRAMES_A_WINDOW if size >= FRAMES_A_WINDOW * HEADER_BYTES else <uint32_t>(
        size // HEADER_BYTES)


cdef inline size_t frame_size(const Request* request) noexcept nogil:
    return HEADER_BYTES + <size_t>request.length


cdef inline uint32_t answered(ServerFrames self) noexcept:
    """Frames of this chunk that the scan is done with."""
    cdef uint32_t sum = self.others
    for row in range(FIRST_USER):
        sum += self.done.frames[row]
    return sum


cdef int refuse_rate(ServerFrames self, const Request* request) except -1:
    cdef char[ERROR_TEXT] text
    # In whole milliseconds, and never too short.
    cdef uint64_t wait = (rate_wait(self.guard.arrival, &self.guard.rate, clock_ns())
                          + 999_999) // 1_000_000
    snprintf(text, ERROR_TEXT, RATE_LIMITED_TEXT, <unsigned long long>(wait // 1000),
             <unsigned long long>(wait % 1000))
    fail(self, request, row_of(known_functions(self), request.func_id), RATE_LIMITED, text)
    return 0
