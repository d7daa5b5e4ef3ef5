/* Calls of net/rpc out of gob: definitions of types, and the two values of a call. Plain
   C11. See gob.h. */

#ifndef IPROTO_GOBCALL_H
#define IPROTO_GOBCALL_H

#include "gob.h"

/* Definitions. */

static inline int gob_role(const unsigned char *name, uint64_t length) {
    static const struct {
        const char *name;
        uint8_t length;
        uint8_t role;
    } roles[] = {
        {"ServiceMethod", 13, GOB_SERVICE_METHOD}, {"Seq", 3, GOB_SEQ},
        {"Header", 6, GOB_HEADER},                 {"Body", 4, GOB_BODY},
        {"FuncID", 6, GOB_FUNC_ID},                {"BodyLength", 10, GOB_BODY_LENGTH},
        {"RequestID", 9, GOB_REQUEST_ID},
    };
    for (unsigned i = 0; i < sizeof roles / sizeof *roles; i++)
        if (roles[i].length == length && memcmp(roles[i].name, name, length) == 0)
            return roles[i].role;
    return GOB_NONE;
}

/* The next field of a struct: adds to `field` (-1 at first), or sets it to -1 at the end. */
static inline int gob_next_field(cursor_t *c, int count, int *field) {
    uint64_t delta;
    int found = gob_uint(c, &delta);
    if (found != GOB_FITS) return found;
    if (delta == 0)
        *field = -1;
    else if (delta > (uint64_t)(count - 1 - *field))
        return GOB_FIELD_NUMBER;
    else
        *field += (int)delta;
    return GOB_FITS;
}

/* CommonType: a name and an id, which the message has told before. */
static inline int gob_skip_common(cursor_t *c) {
    const unsigned char *name;
    uint64_t length;
    int64_t id;
    int field = -1;
    for (;;) {
        int found = gob_next_field(c, 2, &field);
        if (found != GOB_FITS || field < 0) return found;
        found = field == 0 ? gob_bytes(c, &name, &length) : gob_int(c, &id);
        if (found != GOB_FITS) return found;
    }
}

/* One field of a struct's definition: a name and the id of its type. */
static inline int gob_define_field(cursor_t *c, gob_field_t *defined) {
    const unsigned char *name;
    uint64_t length;
    int64_t id = 0;
    int field = -1;
    defined->role = GOB_NONE;
    for (;;) {
        int found = gob_next_field(c, 2, &field);
        if (found != GOB_FITS) return found;
        if (field < 0) break;
        if (field == 0) {
            found = gob_bytes(c, &name, &length);
            if (found == GOB_FITS) defined->role = (uint8_t)gob_role(name, length);
        } else {
            found = gob_int(c, &id);
        }
        if (found != GOB_FITS) return found;
    }
    if (id <= 0 || id > INT32_MAX) return GOB_ID;
    defined->type = (int32_t)id;
    return GOB_FITS;
}

static inline int gob_define_fields(gob_t *g, cursor_t *c, gob_type_t *type) {
    uint64_t count;
    int found = gob_uint(c, &count);
    if (found != GOB_FITS) return found;
    if (count > (uint64_t)(GOB_FIELDS - g->field_count)) return GOB_TOO_MANY;
    for (uint64_t i = 0; i < count; i++) {
        found = gob_define_field(c, &g->fields[g->field_count + i]);
        if (found != GOB_FITS) return found;
    }
    type->count = (uint8_t)count;
    return GOB_FITS;
}

/* wireType, of which StructT is read, and the others are noted. Where it fails the stream
   ends, so what it did to `g` until then does not matter. */
static inline int gob_define(gob_t *g, cursor_t c, int64_t id) {
    enum { STRUCT_T = 2, KINDS = 7 };
    gob_type_t *type = &g->types[g->type_count];
    int field = -1, found;
    if (gob_type(g, id) != NULL) return GOB_REDEFINED;
    if (g->type_count == GOB_TYPES) return GOB_TOO_MANY;
    *type = (gob_type_t){(int32_t)id, 0, g->field_count, 0};
    found = gob_next_field(&c, KINDS, &field);
    if (found != GOB_FITS) return found;
    if (field < 0) return GOB_DEFINITION;
    if (field == STRUCT_T) {
        type->is_struct = 1;
        field = -1;
        for (;;) {
            found = gob_next_field(&c, 2, &field);
            if (found != GOB_FITS) return found;
            if (field < 0) break;
            found = field == 0 ? gob_skip_common(&c) : gob_define_fields(g, &c, type);
            if (found != GOB_FITS) return found;
        }
        if (c.end - c.at != 1 || c.at[0] != 0) return GOB_TRAILING;
    }
    g->field_count = (uint8_t)(g->field_count + type->count);
    g->type_count++;
    return GOB_FITS;
}

/* Values. */

