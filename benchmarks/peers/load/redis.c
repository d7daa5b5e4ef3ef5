/* Redis: GET and SET. */
#include "text.h"

#include <stdio.h>
#include <stdlib.h>

static size_t put_request(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    if (!write)
        return (size_t)sprintf((char *)out, "*2\r\n$3\r\nGET\r\n$7\r\nkey:%03u\r\n", slot);
    int size = sprintf((char *)out, "*3\r\n$3\r\nSET\r\n$7\r\nkey:%03u\r\n$%u\r\n", slot, options.value_size);
    return put_value(out, (size_t)size, value, "\r\n");
}

static size_t put_expected(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    (void)slot;
    if (write)
        return (size_t)sprintf((char *)out, "+OK\r\n");
    return put_value(out, (size_t)sprintf((char *)out, "$%u\r\n", options.value_size), value, "\r\n");
}

static size_t whole(const uint8_t *p, size_t line)
{
    if (p[0] != '$' || p[1] == '-')
        return line;
    char *after;
    unsigned long length = strtoul((const char *)p + 1, &after, 10);
    return *after == '\r' ? line + length + strlen("\r\n") : 0;
}

static bool is_error(const uint8_t *p, size_t line)
{
    (void)line;
    return p[0] == '-';
}

static size_t consume(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    static const struct text_replies REPLIES = {.whole = whole, .is_error = is_error};
    return consume_text(c, p, size, now, &REPLIES);
}

const struct protocol REDIS = {
    .name = "redis",
    .put_request = put_request,
    .put_expected = put_expected,
    .consume = consume,
    .matches = same_bytes,
};
