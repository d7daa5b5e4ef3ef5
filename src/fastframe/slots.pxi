# slots.h: the bytes that count, writing them, and the hash by which damage is found.

cdef extern from "slots.h" nogil:
    uint32_t slot_hash(uint32_t index, const uint8_t* bytes, uint32_t length) noexcept
    uint32_t slot_length(const slot_t* slot) noexcept
    const uint8_t* slot_bytes(const slot_t* slot) noexcept
    void slot_write(const handle_t* h, uint32_t index, const uint8_t* content,
                    uint32_t length) noexcept
    bint has_head(slot_t* slot) noexcept
    bint is_whole(const slot_t* slot, uint32_t index, uint32_t which) noexcept
    int whole_copy(const slot_t* slot, uint32_t index) noexcept
