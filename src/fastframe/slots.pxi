# slots.h: the bytes that count, writing them, and the hash by which damage is found.

cdef extern from "slots.h" nogil:
    void copy_bytes "copy"(void* to, const void* source, size_t size) noexcept

    ctypedef struct content_t:
        const uint8_t* bytes
        uint32_t length

    bint slot_read(const handle_t* h, uint32_t index, content_t* content) noexcept
    void slot_write(const handle_t* h, uint32_t index, const uint8_t* content,
                    uint32_t length) noexcept
    void slot_lay_out(const handle_t* h, uint32_t index) noexcept
    uint32_t word_for(uint32_t index, uint32_t copy) noexcept
    bint slot_is_whole(const handle_t* h, uint32_t index) noexcept
    int whole_copy(const slot_t* slot, uint32_t index) noexcept
