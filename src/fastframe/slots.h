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

/* `current` of a slot whose first copy counts; with all bits flipped, its second one.
   The two differ in all 32 bits, each in 8 at least from zeros and from all ones, and in
   7 at least from those of every other slot: damage does not make one of the other. */
static inline uint32_t current_word(uint32_t index) {
    return index * 0xffed1a3du + 0xc9e26af4u;
}

static inline uint32_t word_for(uint32_t index, uint32_t copy) {
    return current_word(index) ^ (0 - copy);
}

/* Which copy counts, 0 or 1; more if `current` is damaged. */
static inline uint32_t which_counts(const slot_t *slot, uint32_t index) {
    return 0 - (load_relaxed(&slot->current) ^ current_word(index));
}

typedef struct {
    const unsigned char *bytes;
    uint32_t length;
} content_t;

/* What counts of a slot, under the lock; 0 if it is unknown, or too long. */
static inline int slot_read(const handle_t *h, uint32_t index, content_t *content) {
    const slot_t *slot = slot_at(h, index);
    uint32_t which = which_counts(slot, index);
    if (unlikely_so(which > 1)) return 0;
    content->length = load_relaxed(&slot->length[which]);
    content->bytes = slot->bytes[which];
    return !unlikely_so(content->length > SLOT_BYTES);
}

/* Writes a slot, whatever was in it. */
static inline void slot_write(const handle_t *h, uint32_t index, const unsigned char *content,
                              uint32_t length) {
    slot_t *slot = slot_at(h, index);
    uint32_t other = (which_counts(slot, index) & 1) ^ 1;
    copy(slot->bytes[other], content, length);
    store_relaxed(&slot->length[other], length);
    if (h->checked) slot->check[other] = slot_hash(index, content, length);
    store_release(&slot->current, word_for(index, other));
}

/* Makes a slot of zeros an empty one. */
static inline void slot_lay_out(const handle_t *h, uint32_t index) {
    slot_t *slot = slot_at(h, index);
    if (h->checked) slot->check[0] = slot_hash(index, slot->bytes[0], 0);
    store_release(&slot->current, word_for(index, 0));
}

static inline int is_whole(const slot_t *slot, uint32_t index, uint32_t which) {
    uint32_t length = slot->length[which];
    if (length > SLOT_BYTES) return 0;
    return slot->check[which] == slot_hash(index, slot->bytes[which], length);
}

/* Whether the copy that counts is what was written; nobody may be at work in it. */
static inline int slot_is_whole(const handle_t *h, uint32_t index) {
    const slot_t *slot = slot_at(h, index);
    uint32_t which = which_counts(slot, index);
    return which <= 1 && is_whole(slot, index, which);
}

/* The copy that a damaged slot can have, 0 or 1; -1 if neither is whole. Both are, where
   only `current` is damaged: then that is taken which its word is nearer to. */
static inline int whole_copy(const slot_t *slot, uint32_t index) {
    uint32_t which = which_counts(slot, index);
    uint32_t nearer = which <= 1 ? which
        : __builtin_popcount(slot->current ^ current_word(index)) > 16;
    if (is_whole(slot, index, nearer)) return (int)nearer;
    return is_whole(slot, index, nearer ^ 1) ? (int)(nearer ^ 1) : -1;
}

#endif
