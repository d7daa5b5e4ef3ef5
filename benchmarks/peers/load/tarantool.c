/* Tarantool's frames have fixed heads, so they can be laid out in advance like the others:
 *   request  ce SIZE | 82 00 TYPE 01 ce SYNC | body
 *   reply    ce SIZE | 83 00 ce CODE 01 cf SYNC 05 ce SCHEMA_VERSION | body     (all big-endian) */
#include "connection.h"
#include "msgpack.h"

enum {
    SELECT = 1,
    REPLACE = 3,
    REQUEST_HEAD = 14, /* bytes before the body */
    REPLY_HEAD = 28,
    GREETING = 128,
};

/* The space `slots`, of tuples [slot, value], has the id 512: tarantool.lua makes it so. */
static size_t put_request(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    static const uint8_t SELECT_BODY[] = {0x86, 0x10, 0xcd, 0x02, 0x00, 0x11, 0, 0x12, 1, 0x13, 0, 0x14, 0, 0x20, 0x91};
    static const uint8_t REPLACE_BODY[] = {0x82, 0x10, 0xcd, 0x02, 0x00, 0x21, 0x92};
    size_t size = REQUEST_HEAD;
    memcpy(out + size, write ? REPLACE_BODY : SELECT_BODY, write ? sizeof REPLACE_BODY : sizeof SELECT_BODY);
    size += write ? sizeof REPLACE_BODY : sizeof SELECT_BODY;
    size += put_index(out + size, slot);
    if (write)
        size += put_string(out + size, value, options.value_size);
    out[0] = 0xce;
    store_u32_big(out + 1, (uint32_t)size - 5);
    memcpy(out + 5, (uint8_t[]){0x82, 0x00, write ? REPLACE : SELECT, 0x01, 0xce}, 5);
    store_u32_big(out + 10, 0);
    return size;
}

/* Both return the tuple. */
static size_t put_expected(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    (void)write;
    size_t size = REPLY_HEAD;
    memcpy(out + size, (uint8_t[]){0x81, 0x30, 0xdd, 0, 0, 0, 1, 0x92}, 8);
    size += 8;
    size += put_index(out + size, slot);
    size += put_string(out + size, value, options.value_size);
    memset(out, 0, REPLY_HEAD);
    out[0] = 0xce;
    store_u32_big(out + 1, (uint32_t)size - 5);
    memcpy(out + 5, (uint8_t[]){0x83, 0x00, 0xce}, 3);
    memcpy(out + 12, (uint8_t[]){0x01, 0xcf}, 2);
    memcpy(out + 22, (uint8_t[]){0x05, 0xce}, 2);
    return size;
}

static bool matches(const uint8_t *reply, size_t size, const struct expected *want)
{
    return size >= want->size && memcmp(reply, want->bytes, 14) == 0 && load_u32_big(reply + 14) == 0 &&
           memcmp(reply + 22, want->bytes + 22, 2) == 0 &&
           memcmp(reply + REPLY_HEAD, want->bytes + REPLY_HEAD, want->size - REPLY_HEAD) == 0;
}

/* As in iproto.c. */
static size_t examine(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    if (size < REPLY_HEAD)
        return 0;
    uint32_t length = load_u32_big(p + 1), id = load_u32_big(p + 18);
    if (p[0] != 0xce || memcmp(p + 5, "\x83\x00\xce", 3) != 0 || memcmp(p + 12, "\x01\xcf\x00\x00\x00\x00", 6) != 0 ||
        length < REPLY_HEAD - 5 || length > MAX_REPLY - 5)
        return lose_track(c, p, REPLY_HEAD);
    size_t whole = 5 + (size_t)length;
    if (size < whole)
        return 0;
    uint64_t number;
    if (!find_request(c, id, &number))
        return whole;

    const struct expected *want = &tape.expected[(c->first_at + number) % tape.period];
    if (whole == want->size && matches(p, whole, want)) {
        answered_out_of_turn(c, number, now);
        return whole;
    }
    take(c, number);
    if (load_u32_big(p + 8) != 0)
        result.errors++;
    else
        result.wrong++;
    note_problem("connection %u, sync %u: code 0x%x %s", c->number, id, load_u32_big(p + 8),
                 printable(p + REPLY_HEAD, whole - REPLY_HEAD));
    return whole;
}

static size_t consume(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    size_t used = 0;
    while (used < size) {
        if (c->oldest != c->next) {
            const struct expected *want = &tape.expected[c->answer_at];
            if (matches(p + used, size - used, want) && load_u32_big(p + used + 18) == (uint32_t)c->oldest) {
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

const struct protocol TARANTOOL = {
    .name = "tarantool",
    .put_request = put_request,
    .put_expected = put_expected,
    .consume = consume,
    .matches = matches,
    .id_at = 10,
    .big_endian = true,
    .greeting = GREETING,
};
