/* One pass over a body of MsgPack before anything is built of it. Plain C11;
   nothing of Python, and nothing of the store. */

#ifndef IPROTO_BODYCHECK_H
#define IPROTO_BODYCHECK_H

#include <stdint.h>

#include "wire.h"

/* Containers within one another that max_depth may allow at most. Bounds the
   check's own stack (4 KiB), and the recursion of whatever decodes the body. */
#define BODY_DEPTH_CEILING 512

enum {
    BODY_FITS = 0,
    BODY_CUT_SHORT,      /* a head claims more than the bytes that are left */
    BODY_BAD_HEAD,       /* 0xc1 */
    BODY_OBJECTS,        /* over max_objects */
    BODY_DEPTH,          /* over max_depth */
    BODY_KEYS            /* over max_keys */
};

/* Which array elements count against max_keys, as map keys do: for functions
   that make sets of them. str and bin are hashed with a secret, so that nobody
   can choose them to collide; COUNT_ALL is for text that becomes numbers. */
enum { COUNT_NONE = 0, COUNT_NUMBERS = 1, COUNT_ALL = 2 };

typedef struct {
    uint32_t max_objects; /* of the whole body: keys and nested ones too */
    uint32_t max_depth;   /* 1..BODY_DEPTH_CEILING */
    uint32_t max_keys;    /* keys that are neither str nor bin; see above */
    int counted;          /* COUNT_... */
} body_limits_t;

typedef struct {
    uint32_t objects;  /* one after the other, on the outermost level */
    uint32_t elements; /* of the array, if the first object is one; else 0 */
    int is_array;      /* whether the first object is one */
    uint32_t last;     /* where the last outermost object begins */
} body_shape_t;

/* One object of one byte: small ints, nil, booleans, and what is empty. */
static inline int is_single(unsigned char head) {
    static const uint64_t singles[4] = {
        UINT64_MAX, UINT64_MAX, UINT64_C(1) | UINT64_C(1) << 16 | UINT64_C(1) << 32,
        UINT64_C(1) | UINT64_C(1) << 2 | UINT64_C(1) << 3 | UINT64_C(0xFFFFFFFF) << 32,
    };
    return (int)(singles[head >> 6] >> (head & 63) & 1);
}

static inline int is_text(unsigned char head) {
    return (head & 0xE0) == 0xA0 || (head >= 0xC4 && head <= 0xC6) ||
           (head >= 0xD9 && head <= 0xDB);
}

/* Reads the head at `at`. Returns the object's bytes without its children, 0
   if it is no head, over `left` if it is cut short; `children` gets how many
   objects belong to it, `is_map` whether they are keys and values. */
static inline uint64_t read_head(const unsigned char *at, uint64_t left, uint64_t *children,
                                 int *is_map) {
    unsigned char head = at[0];
    uint64_t width;
    *children = 0;
    *is_map = 0;
    if (is_single(head)) return 1;
    if (head < 0x90) {
        *is_map = 1;
        *children = 2 * (uint64_t)(head & 0x0F);
        return 1;
    }
    if (head < 0xA0) {
        *children = head & 0x0F;
        return 1;
    }
    if (head < 0xC0) return 1 + (uint64_t)(head & 0x1F);
    switch (head) {
    case 0xC4: case 0xC5: case 0xC6: /* bin */
    case 0xD9: case 0xDA: case 0xDB: /* str */
    case 0xC7: case 0xC8: case 0xC9: /* ext: a type byte too */
        width = UINT64_C(1) << (head >= 0xD9 ? head - 0xD9 : (head - 0xC4) % 3);
        if (left < 1 + width) return left + 1;
        return 1 + width + (head >= 0xC7 && head <= 0xC9) + load_be(at + 1, (int)width);
    case 0xCA: return 5; /* floats */
    case 0xCB: return 9;
    case 0xCC: case 0xCD: case 0xCE: case 0xCF: /* ints */
    case 0xD0: case 0xD1: case 0xD2: case 0xD3:
        return 1 + (UINT64_C(1) << ((head - 0xCC) & 3));
    case 0xD4: case 0xD5: case 0xD6: case 0xD7: case 0xD8: /* fixext */
        return 2 + (UINT64_C(1) << (head - 0xD4));
    case 0xDC: case 0xDD: case 0xDE: case 0xDF: /* array, map */
        width = head & 1 ? 4 : 2;
        if (left < 1 + width) return left + 1;
        *is_map = head >= 0xDE;
        *children = load_be(at + 1, (int)width) << *is_map;
        return 1 + width;
    default: return 0;
    }
}

/* Objects that are still to come in a container; `map`: keys and values. */
typedef struct {
    uint32_t left;
    uint32_t map;
} body_level_t;

/* What the first outermost object of a body is, for check_body. */
static inline void note_first(body_shape_t *shape, unsigned char head, uint64_t children) {
    shape->is_array = (head & 0xF0) == 0x90 || head == 0xDC || head == 0xDD;
    shape->elements = shape->is_array ? (uint32_t)children : 0;
}

/* Whether a body may be decoded, and its outermost shape; BODY_... */
static inline int check_body(const unsigned char *body, uint32_t size,
                             const body_limits_t *limits, body_shape_t *shape) {
    body_level_t outer[BODY_DEPTH_CEILING]; /* of the containers that are open */
    const unsigned char *at = body, *const end = body + size;
    /* The outermost level ends with the body: it is begun with one more than fits. */
    body_level_t level = {size + 1, 0};
    uint64_t objects = 0, keys = 0, children, length;
    uint32_t depth = 0;
    int is_map;
    shape->objects = shape->elements = 0;
    shape->is_array = 0;
    shape->last = 0;
    for (;;) {
        /* Runs of objects of one byte, for of these a body holds most. */
        if (!level.map && limits->counted == COUNT_NONE) {
            const unsigned char *run = at, *stop = end;
            if ((uint64_t)(end - at) > level.left) stop = at + level.left;
            if (at < stop && depth == 0 && objects == 0) note_first(shape, *at, 0);
            while (at < stop && is_single(*at)) at++;
            objects += (uint64_t)(at - run);
            level.left -= (uint32_t)(at - run);
            if (objects > limits->max_objects) return BODY_OBJECTS;
        }
        while (depth && level.left == 0) level = outer[--depth];
        if (depth == 0) {
            shape->objects = size + 1 - level.left;
            if (at == end) return BODY_FITS;
            shape->last = (uint32_t)(at - body);
        }
        if (at == end) return BODY_CUT_SHORT;
        if (level.map ? !(level.left & 1) : depth && limits->counted != COUNT_NONE) {
            keys += !is_text(*at) || limits->counted == COUNT_ALL;
            if (keys > limits->max_keys) return BODY_KEYS;
        }
        length = read_head(at, (uint64_t)(end - at), &children, &is_map);
        if (length == 0) {
            shape->last = (uint32_t)(at - body);
            return BODY_BAD_HEAD;
        }
        if ((uint64_t)(end - at) < length) return BODY_CUT_SHORT;
        if (objects == 0) note_first(shape, *at, children);
        if (++objects > limits->max_objects) return BODY_OBJECTS;
        level.left--;
        at += length;
        if (children) {
            if ((uint64_t)(end - at) < children) return BODY_CUT_SHORT;
            if (depth == limits->max_depth) return BODY_DEPTH;
            outer[depth++] = level;
            level.left = (uint32_t)children;
            level.map = (uint32_t)is_map;
        }
    }
}

#endif