static inline int gob_struct(const gob_t *g, const gob_type_t *type, cursor_t *c, int as,
                             int depth, gob_call_t *call);

static inline int gob_skip(const gob_t *g, int32_t id, cursor_t *c, int depth) {
    const gob_type_t *type;
    const unsigned char *bytes;
    uint64_t number;
    int found;
    switch (id) {
    case GOB_BOOL:
    case GOB_INT:
    case GOB_UINT:
    case GOB_FLOAT:
        return gob_uint(c, &number);
    case GOB_BYTES:
    case GOB_STRING:
        return gob_bytes(c, &bytes, &number);
    case GOB_COMPLEX:
        found = gob_uint(c, &number);
        return found == GOB_FITS ? gob_uint(c, &number) : found;
    }
    type = gob_type(g, id);
    if (type == NULL || !type->is_struct) return GOB_OPAQUE_FIELD;
    return gob_struct(g, type, c, GOB_AS_NOTHING, depth + 1, NULL);
}

/* Whether a field counts in a struct that is read as this. */
static inline int gob_belongs(int role, int as) {
    switch (as) {
    case GOB_AS_CALL:
        return role == GOB_SERVICE_METHOD || role == GOB_SEQ;
    case GOB_AS_ARGUMENT:
        return role == GOB_HEADER || role == GOB_BODY;
    case GOB_AS_HEADER:
        return role >= GOB_FUNC_ID;
    }
    return 0;
}

static inline int gob_uint32(cursor_t *c, uint32_t *value) {
    uint64_t number;
    int found = gob_uint(c, &number);
    if (found == GOB_FITS && number > UINT32_MAX) return GOB_MISFIT;
    *value = (uint32_t)number;
    return found;
}

/* One field that counts, into the call. */
static inline int gob_take(const gob_t *g, gob_field_t field, cursor_t *c, int depth,
                           gob_call_t *call) {
    const gob_type_t *type;
    uint32_t body_length;
    switch (field.role) {
    case GOB_SERVICE_METHOD:
        if (field.type != GOB_STRING) return GOB_MISFIT;
        return gob_bytes(c, &call->method, &call->method_length);
    case GOB_SEQ:
        return field.type == GOB_UINT ? gob_uint(c, &call->seq) : GOB_MISFIT;
    case GOB_BODY:
        if (field.type != GOB_BYTES) return GOB_MISFIT;
        return gob_bytes(c, &call->body, &call->body_length);
    case GOB_HEADER:
        type = gob_type(g, field.type);
        if (type == NULL || !type->is_struct) return GOB_MISFIT;
        return gob_struct(g, type, c, GOB_AS_HEADER, depth + 1, call);
    }
    if (field.type != GOB_UINT) return GOB_MISFIT;
    if (field.role == GOB_FUNC_ID) return gob_uint32(c, &call->func_id);
    return gob_uint32(c, field.role == GOB_REQUEST_ID ? &call->request_id : &body_length);
}

static inline int gob_struct(const gob_t *g, const gob_type_t *type, cursor_t *c, int as,
                             int depth, gob_call_t *call) {
    const gob_field_t *fields = &g->fields[type->first];
    int at = -1;
    if (depth > GOB_DEPTH) return GOB_TOO_DEEP;
    for (;;) {
        int found = gob_next_field(c, type->count, &at);
        if (found != GOB_FITS || at < 0) return found;
        found = gob_belongs(fields[at].role, as) ? gob_take(g, fields[at], c, depth, call)
                                                 : gob_skip(g, fields[at].type, c, depth);
        if (found != GOB_FITS) return found;
    }
}

/* Whether any field of a struct counts where it is read as this: else it is another type. */
static inline int gob_has_any(const gob_t *g, const gob_type_t *type, int as) {
    for (int i = 0; i < type->count; i++)
        if (gob_belongs(g->fields[type->first + i].role, as)) return 1;
    return 0;
}

/* A value of that type, read as rpc.Request or as the argument of the method. */
static inline int gob_value(const gob_t *g, cursor_t c, int64_t id, int as, gob_call_t *call) {
    const gob_type_t *type = gob_type(g, id);
    int found;
    if (type == NULL && id >= GOB_FIRST_OWN) return GOB_UNDEFINED;
    if (type == NULL || !type->is_struct || !gob_has_any(g, type, as)) return GOB_MISFIT;
    found = gob_struct(g, type, &c, as, 1, call);
    if (found == GOB_FITS && c.at != c.end) return GOB_TRAILING;
    return found;
}

/* rpc.Request, with which a call begins. */
static inline int gob_begin_call(const gob_t *g, cursor_t c, int64_t id, gob_call_t *call) {
    int found = gob_value(g, c, id, GOB_AS_CALL, call);
    if (found == GOB_MISFIT) return GOB_NO_CALL;
    if (found == GOB_FITS && call->method_length > GOB_METHOD) return GOB_LONG_METHOD;
    return found;
}

#endif
