# wire.h: integers as the wire has them, and the few types of MsgPack.

cdef extern from "wire.h" nogil:
    uint32_t load_le32(const uint8_t* p) noexcept
    void store_le32(uint8_t* p, uint32_t value) noexcept
    uint64_t load_be(const uint8_t* p, int width) noexcept
    void store_be(uint8_t* p, uint64_t value, int width) noexcept
    int64_t short_uint(const uint8_t* p, uint32_t size) noexcept

    ctypedef struct cursor_t:
        const uint8_t* at
        const uint8_t* end

    int read_int(cursor_t* c, int64_t* value) noexcept
    int read_str(cursor_t* c, const uint8_t** text, uint32_t* length) noexcept
    int read_container(cursor_t* c, uint8_t fix, uint8_t wide) noexcept
    uint32_t str_head_size(uint64_t length) noexcept
    uint8_t* put_str_head(uint8_t* out, uint32_t length) noexcept
    uint8_t* put_int(uint8_t* out, int64_t value) noexcept
