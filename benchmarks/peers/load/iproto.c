/* iproto: a request is func_id, body_length, request_id and a body; a reply has a return code
 * before its body. */
#include "connection.h"
#include "msgpack.h"

enum {
    FUNC_REPLACE = 0x00020001,
    FUNC_READ = 0x00020002,
    FUNC_PING = 0x0000ff00, /* its reply is a bare header: no return code */
};

size_t put_iproto_header(uint8_t *out, uint32_t func_id, size_t body_length)
{
    store_u32(out, func_id);
    store_u32(out + 4, (uint32_t)body_length);
    store_u32(out + 8, 0);
    return HEADER;
}

static size_t put_request(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    size_t body = put_index(out + HEADER, slot);
    if (write)
        body += put_string(out + HEADER + body, value, options.value_size);
    return put_iproto_header(out, write ? FUNC_REPLACE : FUNC_READ, body) + body;
}

static size_t put_expected(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    (void)slot;
    size_t body = 1;
    if (write)
        out[HEADER + 4] = 0xc0;
    else
        body = put_string(out + HEADER + 4, value, options.value_size);
    put_iproto_header(out, write ? FUNC_REPLACE : FUNC_READ, body + (options.dialect == MAILRU ? 4 : 0));
    store_u32(out + HEADER, 0);
    return HEADER + 4 + body;
}

/* A reply that is not, byte for byte, the next one expected: says what is the matter with it.
 * Returns its size, or 0 when it has not come in whole or the stream is broken. */
static size_t examine(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    if (size < HEADER)
        return 0;
    uint32_t func_id = load_u32(p), body_length = load_u32(p + 4), id = load_u32(p + 8);
    bool bare = options.own_function && func_id == FUNC_PING;
    if (body_length > MAX_REPLY - HEADER - 4 || (options.dialect == MAILRU && !bare && body_length < 4))
        return lose_track(c, p, HEADER);
    size_t whole = HEADER + (size_t)body_length + (bare || options.dialect == MAILRU ? 0 : 4);
    if (size < whole)
        return 0;
    uint64_t number;
    if (!find_request(c, id, &number))
        return whole;

    const struct expected *want = &tape.expected[(c->first_at + number) % tape.period];
    uint32_t wanted_func = options.own_function ? options.func_id : load_u32(want->bytes);
    if (func_id != wanted_func) {
        take(c, number);
        result.wrong++;
        note_problem("connection %u, request_id %u: func_id 0x%08x for 0x%08x", c->number, id, func_id, wanted_func);
    } else if (!bare && load_u32(p + HEADER) != 0) {
        take(c, number);
        result.errors++;
        note_problem("connection %u, request_id %u: return code 0x%04x %s", c->number, id, load_u32(p + HEADER),
                     printable(p + HEADER + 4, whole - HEADER - 4));
    } else if (!options.own_function &&
               (whole != want->size || memcmp(p + HEADER, want->bytes + HEADER, whole - HEADER) != 0)) {
        take(c, number);
        result.wrong++;
        note_problem("connection %u, request_id %u: another body of %u bytes", c->number, id, body_length);
    } else {
        answered_out_of_turn(c, number, now);
    }
    return whole;
}

static size_t consume(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    size_t used = 0;
    while (used < size) {
        if (!options.own_function && c->oldest != c->next && c->oldest >= c->passed) {
            const struct expected *want = &tape.expected[c->answer_at];
            const uint8_t *reply = p + used;
            if (size - used >= want->size && memcmp(reply, want->bytes, 8) == 0 &&
                load_u32(reply + 8) == (uint32_t)c->oldest &&
                memcmp(reply + HEADER, want->bytes + HEADER, want->size - HEADER) == 0) {
                used += want->size;
                answered(take_oldest(c), now);
                continue;
            }
        }
        size_t whole = examine(c, p + used, size - used, now);
        if (whole == 0)
            break;
        used += whole;
    }
    return used;
}

const struct protocol IPROTO = {
    .name = "iproto",
    .put_request = put_request,
    .put_expected = put_expected,
    .consume = consume,
    .matches = same_bytes,
    .id_at = 8,
};
