/* Integers as the wire has them, and the few types of MsgPack that the built-in
   functions take. Plain C11; nothing of Python, and nothing of the store. */

#ifndef IPROTO_WIRE_H
#define IPROTO_WIRE_H

#include <stdint.h>

/* Loads and stores of integers; memcpy, for a frame may start at any address. */

static inline uint32_t load_le32(const unsigned char *p) {
    uint32_t v;
    __builtin_memcpy(&v, p, 4);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

static inline void store_le32(unsigned char *p, uint32_t v) {
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    __builtin_memcpy(p, &v, 4);
}

static inline uint64_t load_be(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    for (int i = 0; i < bytes; i++) v = v << 8 | p[i];
    return v;
}

static inline void store_be(unsigned char *p, uint64_t v, int bytes) {
    for (int i = bytes - 1; i >= 0; i--, v >>= 8) p[i] = (unsigned char)v;
}

/* The body of a read that is one int in its shortest form, as nearly all
   are: in one look. -1: it is something else. */
static inline int64_t short_uint(const unsigned char *p, uint32_t size) {
    if (size == 3 && p[0] == 0xCD) return p[1] << 8 | p[2];
    if (size == 1 && p[0] < 0x80) return p[0];
    if (size == 2 && p[0] == 0xCC) return p[1];
    return -1;
}

/* What is left of a body. Every read of MsgPack goes through a cursor with its
   end, and says 0 when it succeeded. */
typedef struct {
    const unsigned char *at;
    const unsigned char *end;
} cursor_t;

/* An integer of any width, signed or unsigned; over int64 it saturates. */
static inline int read_int(cursor_t *c, int64_t *value) {
    unsigned char head;
    int width;
    uint64_t raw;
    if (c->at >= c->end) return -1;
    head = c->at[0];
    if (head < 0x80) {
        *value = head;
        c->at += 1;
        return 0;
    }
    if (head >= 0xE0) {
        *value = (int64_t)head - 256;
        c->at += 1;
        return 0;
    }
    if (head < 0xCC || head > 0xD3) return -1;
    width = 1 << ((head - 0xCC) & 3);
    if (c->end - c->at < 1 + width) return -1;
    raw = load_be(c->at + 1, width);
    c->at += 1 + width;
    if (head >= 0xD0 && width < 8)
        *value = (int64_t)(raw << (64 - 8 * width)) >> (64 - 8 * width);
    else if (head < 0xD0 && raw >> 63)
        *value = INT64_MAX;
    else
        *value = (int64_t)raw;
    return 0;
}

/* A str of any width, whole within the cursor. */
static inline int read_str(cursor_t *c, const unsigned char **text, uint32_t *length) {
    unsigned char head;
    int width = 0;
    uint64_t size;
    if (c->at >= c->end) return -1;
    head = c->at[0];
    if (head >= 0xA0 && head <= 0xBF) {
        size = head & 0x1F;
    } else if (head >= 0xD9 && head <= 0xDB) {
        width = 1 << (head - 0xD9);
        if (c->end - c->at < 1 + width) return -1;
        size = load_be(c->at + 1, width);
    } else {
        return -1;
    }
    if ((uint64_t)(c->end - c->at) < 1 + (uint64_t)width + size) return -1;
    *text = c->at + 1 + width;
    *length = (uint32_t)size;
    c->at += 1 + (uint64_t)width + size;
    return 0;
}

/* Elements of an array or map head of any width, -1 if it is not one.
   `fix` is the first byte of its short form (0x90 or 0x80), `wide` that of
   its 16-bit form (0xdc or 0xde), which the 32-bit form follows. */
static inline int read_container(cursor_t *c, unsigned char fix, unsigned char wide) {
    unsigned char head;
    int width;
    uint64_t count;
    if (c->at >= c->end) return -1;
    head = c->at[0];
    if ((head & 0xF0) == fix) {
        c->at += 1;
        return head & 0x0F;
    }
    if (head != wide && head != wide + 1) return -1;
    width = head == wide ? 2 : 4;
    if (c->end - c->at < 1 + width) return -1;
    count = load_be(c->at + 1, width);
    c->at += 1 + width;
    /* More than any built-in function takes is all the same to the callers. */
    return count < 16 ? (int)count : 16;
}

static inline uint32_t str_head_size(uint64_t length) {
    if (length < 32) return 1;
    if (length < 0x100) return 2;
    return length < 0x10000 ? 3 : 5;
}

/* Writes the shortest str head; returns where the text goes. */
static inline unsigned char *put_str_head(unsigned char *out, uint32_t length) {
    uint32_t size = str_head_size(length);
    if (size == 1) {
        out[0] = (unsigned char)(0xA0 | length);
    } else {
        out[0] = size == 2 ? 0xD9 : size == 3 ? 0xDA : 0xDB;
        store_be(out + 1, length, (int)size - 1);
    }
    return out + size;
}

/* Writes the shortest form of an integer; returns the end. */
static inline unsigned char *put_int(unsigned char *out, int64_t value) {
    int width;
    if (value >= -32 && value < 0x80) {
        out[0] = (unsigned char)value;
        return out + 1;
    }
    if (value >= 0) {
        width = value < 0x100 ? 1 : value < 0x10000 ? 2 : value >> 32 == 0 ? 4 : 8;
        out[0] = width == 1 ? 0xCC : width == 2 ? 0xCD : width == 4 ? 0xCE : 0xCF;
    } else {
        width = value >= -0x80 ? 1 : value >= -0x8000 ? 2 : value >= INT32_MIN ? 4 : 8;
        out[0] = width == 1 ? 0xD0 : width == 2 ? 0xD1 : width == 4 ? 0xD2 : 0xD3;
    }
    store_be(out + 1, (uint64_t)value, width);
    return out + 1 + width;
}

#endif
