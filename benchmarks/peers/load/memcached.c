/* memcached's text protocol: get and set. */
#include "text.h"

#include <stdio.h>
#include <stdlib.h>

static size_t put_request(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    if (!write)
        return (size_t)sprintf((char *)out, "get key:%03u\r\n", slot);
    int size = sprintf((char *)out, "set key:%03u 0 0 %u\r\n", slot, options.value_size);
    return put_value(out, (size_t)size, value, "\r\n");
}

static size_t put_expected(uint8_t *out, unsigned slot, const uint8_t *value, bool write)
{
    if (write)
        return (size_t)sprintf((char *)out, "STORED\r\n");
    int size = sprintf((char *)out, "VALUE key:%03u 0 %u\r\n", slot, options.value_size);
    return put_value(out, (size_t)size, value, "\r\nEND\r\n");
}

static size_t whole(const uint8_t *p, size_t line)
{
    if (!starts_with(p, line, "VALUE "))
        return line;
    char *after;
    unsigned long length = strtoul(memrchr(p, ' ', line), &after, 10);
    return *after == '\r' ? line + length + strlen("\r\nEND\r\n") : 0;
}

static bool is_error(const uint8_t *p, size_t line)
{
    return starts_with(p, line, "ERROR") || starts_with(p, line, "CLIENT_ERROR") ||
           starts_with(p, line, "SERVER_ERROR");
}

static size_t consume(struct connection *c, const uint8_t *p, size_t size, uint64_t now)
{
    static const struct text_replies REPLIES = {.whole = whole, .is_error = is_error};
    return consume_text(c, p, size, now, &REPLIES);
}

const struct protocol MEMCACHED = {
    .name = "memcached",
    .put_request = put_request,
    .put_expected = put_expected,
    .consume = consume,
    .matches = same_bytes,
};
