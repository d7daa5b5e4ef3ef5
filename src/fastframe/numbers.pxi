# The wire's numbers as C constants; tests hold them against iproto.wire.
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
    OK = 0x0000
    ILLEGAL_PARAMS = 0x0202
    READ_ONLY_CODE = 0x0401
    LOCKED = 0x0601
    OVERLOADED = 0x0701
    UNSUPPORTED_COMMAND = 0x0A02
    NUMBER_OUT_OF_RANGE = 0x1F02

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
cdef dict WORD_OF = {state: word for word, state in STATE_OF.items()}

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

# Columns of `requests`: the known return codes in this order, then all others.
CODE_COLUMNS = tuple(ReturnCode)
cdef dict COLUMN_OF = {int(code): column for column, code in enumerate(CODE_COLUMNS)}
cdef int COLUMN_OTHER = len(CODE_COLUMNS)
assert COLUMN_OTHER < CODES and len(CloseReason) <= REASONS

# Columns that the hot path bumps, looked up once.
cdef int COLUMN_OK = COLUMN_OF[0x0000]
cdef int COLUMN_ILLEGAL = COLUMN_OF[0x0202]
cdef int COLUMN_READ_ONLY = COLUMN_OF[0x0401]
cdef int COLUMN_LOCKED = COLUMN_OF[0x0601]
cdef int COLUMN_OVERLOADED = COLUMN_OF[0x0701]
cdef int COLUMN_UNSUPPORTED = COLUMN_OF[0x0A02]
cdef int COLUMN_RANGE = COLUMN_OF[0x1F02]
