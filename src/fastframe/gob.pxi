# gobcall.h and gobreply.h: calls of Go's net/rpc out of gob, and replies to it.

cdef extern from "gobcall.h" nogil:
    enum:
        GOB_FITS
        GOB_PARTIAL
        GOB_MISFIT
        GOB_TOO_LONG
        GOB_NUMBER
        GOB_CUT_SHORT
        GOB_TRAILING
        GOB_EMPTY
        GOB_ID
        GOB_REDEFINED
        GOB_UNDEFINED
        GOB_DEFINITION
        GOB_TOO_MANY
        GOB_TOO_DEEP
        GOB_OPAQUE_FIELD
        GOB_FIELD_NUMBER
        GOB_NO_CALL
        GOB_LONG_METHOD
        GOB_AS_ARGUMENT

    ctypedef struct gob_t:
        uint8_t type_count

    ctypedef struct gob_call_t:
        const uint8_t* method
        uint64_t method_length
        uint64_t seq
        const uint8_t* body
        uint64_t body_length
        uint32_t func_id
        uint32_t request_id

    int gob_message(const uint8_t* data, uint64_t size, uint64_t most, cursor_t* payload,
                    int64_t* id) noexcept
    int gob_define(gob_t* g, cursor_t c, int64_t id) noexcept
    int gob_begin_call(const gob_t* g, cursor_t c, int64_t id, gob_call_t* call) noexcept
    int gob_value(const gob_t* g, cursor_t c, int64_t id, int what, gob_call_t* call) noexcept

cdef extern from "gobreply.h" nogil:
    const char* GOB_SERVICE
    const char* GOB_MAIN_METHOD
    uint32_t GOB_MOST_BODY
    enum:
        GOB_SENT_RESPONSE
        GOB_SENT_REPLY
        GOB_SENT_NOTHING
        GOB_DEFINITIONS
        GOB_RESPONSE_HEAD
        GOB_REPLY_HEAD
    uint8_t* gob_put_definitions(gob_t* g, uint8_t* out, int wanted) noexcept
    uint8_t* gob_put_response(uint8_t* out, const void* method, uint64_t method_length,
                              uint64_t seq, const void* error, uint64_t error_length) noexcept
    uint8_t* gob_put_nothing(uint8_t* out) noexcept
    uint8_t* gob_put_reply(uint8_t* out, uint32_t func_id, uint32_t request_id, bint is_error,
                           uint32_t body_length) noexcept

cdef dict GOB_FAULTS = {
    GOB_TOO_LONG: "a message is over the limit (max_body)",
    GOB_NUMBER: "a number of more than 8 bytes",
    GOB_CUT_SHORT: "a value runs beyond the end of its message",
    GOB_TRAILING: "bytes are left behind the value of a message",
    GOB_EMPTY: "an empty message",
    GOB_ID: "a type's number that no client sends",
    GOB_REDEFINED: "a type is defined twice",
    GOB_UNDEFINED: "a value of a type that was not defined",
    GOB_DEFINITION: "an empty definition of a type",
    GOB_TOO_MANY: "more than 32 types or 128 fields are defined",
    GOB_TOO_DEEP: "more than 8 structs within one another",
    GOB_OPAQUE_FIELD: "a field that is no number, text or struct",
    GOB_FIELD_NUMBER: "a field that the type does not have",
    GOB_NO_CALL: "a call that is no rpc.Request",
    GOB_LONG_METHOD: "a method's name of more than 255 bytes",
}

# What the next value of the stream is.
cdef enum:
    NEXT_CALL
    NEXT_ARGUMENT
    NEXT_IGNORED  # the argument of a call that has been refused

# Of one connection.
cdef struct NetRpc:
    gob_t gob
    int stage
    uint64_t seq  # of the call whose argument is next


cdef NetRpc* new_net_rpc() except NULL:
    cdef NetRpc* made = <NetRpc*>malloc(sizeof(NetRpc))
    if made == NULL:
        raise MemoryError
    memset(made, 0, sizeof(NetRpc))
    return made
