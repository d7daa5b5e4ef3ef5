# Go's net/rpc: calls in gob, answered as the original server of this storage did: its shapes
# of bodies, return_code 1 for every error, its texts. Functions of ServerFrames whose class
# would be too long with them.

cdef enum:
    # Bytes of a message beside the body of its request: fields that are not known here.
    AROUND_BODY = 4096
    # Bytes of the longest reply that is built in a scan: definitions, heads, and two names of a
    # method or the text of an error.
    NET_RPC_REPLY = 1024
    # Bytes of a frame that is built on the stack: any but those with bodies for user functions.
    SHORT_FRAME = 512
    # Bytes of a reply beside its body, at most.
    AROUND_REPLY = GOB_DEFINITIONS + GOB_RESPONSE_HEAD + 21 + GOB_REPLY_HEAD + 1

cdef const char* READ_ONLY_AS_ORIGINAL = b"can't replace at readOnly mode"
cdef const char* NO_WRITE_AS_ORIGINAL = b"can't replace at maintenance mode"
cdef const char* NO_READ_AS_ORIGINAL = b"can't read at maintenance mode"
cdef const char* LENGTH_AS_ORIGINAL = b"incoming string cannot take up more than 256 bytes"
cdef const char* INDEX_AS_ORIGINAL = b"invalid ID. Valid value in range[0; 999]"

cdef const char* ARGUMENT_TEXT = (
    b"the argument of MyService.MainHandler must be a struct of Header, a struct of FuncID, "
    b"BodyLength and RequestID (uint32), and of Body ([]byte)"
)

cdef str SPEAKS_IPROTO = (
    "it speaks plain iproto, and this address is for clients of Go's net/rpc: let it call an "
    "address of --bind"
)
cdef str SPEAKS_NET_RPC = (
    "it is a client of Go's net/rpc, and this address is for plain iproto: let it call an "
    "address of --net-rpc-bind"
)


cdef size_t scan_calls(ServerFrames self, const uint8_t* data, size_t size,
                       const uint8_t* out_limit) except? 0:
    """As ``scan``, of messages of gob."""
    cdef uint64_t most = <uint64_t>self.max_body + AROUND_BODY
    cdef size_t at = 0
    cdef cursor_t payload
    cdef int64_t type_id
    cdef int found
    while at < size:
        if self.out + NET_RPC_REPLY > out_limit:
            self.status |= MORE
            break
        found = gob_message(data + at, size - at, most, &payload, &type_id)
        if found == GOB_FITS:
            found = take_message(self, &payload, type_id)
        if found != GOB_FITS:
            if found != GOB_PARTIAL:
                end_calls(self, found)
            break
        at = payload.end - data
    return size if self.status & CLOSING else at


cdef int take_message(ServerFrames self, const cursor_t* payload, int64_t type_id) except -1:
    """GOB_FITS; GOB_PARTIAL: it has to wait; else the stream ends."""
    cdef NetRpc* net_rpc = self.net_rpc
    cdef gob_call_t call
    cdef int found
    if type_id < 0:
        return gob_define(&net_rpc.gob, payload[0], -type_id)
    if net_rpc.stage == NEXT_IGNORED:
        net_rpc.stage = NEXT_CALL
        return GOB_FITS
    memset(&call, 0, sizeof(call))
    call.method = call.body = <const uint8_t*>b""  # a field that is left out has no bytes
    if net_rpc.stage == NEXT_CALL:
        found = gob_begin_call(&net_rpc.gob, payload[0], type_id, &call)
        if found == GOB_FITS:
            net_rpc.seq = call.seq
            net_rpc.stage = NEXT_ARGUMENT
            if not is_text(call.method, call.method_length, GOB_MAIN_METHOD):
                net_rpc.stage = NEXT_IGNORED
                refuse_method(self, &call)
        return found
    found = gob_value(&net_rpc.gob, payload[0], type_id, GOB_AS_ARGUMENT, &call)
    if found == GOB_FITS:
        if not take_call(self, &call):
            return GOB_PARTIAL
    elif found == GOB_MISFIT:
        refuse_main(self, ARGUMENT_TEXT)
    else:
        return found
    net_rpc.stage = NEXT_CALL
    return GOB_FITS


cdef inline bint is_text(const uint8_t* bytes, uint64_t length, const char* text) noexcept nogil:
    return length == strlen(text) and memcmp(bytes, text, length) == 0


