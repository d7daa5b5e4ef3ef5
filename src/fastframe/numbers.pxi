# Made by tools/generate.py from schema/iproto.toml; change that, and run make generate.

cdef extern from *:
    """
    _Static_assert(SLOTS == 1000 && SLOT_BYTES == 256,
                   "layout.h and schema/iproto.toml differ");
    _Static_assert(CODES > 13 && REASONS >= 21,
                   "the store has too little room for the counters");
    """

cdef enum:
    SWITCH_READONLY = 0x00010001
    SWITCH_READWRITE = 0x00010002
    SWITCH_MAINTENANCE = 0x00010003
    REPLACE = 0x00020001
    READ = 0x00020002
    PING = 0x0000FF00
    SHUTDOWN = 0x0000FF01

cdef enum:
    HEADER_BYTES = 12

cdef enum:
    OK = 0x0000
    INTERNAL = 0x0002
    ILLEGAL_PARAMS = 0x0202
    READ_ONLY_CODE = 0x0401
    LOCKED = 0x0601
    OVERLOADED = 0x0701
    UNSUPPORTED_COMMAND = 0x0A02
    NUMBER_OUT_OF_RANGE = 0x1F02
    TIMEOUT = 0x4301
    RATE_LIMITED = 0x5002
    NOT_PERMITTED = 0x0102
    UNAVAILABLE = 0x4201
    OUTCOME_UNKNOWN = 0x4402

# Rows of the per-function counters; row FIRST_USER and later are users' own.
cdef enum:
    ROW_SWITCH_READONLY = 0
    ROW_SWITCH_READWRITE = 1
    ROW_SWITCH_MAINTENANCE = 2
    ROW_REPLACE = 3
    ROW_READ = 4
    ROW_PING = 5
    ROW_SHUTDOWN = 6
    ROW_UNKNOWN = 7
    FIRST_USER = 8

ROWS = (
    FuncID.ADM_STORAGE_SWITCH_READONLY,
    FuncID.ADM_STORAGE_SWITCH_READWRITE,
    FuncID.ADM_STORAGE_SWITCH_MAINTENANCE,
    FuncID.STORAGE_REPLACE,
    FuncID.STORAGE_READ,
    FuncID.PING,
    FuncID.SHUTDOWN,
)
ROW_OF_UNKNOWN = ROW_UNKNOWN
FIRST_USER_ROW = FIRST_USER
ROW_COUNT = FUNCTIONS

# States as they stand in the store.
cdef enum:
    READ_WRITE = STATE_READ_WRITE
    READ_ONLY = STATE_READ_ONLY
    MAINTENANCE = STATE_MAINTENANCE

cdef dict STATE_OF = {
    READ_WRITE: State.READ_WRITE,
    READ_ONLY: State.READ_ONLY,
    MAINTENANCE: State.MAINTENANCE,
}
cdef dict ROW_OF_SWITCH = {
    State.READ_WRITE: ROW_SWITCH_READWRITE,
    State.READ_ONLY: ROW_SWITCH_READONLY,
    State.MAINTENANCE: ROW_SWITCH_MAINTENANCE,
}

# Columns of the per-function counters: the known return codes; all others in the last
# one, which stays there when codes are added, for a new program may take over memory.
cdef enum:
    COLUMN_OK = 0
    COLUMN_INTERNAL = 1
    COLUMN_ILLEGAL_PARAMS = 2
    COLUMN_READ_ONLY = 3
    COLUMN_LOCKED = 4
    COLUMN_OVERLOADED = 5
    COLUMN_UNSUPPORTED_COMMAND = 6
    COLUMN_NUMBER_OUT_OF_RANGE = 7
    COLUMN_TIMEOUT = 8
    COLUMN_RATE_LIMITED = 9
    COLUMN_NOT_PERMITTED = 10
    COLUMN_UNAVAILABLE = 11
    COLUMN_OUTCOME_UNKNOWN = 12
    COLUMN_OTHER = CODES - 1

CODE_COLUMNS = (
    ReturnCode.OK,
    ReturnCode.INTERNAL,
    ReturnCode.ILLEGAL_PARAMS,
    ReturnCode.READ_ONLY,
    ReturnCode.LOCKED,
    ReturnCode.OVERLOADED,
    ReturnCode.UNSUPPORTED_COMMAND,
    ReturnCode.NUMBER_OUT_OF_RANGE,
    ReturnCode.TIMEOUT,
    ReturnCode.RATE_LIMITED,
    ReturnCode.NOT_PERMITTED,
    ReturnCode.UNAVAILABLE,
    ReturnCode.OUTCOME_UNKNOWN,
)


cdef int column_of(uint32_t code) noexcept nogil:
    if code == OK:
        return COLUMN_OK
    if code == INTERNAL:
        return COLUMN_INTERNAL
    if code == ILLEGAL_PARAMS:
        return COLUMN_ILLEGAL_PARAMS
    if code == READ_ONLY_CODE:
        return COLUMN_READ_ONLY
    if code == LOCKED:
        return COLUMN_LOCKED
    if code == OVERLOADED:
        return COLUMN_OVERLOADED
    if code == UNSUPPORTED_COMMAND:
        return COLUMN_UNSUPPORTED_COMMAND
    if code == NUMBER_OUT_OF_RANGE:
        return COLUMN_NUMBER_OUT_OF_RANGE
    if code == TIMEOUT:
        return COLUMN_TIMEOUT
    if code == RATE_LIMITED:
        return COLUMN_RATE_LIMITED
    if code == NOT_PERMITTED:
        return COLUMN_NOT_PERMITTED
    if code == UNAVAILABLE:
        return COLUMN_UNAVAILABLE
    if code == OUTCOME_UNKNOWN:
        return COLUMN_OUTCOME_UNKNOWN
    return COLUMN_OTHER


# Bits of ServerFrames.status: what the caller has to look after.
HAS_CALLS = 1
HAS_MORE = 2
IS_CLOSING = 4
IS_FULL = 8
HAS_UNSENT = 16
HAS_ENDED = 32
IS_BROKEN = 64
HAS_OVERFLOWED = 128
IS_PAUSED = 256
HAS_REFUSED = 512
HAS_INPUT = 1024
cdef enum:
    CALLS = 1  # calls wait that start_calls() may start
    MORE = 2  # frames wait for resume()
    CLOSING = 4  # no further frame is looked at
    FULL = 8  # with HAS_MORE: the queue of calls is full; go on when one has started
    UNSENT = 16  # the socket takes no more; flush() when it is writable
    ENDED = 32  # the peer has ended its side of the stream
    BROKEN = 64  # the socket failed: reset, most likely
    OVERFULL = 128  # a reply was dropped, for max_unsent bytes wait to be sent
    PAUSED = 256  # with HAS_MORE: the client is over its rate; go on after pause_seconds()
    REFUSED = 512  # a call was not permitted; clear_refused() when that is noted
    INPUT = 1024  # its socket had its share of the turn and may have more; receive() later

# What ClientFrames makes of a reply.
AS_RESPONSE = 0
AS_NOTHING = 1
AS_TEXT = 2
AS_BYTES = 3
AS_BODY = 4
cdef enum:
    RESPONSE = 0  # a Response, whatever its return code
    NOTHING = 1  # None, of nil or a bare header
    TEXT = 2  # str, of a MsgPack str that is UTF-8
    BYTES = 3  # bytes, of a MsgPack str
    BODY = 4  # bytes: the body as it is
