/* Slots: the bytes that count, writing them, and the hash by which damage is found. */

#ifndef IPROTO_SLOTS_H
#define IPROTO_SLOTS_H

#include <string.h>

#include "layout.h"

/* memcpy through libc: where the compiler knows that the size is at most a
   few hundred it may put "rep movs" in place, which takes long to begin. */
static inline void copy(void *to, const void *from, size_t size) {
#if defined(__GNUC__)
    __asm__("" : "+r"(size));
#endif
    memcpy(to, from, size);
}

/* Hash of one copy of a slot: its place, its length, its bytes, 8 at a time.
   It has to notice damage (a page that was not written, bytes that flipped,
   a slot in another's place), not to resist somebody who wants to deceive
   it: who can write the file can write its hashes. Each step is a bijection
   of the state and of the word taken in, so that no change of one word is
   lost on the way; any other goes unnoticed once in 2^32. Zeros do not hash
   to zero, so that a slot that was wiped is noticed. */
static inline uint32_t slot_hash(uint32_t index, const unsigned char *bytes, uint32_t length) {
    const uint64_t odd = 0x9e3779b97f4a7c15ull;
    uint64_t state = ((uint64_t)length << 32 | index) * odd + odd;
    uint64_t word;
    for (; length >= 8; length -= 8, bytes += 8) {
        __builtin_memcpy(&word, bytes, 8);
        state = (state ^ word) * odd;
        state ^= state >> 29;
    }
    word = 0;
    copy(&word, bytes, length);
    state = (state ^ word) * odd;
    return (uint32_t)(state >> 32);
}

static inline uint32_t slot_length(const slot_t *slot) { return slot->length[slot->current & 1]; }

static inline const unsigned char *slot_bytes(const slot_t *slot) {
    return slot->bytes[slot->current & 1];
}

static inline void slot_write(const handle_t *h, uint32_t index, const unsigned char *content,
                              uint32_t length) {
    slot_t *slot = &h->slots[index];
    uint32_t next = ~slot->current;
    uint32_t other = next & 1;
    copy(slot->bytes[other], content, length);
    slot->length[other] = length;
    if (h->checked) slot->check[other] = slot_hash(index, content, length);
    store_release(&slot->current, next);
}

/* Whether the slot can be read at all; others may be at work in it. */
static inline int has_head(slot_t *slot) {
    uint32_t current = load_relaxed(&slot->current);
    if (current != 0 && current != 0xFFFFFFFFu) return 0;
    return slot->length[current & 1] <= SLOT_BYTES;
}

static inline int is_whole(const slot_t *slot, uint32_t index, uint32_t which) {
    uint32_t length = slot->length[which];
    if (length > SLOT_BYTES) return 0;
    return slot->check[which] == slot_hash(index, slot->bytes[which], length);
}

/* The copy that a damaged slot can have, 0 or 1; -1 if neither is whole. Both
   may be, where only the word that says which one counts is damaged. */
static inline int whole_copy(const slot_t *slot, uint32_t index) {
    uint32_t other = ~slot->current & 1;
    if (is_whole(slot, index, other)) return (int)other;
    return is_whole(slot, index, other ^ 1) ? (int)(other ^ 1) : -1;
}

#endif