cdef bint take_call(ServerFrames self, const gob_call_t* call) except -1:
    """A call of the one method: the frame that it stands for is answered, and what comes of that
    is translated. False: it has to wait.
    """
    cdef uint8_t[SHORT_FRAME] short_frame
    cdef uint8_t* frame = short_frame
    cdef size_t size = HEADER_BYTES + call.body_length
    if call.body_length > self.max_body:
        refuse_long_body(self, call)
        return True
    if call.func_id == SHUTDOWN:  # which ends the stream with bytes that are no gob
        refuse_function(self, call)
        return True
    if size > SHORT_FRAME:
        frame = <uint8_t*>malloc(size)
        if frame == NULL:
            raise MemoryError
    try:
        put_header(frame, call.func_id, <uint32_t>call.body_length, call.request_id)
        if call.body_length:
            memcpy(frame + HEADER_BYTES, call.body, call.body_length)
        return answer_frame(self, frame, size)
    finally:
        if frame != short_frame:
            free(frame)


cdef bint answer_frame(ServerFrames self, const uint8_t* frame, size_t size) except -1:
    cdef uint8_t[REPLY_LIMIT] reply
    cdef uint8_t* out = self.out
    cdef size_t done
    self.out = reply
    done = scan_permitted(self, frame, size, reply + REPLY_LIMIT)
    if self.out != reply:
        out = put_translated(self, out, reply, self.out)
    self.out = out
    return done == size


cdef uint8_t* put_translated(ServerFrames self, uint8_t* out, const uint8_t* reply,
                             const uint8_t* end) noexcept:
    """Writes the reply in the original's shapes; returns its end."""
    cdef uint32_t func_id = load_le32(reply)
    cdef uint32_t request_id = load_le32(reply + 8)
    cdef uint32_t code = OK
    cdef const uint8_t* body = end  # PING has none
    cdef const char* text = NULL
    cdef uint32_t size
    if end - reply > HEADER_BYTES:
        code = load_le32(reply + HEADER_BYTES)
        body = reply + HEADER_BYTES + 4
    size = <uint32_t>(end - body)
    if code != OK:
        text = original_text(self, func_id, code, body)
        if text != NULL:
            return put_text(self, out, func_id, request_id, code, text)
    elif func_id == READ:
        out = begin_reply(self, out, self.net_rpc.seq, func_id, request_id, code, 3 + size)
        out[0], out[1], out[2] = 0x81, 0xA1, c"S"
        memcpy(out + 3, body, size)
        out[3 + size] = 0
        return out + 4 + size
    out = begin_reply(self, out, self.net_rpc.seq, func_id, request_id, code, size)
    memcpy(out, body, size)
    if func_id == REPLACE and code == OK:
        out[0] = 0x80
    out[size] = 0
    return out + size + 1


cdef const char* original_text(ServerFrames self, uint32_t func_id, uint32_t code,
                               const uint8_t* body) noexcept:
    """The original's text of a refusal that it knew too; NULL: it did not."""
    cdef uint32_t state
    if code == ILLEGAL_PARAMS and func_id == REPLACE and is_length_refusal(body):
        # It looked at the state first.
        state = load_relaxed(&self.storage.handle.store.state)
        if state == READ_WRITE:
            return LENGTH_AS_ORIGINAL
        code = READ_ONLY_CODE if state == READ_ONLY else LOCKED
    if code == READ_ONLY_CODE:
        return READ_ONLY_AS_ORIGINAL
    if code == LOCKED:
        return NO_READ_AS_ORIGINAL if func_id == READ else NO_WRITE_AS_ORIGINAL
    return INDEX_AS_ORIGINAL if code == NUMBER_OUT_OF_RANGE else NULL


cdef inline bint is_length_refusal(const uint8_t* body) noexcept nogil:
    """Whether a MsgPack str is a text of ``refuse_length``, which is over 32 bytes long."""
    return memcmp(body + 2, LENGTH_TEXT, 10) == 0


cdef uint8_t* put_text(ServerFrames self, uint8_t* out, uint32_t func_id, uint32_t request_id,
                       uint32_t code, const char* text) noexcept:
    cdef uint32_t length = <uint32_t>strlen(text)
    out = begin_reply(self, out, self.net_rpc.seq, func_id, request_id, code,
                      str_head_size(length) + length)
    out = put_str_head(out, length)
    memcpy(out, text, length)
    out[length] = 0
    return out + length + 1


cdef inline uint8_t* begin_reply(ServerFrames self, uint8_t* out, uint64_t seq, uint32_t func_id,
                                 uint32_t request_id, uint32_t code,
                                 uint32_t length) noexcept nogil:
    """Writes the reply to a call up to its body, behind which goes one zero."""
    out = gob_put_definitions(&self.net_rpc.gob, out, GOB_SENT_RESPONSE)
    out = gob_put_response(out, GOB_MAIN_METHOD, strlen(GOB_MAIN_METHOD), seq, NULL, 0)
    out = gob_put_definitions(&self.net_rpc.gob, out, GOB_SENT_REPLY)
    return gob_put_reply(out, func_id, request_id, code != OK, length)


