/* The MsgPack that iproto's and Tarantool's frames are laid out with. */
#ifndef BENCHMARKS_MSGPACK_H
#define BENCHMARKS_MSGPACK_H

#include <stdint.h>
#include <string.h>

static inline size_t put_index(uint8_t *out, unsigned slot)
{
    if (slot < 128) {
        out[0] = (uint8_t)slot;
        return 1;
    }
    if (slot < 256) {
        out[0] = 0xcc;
        out[1] = (uint8_t)slot;
        return 2;
    }
    out[0] = 0xcd;
    out[1] = (uint8_t)(slot >> 8);
    out[2] = (uint8_t)slot;
    return 3;
}

static inline size_t put_string(uint8_t *out, const uint8_t *value, size_t size)
{
    size_t head;
    if (size < 32) {
        out[0] = (uint8_t)(0xa0 | size);
        head = 1;
    } else if (size < 256) {
        out[0] = 0xd9;
        out[1] = (uint8_t)size;
        head = 2;
    } else {
        out[0] = 0xda;
        out[1] = (uint8_t)(size >> 8);
        out[2] = (uint8_t)size;
        head = 3;
    }
    memcpy(out + head, value, size);
    return head + size;
}

#endif
