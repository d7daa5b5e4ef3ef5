# bodycheck.h: one pass over a body of MsgPack before anything is built of it.

cdef extern from "bodycheck.h" nogil:
    enum:
        BODY_DEPTH_CEILING
        BODY_FITS
        BODY_CUT_SHORT
        BODY_BAD_HEAD
        BODY_OBJECTS
        BODY_DEPTH
        BODY_KEYS
        COUNT_NONE
        COUNT_ALL

    ctypedef struct body_limits_t:
        uint32_t max_objects
        uint32_t max_depth
        uint32_t max_keys
        int counted

    ctypedef struct body_shape_t:
        uint32_t objects
        uint32_t elements
        int is_array
        uint32_t last

    int check_body(const uint8_t* body, uint32_t size, const body_limits_t* limits,
                   body_shape_t* shape) noexcept


MAX_DEPTH_CEILING = BODY_DEPTH_CEILING


cdef str refusal_text(int found, uint32_t size, const body_limits_t* limits,
                      const body_shape_t* shape):
    """Why a body is not decoded: the value, the limit, the way out."""
    if found == BODY_CUT_SHORT:
        return f"body of {size} bytes ends within an object that begins at byte {shape.last}"
    if found == BODY_BAD_HEAD:
        return f"body of {size} bytes is not MsgPack: byte {shape.last} is 0xc1"
    if found == BODY_OBJECTS:
        return (f"body of {size} bytes holds more than {limits.max_objects} objects, "
                "the limit (max_objects); send fewer at once")
    if found == BODY_DEPTH:
        return (f"body of {size} bytes nests deeper than {limits.max_depth} arrays and maps, "
                "the limit (max_depth)")
    if limits.counted == COUNT_NONE:
        return (f"body of {size} bytes holds more than {limits.max_keys} map keys that are "
                "neither str nor bin, the limit; send fewer at once, or str keys")
    return (f"body of {size} bytes holds more than {limits.max_keys} map keys and array elements "
            "that count for a function that takes sets or keys of numbers; send fewer at once")