cdef void refuse_long_body(ServerFrames self, const gob_call_t* call) noexcept:
    cdef char[ERROR_TEXT] text
    snprintf(text, ERROR_TEXT, b"body of %llu bytes is over the limit of %u",
             <unsigned long long>call.body_length, self.max_body)
    self.out = put_text(self, self.out, call.func_id, call.request_id, ILLEGAL_PARAMS, text)
    count(self, ROW_UNKNOWN, COLUMN_ILLEGAL_PARAMS)


cdef void refuse_function(ServerFrames self, const gob_call_t* call) noexcept:
    cdef char[ERROR_TEXT] text
    snprintf(text, ERROR_TEXT, b"no function 0x%08x here", call.func_id)
    self.out = put_text(self, self.out, call.func_id, call.request_id, UNSUPPORTED_COMMAND, text)
    count(self, ROW_UNKNOWN, COLUMN_UNSUPPORTED_COMMAND)


cdef void refuse_method(ServerFrames self, const gob_call_t* call) noexcept:
    """A call of a service or a method that are not here, in net/rpc's own words."""
    cdef char[ERROR_TEXT + 64] text  # longer than what and a name
    cdef const char* what = b"rpc: service/method request ill-formed: "
    cdef int length = <int>call.method_length
    cdef int dot = length - 1
    while dot >= 0 and call.method[dot] != c".":
        dot -= 1
    if dot >= 0:
        what = b"rpc: can't find service "
        if is_text(call.method, dot, GOB_SERVICE):
            what = b"rpc: can't find method "
    memcpy(text, what, strlen(what))
    memcpy(text + strlen(what), call.method, length)  # which may have zeros in it
    refuse_call_of(self, call.method, length, text, strlen(what) + length, UNSUPPORTED_COMMAND)


cdef void refuse_main(ServerFrames self, const char* text) noexcept:
    """A call of the method with an argument that it does not take."""
    refuse_call_of(self, GOB_MAIN_METHOD, strlen(GOB_MAIN_METHOD), text, strlen(text),
                   ILLEGAL_PARAMS)


cdef void refuse_call_of(ServerFrames self, const void* method, uint64_t length,
                         const char* text, uint64_t text_length, uint32_t code) noexcept:
    """The reply to a call that did not come to the method."""
    self.out = gob_put_definitions(&self.net_rpc.gob, self.out, GOB_SENT_RESPONSE)
    self.out = gob_put_response(self.out, method, length, self.net_rpc.seq, text,
                                text_length)
    self.out = gob_put_definitions(&self.net_rpc.gob, self.out, GOB_SENT_NOTHING)
    self.out = gob_put_nothing(self.out)
    count(self, ROW_UNKNOWN, column_of(code))


cdef int end_calls(ServerFrames self, int fault) except -1:
    """What comes is no gob that net/rpc sends, or over a limit: no more of it is looked at."""
    cdef char[ERROR_TEXT] text
    self.close_text = GOB_FAULTS[fault]
    if fault == GOB_TOO_LONG and self.net_rpc.stage == NEXT_ARGUMENT:
        snprintf(text, ERROR_TEXT, b"the argument is over the limit of %u bytes for a body; "
                 b"closing the connection", self.max_body)
        refuse_main(self, text)
    elif self.net_rpc.gob.type_count == 0 and looks_like_iproto(self):
        self.close_text = SPEAKS_IPROTO
    return begin_close(self, CloseReason.BODY_TOO_LARGE if fault == GOB_TOO_LONG
                       else CloseReason.BAD_GOB)


cdef bint looks_like_iproto(ServerFrames self) except -1:
    """Whether the connection began with the header of a function that is here."""
    cdef uint32_t func_id = load_le32(self.first_header)
    return (self.received >= HEADER_BYTES
            and row_of(known_functions(self), func_id) != ROW_UNKNOWN)


cdef bint looks_like_net_rpc(const uint8_t* first) noexcept nogil:
    """Whether a connection's first 12 bytes define a type with the name Request, as gob."""
    return (first[0] < 0x80 and first[1] >= 0xFC
            and (memcmp(first + 3, b"\x03\x01\x01\x07Reque", 9) == 0
                 or memcmp(first + 4, b"\x03\x01\x01\x07Requ", 8) == 0))
