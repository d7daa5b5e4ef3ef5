/* gob as Go's net/rpc sends it, as far as a server of one method needs it. Plain C11;
   nothing of Python, and nothing of the store.

   A stream is messages: a length, then a type's id and a value, or a negative id and the
   definition of that type. A call is two values, rpc.Request and the method's argument;
   definitions may come before each. The sender chooses the ids, so definitions are read;
   of values the fields that are looked for are found by their names, and others are
   skipped.

   Everything that a client can make grow has a limit here; a message's length is the
   caller's to bound. */

#ifndef IPROTO_GOB_H
#define IPROTO_GOB_H

#include <stdint.h>
#include <string.h>

#include "wire.h"

/* Of one connection: types, and fields of them all. A client of one method defines 3
   types with 7 fields; one that is asked for methods which are not here may define more. */
#define GOB_TYPES 32
#define GOB_FIELDS 128
/* Structs within one another in a value; a request has 2. */
#define GOB_DEPTH 8
/* Bytes of a method's name. */
#define GOB_METHOD 255

/* Ids of types that need no definition. */
enum {
    GOB_BOOL = 1,
    GOB_INT = 2,
    GOB_UINT = 3,
    GOB_FLOAT = 4,
    GOB_BYTES = 5,
    GOB_STRING = 6,
    GOB_COMPLEX = 7,
    GOB_FIRST_OWN = 64
};

/* What a function of this file finds. All after GOB_MISFIT end the stream. */
enum {
    GOB_FITS,
    GOB_PARTIAL, /* the message is not complete */
    GOB_MISFIT,  /* a value that is well-formed, and not what the method takes */
    GOB_TOO_LONG,
    GOB_NUMBER,
    GOB_CUT_SHORT,
    GOB_TRAILING,
    GOB_EMPTY,
    GOB_ID,
    GOB_REDEFINED,
    GOB_UNDEFINED,
    GOB_DEFINITION,
    GOB_TOO_MANY,
    GOB_TOO_DEEP,
    GOB_OPAQUE_FIELD,
    GOB_FIELD_NUMBER,
    GOB_NO_CALL,
    GOB_LONG_METHOD
};

/* Fields that are looked for. */
enum {
    GOB_NONE,
    GOB_SERVICE_METHOD,
    GOB_SEQ,
    GOB_HEADER,
    GOB_BODY,
    GOB_FUNC_ID,
    GOB_BODY_LENGTH,
    GOB_REQUEST_ID
};

/* What a struct is read as: a field counts only where it belongs. */
enum { GOB_AS_CALL, GOB_AS_ARGUMENT, GOB_AS_HEADER, GOB_AS_NOTHING };

typedef struct {
    int32_t id;
    /* A type that is no struct is known by its id alone: values of it are skipped. */
    uint8_t is_struct;
    uint8_t first; /* of its fields */
    uint8_t count;
} gob_type_t;

typedef struct {
    int32_t type;
    uint8_t role;
} gob_field_t;

/* What a connection keeps from message to message. */
typedef struct {
    gob_type_t types[GOB_TYPES];
    gob_field_t fields[GOB_FIELDS];
    uint8_t type_count;
    uint8_t field_count;
    /* Definitions that have been sent. */
    uint8_t sent;
} gob_t;

/* A call, as far as its values have been read. */
typedef struct {
    const unsigned char *method;
    uint64_t seq;
    const unsigned char *body;
    uint64_t method_length;
    uint64_t body_length; /* of body, not what the header says */
    uint32_t func_id;
    uint32_t request_id;
} gob_call_t;

/* Integers and strings. */

static inline int gob_uint(cursor_t *c, uint64_t *value) {
    int width;
    if (c->at >= c->end) return GOB_CUT_SHORT;
    if (c->at[0] < 0x80) {
        *value = *c->at++;
        return GOB_FITS;
    }
    width = 256 - c->at[0];
    if (width > 8) return GOB_NUMBER;
    if (c->end - c->at <= width) return GOB_CUT_SHORT;
    *value = load_be(c->at + 1, width);
    c->at += 1 + width;
    return GOB_FITS;
}

static inline int gob_int(cursor_t *c, int64_t *value) {
    uint64_t raw;
    int found = gob_uint(c, &raw);
    if (found == GOB_FITS) *value = (int64_t)(raw >> 1) ^ -(int64_t)(raw & 1);
    return found;
}

static inline int gob_bytes(cursor_t *c, const unsigned char **bytes, uint64_t *length) {
    int found = gob_uint(c, length);
    if (found != GOB_FITS) return found;
    if (*length > (uint64_t)(c->end - c->at)) return GOB_CUT_SHORT;
    *bytes = c->at;
    c->at += *length;
    return GOB_FITS;
}

/* Messages. */

/* The message that the data begins with: its first id, and what follows that. An id that
   nobody sends is told before the rest has come, for what is no gob may never bring it. */
static inline int gob_message(const unsigned char *data, uint64_t size, uint64_t most,
                              cursor_t *payload, int64_t *id) {
    cursor_t c = {data, data + size};
    uint64_t length;
    int is_whole;
    int found = gob_uint(&c, &length);
    if (found != GOB_FITS) return found == GOB_CUT_SHORT ? GOB_PARTIAL : found;
    if (length == 0) return GOB_EMPTY;
    if (length > most) return GOB_TOO_LONG;
    is_whole = length <= (uint64_t)(c.end - c.at);
    if (is_whole) c.end = c.at + length;
    found = gob_int(&c, id);
    if (found == GOB_CUT_SHORT && !is_whole) return GOB_PARTIAL;
    if (found != GOB_FITS) return found;
    if (*id > INT32_MAX || *id < -INT32_MAX || (*id <= 0 && *id > -GOB_FIRST_OWN)) return GOB_ID;
    *payload = c;
    return is_whole ? GOB_FITS : GOB_PARTIAL;
}

static inline const gob_type_t *gob_type(const gob_t *g, int64_t id) {
    for (int i = 0; i < g->type_count; i++)
        if (g->types[i].id == id) return &g->types[i];
    return NULL;
}

#endif
