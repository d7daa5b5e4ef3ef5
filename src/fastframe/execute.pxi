# The rules of the built-in functions over the store: one Op in, one Result out.
# Frames of a connection and the methods of Storage both come through here.
#
# Checked in this order: the body, the right, the lock, the storage's state, the index. So a write
# to an index that does not exist tells the state and changes nothing, which
# is how `iproto state` finds it out.

cdef struct Op:
    int row  # of the function, in the counters: ROW_SWITCH_READONLY to ROW_READ
    int64_t index
    const uint8_t* text
    uint64_t length

# Of an OK the text is what the slot holds, to be copied under the lock; NULL stands
# for nil. Of any other code it says what is wrong.
cdef struct Result:
    uint32_t code
    uint32_t length
    const uint8_t* text
    char[ERROR_TEXT] made  # holds a text that has numbers in it

cdef const char* READ_ONLY_TEXT = (
    b"storage is READ_ONLY: writes are refused until it is switched to READ_WRITE (0x00010002)"
)
cdef const char* MAINTENANCE_TEXT = (
    b"storage is in MAINTENANCE: reads and writes are refused until it is switched to "
    b"READ_WRITE (0x00010002) or READ_ONLY (0x00010001)"
)
cdef const char* LOCK_TEXT = (
    b"the storage's lock could not be taken in time: the worker that has it is stopped, "
    b"or waits for a CPU; try again"
)
cdef const char* NOT_PERMITTED_TEXT = (
    b"this client may not call this function, or not at this address"
)
cdef const char* LENGTH_TEXT = b"string of %llu bytes is over the limit of %d"


cdef inline void execute(const handle_t* h, const Op* op, Hold* hold,
                         Result* result) noexcept nogil:
    """Executes one operation under the lock that it needs, or without: waited for in vain."""
    if op.row == ROW_READ:
        execute_read(h, op, hold, result)
    elif op.row == ROW_REPLACE:
        execute_replace(h, op, hold, result)
    else:
        execute_switch(h, op, hold, result)


cdef inline void execute_read(const handle_t* h, const Op* op, const Hold* hold,
                              Result* result) noexcept nogil:
    cdef content_t content
    if unlikely_so(hold.state != READ_WRITE) and hold.state != READ_ONLY:
        refuse_hold(result, hold, op.row)
    elif unlikely_so(<uint64_t>op.index >= SLOTS):
        refuse_index(result, op.index)
    elif unlikely_so(not slot_read(h, <uint32_t>op.index, &content)):
        refuse_slot(result, op.index)
    else:
        result.code = OK
        result.text = content.bytes
        result.length = content.length


cdef inline void execute_replace(const handle_t* h, const Op* op, const Hold* hold,
                                 Result* result) noexcept nogil:
    if op.length > SLOT_BYTES:
        refuse_length(result, hold, op.length)
    elif unlikely_so(hold.state != READ_WRITE):
        refuse_hold(result, hold, op.row)
    elif unlikely_so(<uint64_t>op.index >= SLOTS):
        refuse_index(result, op.index)
    else:
        slot_write(h, <uint32_t>op.index, op.text, <uint32_t>op.length)
        succeed(result)


cdef inline void execute_switch(const handle_t* h, const Op* op, Hold* hold,
                                Result* result) noexcept nogil:
    if hold.forbidden >> op.row & 1:
        hold.refused = REFUSED
    if hold.kind == HOLDS_NOTHING or hold.forbidden >> op.row & 1:
        refuse_hold(result, hold, op.row)
        return
    if op.row == ROW_SWITCH_READONLY:
        hold.state = READ_ONLY
    elif op.row == ROW_SWITCH_READWRITE:
        hold.state = READ_WRITE
    else:
        hold.state = MAINTENANCE
    store_release(&h.store.state, hold.state)
    succeed(result)


cdef inline void succeed(Result* result) noexcept nogil:
    """OK, with nil."""
    result.code = OK
    result.text = NULL
    result.length = 0


cdef void refuse(Result* result, uint32_t code, const char* text) noexcept nogil:
    result.code = code
    result.text = <const uint8_t*>text
    result.length = <uint32_t>strlen(text)


cdef void refuse_hold(Result* result, const Hold* hold, int row) noexcept nogil:
    """For want of the right or of the lock, or for the state that was found under it."""
    if hold.forbidden >> row & 1:
        refuse(result, NOT_PERMITTED, NOT_PERMITTED_TEXT)
    elif hold.kind == HOLDS_NOTHING:
        refuse(result, OVERLOADED, LOCK_TEXT)
    elif hold.state == READ_ONLY:
        refuse(result, READ_ONLY_CODE, READ_ONLY_TEXT)
    elif hold.state == MAINTENANCE:
        refuse(result, LOCKED, MAINTENANCE_TEXT)
    else:
        snprintf(result.made, ERROR_TEXT,
                 b"the storage is damaged: its state is 0x%08x; a switch sets it anew",
                 hold.state)
        refuse(result, INTERNAL, result.made)


cdef void refuse_slot(Result* result, int64_t index) noexcept nogil:
    snprintf(result.made, ERROR_TEXT,
             b"slot %d is damaged: which of its contents counts cannot be told; write it anew",
             <int>index)
    refuse(result, INTERNAL, result.made)


cdef void refuse_index(Result* result, int64_t index) noexcept nogil:
    if index == INT64_MAX:
        snprintf(result.made, ERROR_TEXT, b"index of 2^63-1 or more is outside 0..%d", SLOTS - 1)
    else:
        snprintf(result.made, ERROR_TEXT, b"index %lld is outside 0..%d", <long long>index,
                 SLOTS - 1)
    refuse(result, NUMBER_OUT_OF_RANGE, result.made)


cdef void refuse_length(Result* result, const Hold* hold, uint64_t length) noexcept nogil:
    if hold.forbidden >> ROW_REPLACE & 1:
        refuse_hold(result, hold, ROW_REPLACE)
        return
    snprintf(result.made, ERROR_TEXT, LENGTH_TEXT, <unsigned long long>length, SLOT_BYTES)
    refuse(result, ILLEGAL_PARAMS, result.made)


cdef bytes execute_alone(const handle_t* h, const Op* op):
    """Executes one operation under a lock of its own; returns a slot's bytes, or None.

    Raises:
        Error: of the code that a frame would be answered with, and with its text.
    """
    cdef Result result
    cdef uint8_t[SLOT_BYTES] text
    cdef Hold hold
    begin_hold(&hold, 0)
    hold_for(&hold, h, op.row)
    execute(h, op, &hold, &result)
    if result.code == OK and result.text != NULL:
        copy_bytes(text, result.text, result.length)
    let_go(&hold, h)
    if result.code != OK:
        raise error_from_reply(result.code, result.text[:result.length].decode())
    return None if result.text == NULL else PyBytes_FromStringAndSize(<char*>text, result.length)
