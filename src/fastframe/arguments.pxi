# What callers give, as C has it.

cdef int64_t as_int64(number) except? -1:
    """An int as C has it; one that does not fit becomes INT64_MAX or INT64_MIN.

    What is checked must be what is used: the operators of a subclass of int can
    say anything. And no float is cut to an int.
    """
    cdef int overflow = 0
    cdef int64_t value = PyLong_AsLongLongAndOverflow(PyNumber_Index(number), &overflow)
    return INT64_MAX if overflow > 0 else INT64_MIN if overflow < 0 else value


cdef int64_t slot_index(index) except? -1:
    """A slot's index as the caller gave it; whether it is in range is the server's to say."""
    cdef int64_t value
    if not isinstance(index, int):
        # Conversion to C would cut a float to an int without a word.
        try:
            index = PyNumber_Index(index)
        except TypeError:
            raise TypeError(f"a slot's index is an int, not {type(index).__name__}") from None
    try:
        value = index
    except OverflowError:
        raise ValueError(f"index {index} does not fit into a MsgPack int") from None
    return value


cdef inline int check_outcome(int outcome) except -1:
    """Refuses a number that is none of the ``AS_`` ones."""
    if not RESPONSE <= outcome <= BODY:
        raise ValueError(f"outcome {outcome} is unknown; use AS_RESPONSE and the like")
    return 0


cdef inline int forbid_reentry(bint busy) except -1:
    """Refuses a call that comes while another of the same object is in the middle of its work.

    Wherever Python objects are made the garbage collector may run, and with it
    the code of any ``__del__``; it must not free or move what is being read.
    """
    if busy:
        raise RuntimeError("called while another call of the same object is at work")
    return 0
