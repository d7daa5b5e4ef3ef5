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

/* Bytes of an object by its head, where the head alone tells them and no other objects
   belong to it: numbers, nil, booleans, short strings, ext of fixed size, empty arrays
   and maps. 0: a container, something with a length behind its head, or no head. */
static const uint8_t BODY_PLAIN[256] = {
#define EIGHT(a) a, a, a, a, a, a, a, a
#define UP(a) a, a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, a + 7
    EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1),
    EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1),
    1, 0, 0, 0, 0, 0, 0, 0, EIGHT(0), /* 0x80: maps */
    1, 0, 0, 0, 0, 0, 0, 0, EIGHT(0), /* 0x90: arrays */
    UP(1), UP(9), UP(17), UP(25), /* 0xa0: strings */
    1, 0, 1, 1, 0, 0, 0, 0, /* 0xc0: nil, no head, false, true, bin */
    0, 0, 5, 9, 2, 3, 5, 9, /* 0xc8: ext, floats, unsigned ints */
    2, 3, 5, 9, 3, 4, 6, 10, /* 0xd0: signed ints, ext of fixed size */
    18, 0, 0, 0, 0, 0, 0, 0, /* 0xd8 */
    EIGHT(1), EIGHT(1), EIGHT(1), EIGHT(1), /* 0xe0: negative ints */
#undef EIGHT
#undef UP
};

static inline int is_text(unsigned char head) {
    return (head & 0xE0) == 0xA0 || (head >= 0xC4 && head <= 0xC6) ||
           (head >= 0xD9 && head <= 0xDB);
}

/* Reads a head that is not in BODY_PLAIN. Returns the object's bytes without its children, 0
   if it is no head, over `left` if it is cut short; `children` gets how many
   objects belong to it, `is_map` whether they are keys and values. */
static inline uint64_t read_head(const unsigned char *at, uint64_t left, uint64_t *children,
                                 uint32_t *is_map) {
    unsigned char head = at[0];
    uint64_t width;
    *children = 0;
    *is_map = 0;
    if (head < 0xA0) {
        *is_map = head < 0x90;
        *children = (uint64_t)(head & 0x0F) << *is_map;
        return 1;
    }
    if (head == 0xC1) return 0;
    if (head >= 0xDC) { /* array, map */
        width = head & 1 ? 4 : 2;
        if (left < 1 + width) return left + 1;
        *is_map = head >= 0xDE;
        *children = load_be(at + 1, (int)width) << *is_map;
        return 1 + width;
    }
    /* bin, str; ext has a type byte too */
    width = UINT64_C(1) << (head >= 0xD9 ? head - 0xD9 : (head - 0xC4) % 3);
    if (left < 1 + width) return left + 1;
    return 1 + width + (head >= 0xC7 && head <= 0xC9) + load_be(at + 1, (int)width);
}

/* A container whose objects are not all there yet. */
typedef struct {
    uint32_t left; /* objects; of a map, keys and values */
    uint8_t counts; /* whether the next one counts against max_keys, */
    uint8_t alternates; /* and whether the one behind it is the other way round: in a map */
} body_level_t;

/* What the first outermost object of a body is, for check_body. */
static inline void note_first(body_shape_t *shape, unsigned char head, uint64_t children) {
    shape->is_array = (head & 0xF0) == 0x90 || head == 0xDC || head == 0xDD;
    shape->elements = shape->is_array ? (uint32_t)children : 0;
}

/* Objects of one byte in a row after which as many are looked at together. */
#define A_ROW 8

/* Skips objects of one byte, A_ROW at a time; returns how many. */
static inline uint32_t skip_singles(const unsigned char *at, uint64_t size, body_level_t *level,
                                    uint8_t counts_text, uint64_t *keys) {
    uint32_t skipped = 0;
    for (; level->left >= A_ROW && size - skipped >= A_ROW; skipped += A_ROW) {
        const unsigned char *row = at + skipped;
        uint8_t others = 0, even = 0, odd = 0;
        for (int i = 0; i < A_ROW; i++) others |= BODY_PLAIN[row[i]] ^ 1;
        if (others) break;
        level->left -= A_ROW;
        if (!(level->counts | level->alternates)) continue;
        for (int i = 0; i < A_ROW; i += 2) {
            even = (uint8_t)(even + (counts_text | !is_text(row[i])));
            odd = (uint8_t)(odd + (counts_text | !is_text(row[i + 1])));
        }
        if (level->counts) *keys += even;
        if (level->counts ^ level->alternates) *keys += odd;
    }
    return skipped;
}

