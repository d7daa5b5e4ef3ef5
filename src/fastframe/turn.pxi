# The work of one turn of the event loop, shared by the connections that are ready in it.
#
# Work is counted in bytes, in and out: TURN_WORK of them take about a millisecond at most,
# and NS_A_BYTE makes bytes of the time that user functions take. A connection that is ready
# has what is left of the turn, or SMALL_SHARE where nothing is: who asks for little is
# answered at once. Who wants more (HAS_INPUT, HAS_MORE, HAS_CALLS) waits for later turns,
# each of which begins with a few of those that wait, and gives them LARGE_SHARE.

@cython.final
cdef class Turn:
    """The turn of one event loop: what may still be done in it, in bytes."""

    cdef uint32_t number
    cdef int64_t left
    cdef bint driven  # by begin() and end(), for connections wait
    cdef bint large

    def __cinit__(self):
        self.left = TURN_WORK

    def begin(self):
        """The next turn of the loop begins, with connections that waited for it."""
        self.driven = self.large = True
        begin_turn(self)

    def end(self, *, bint wait):
        """Those that waited have had it; now come those that are ready.

        Args:
            wait: whether some wait for the next turn, so that ``begin`` tells of it.
        """
        self.driven = wait
        self.large = False

    @property
    def is_over(self):
        """Whether its work is done: what is left waits for the next turn."""
        return self.left <= 0


cdef inline void begin_turn(Turn turn) noexcept:
    turn.number += 1
    turn.left = TURN_WORK


cdef inline size_t take_share(ServerFrames self) noexcept:
    """Bytes that a connection may receive now, and as many of replies to built-ins."""
    cdef Turn turn = self.turn
    if self.last_turn == turn.number and not turn.driven:
        begin_turn(turn)  # for a connection that is ready is served once in each
    self.last_turn = turn.number
    if turn.large:
        return LARGE_SHARE
    return <size_t>max(min(turn.left, <int64_t>LARGE_SHARE), <int64_t>SMALL_SHARE)


cdef inline bint has_room(Turn turn) noexcept:
    return turn.large or turn.left > 0


cdef inline uint64_t time_for_calls(Turn turn) noexcept:
    """Nanoseconds in which calls of one connection may start now."""
    if turn.large:
        return CALLS_NS
    return <uint64_t>max(min(turn.left * NS_A_BYTE, <int64_t>CALLS_NS), <int64_t>SMALL_CALLS_NS)