/* So that a compiler does not put the one value in the place of the other. */
#if defined(__GNUC__)
#define HIDE_FROM_COMPILER(x) __asm__("" : "+r"(x))
#else
#define HIDE_FROM_COMPILER(x) (void)(x)
#endif

/* Whether a body may be decoded, and its outermost shape; BODY_... */
static inline int check_body(const unsigned char *body, uint32_t size,
                             const body_limits_t *limits, body_shape_t *shape) {
    body_level_t outer[BODY_DEPTH_CEILING]; /* of the containers that are open */
    /* The outermost level ends with the body: it is begun with one more than fits. */
    body_level_t level = {size + 1, 0, 0};
    const uint8_t counts_elements = limits->counted != COUNT_NONE;
    const uint8_t counts_text = limits->counted == COUNT_ALL;
    uint64_t objects = 0, keys = 0, children, length, at = 0;
    uint32_t depth = 0, is_map, begun;
    /* Bytes of the last object without children, and how many in a row had as many. A
       processor that has guessed `step` need not wait for the table to know where the next
       object begins. */
    uint64_t step = 1;
    uint32_t row = 0;
    shape->objects = shape->elements = 0;
    shape->is_array = 0;
    shape->last = 0;
    if (size) note_first(shape, body[0], 0);
    for (;;) {
        uint32_t before = level.left;
        begun = (uint32_t)at;
        while (level.left && at < size) {
            unsigned char head = body[at];
            uint8_t plain = BODY_PLAIN[head];
            if (plain == 0) break;
            begun = (uint32_t)at;
            keys += level.counts & (counts_text | !is_text(head));
            level.counts ^= level.alternates;
            level.left--;
            if (plain != step) {
                step = plain;
                row = 0;
                HIDE_FROM_COMPILER(step);
            }
            at += step;
            if (++row % A_ROW == 0 && step == 1) {
                uint32_t singles = skip_singles(body + at, size - at, &level, counts_text, &keys);
                begun = (uint32_t)at + singles - (singles != 0);
                at += singles;
            }
        }
        objects += before - level.left;
        if (keys > limits->max_keys) return BODY_KEYS;
        if (objects > limits->max_objects) return BODY_OBJECTS;
        if (at > size) {
            if (depth == 0) shape->last = begun;
            return BODY_CUT_SHORT;
        }
        while (depth && level.left == 0) level = outer[--depth];
        if (depth == 0) {
            shape->objects = size + 1 - level.left;
            if (at == size) return BODY_FITS;
            shape->last = (uint32_t)at;
        }
        if (at == size) return BODY_CUT_SHORT;
        if (BODY_PLAIN[body[at]]) continue; /* behind the container that has just ended */
        keys += level.counts & (counts_text | !is_text(body[at]));
        if (keys > limits->max_keys) return BODY_KEYS;
        length = read_head(body + at, size - at, &children, &is_map);
        if (length == 0) {
            shape->last = (uint32_t)at;
            return BODY_BAD_HEAD;
        }
        if (size - at < length) return BODY_CUT_SHORT;
        if (objects == 0) note_first(shape, body[at], children);
        if (++objects > limits->max_objects) return BODY_OBJECTS;
        level.left--;
        level.counts ^= level.alternates;
        at += length;
        if (children) {
            if (size - at < children) return BODY_CUT_SHORT;
            if (depth == limits->max_depth) return BODY_DEPTH;
            outer[depth++] = level;
            level.left = (uint32_t)children;
            level.alternates = (uint8_t)is_map;
            level.counts = counts_elements | (uint8_t)is_map;
        }
    }
}

#endif
