/* What Redis's and memcached's protocols have in common: lines, and replies without ids. */
#ifndef BENCHMARKS_TEXT_H
#define BENCHMARKS_TEXT_H

#include "connection.h"

struct text_replies {
    /* Size of the whole reply that begins with this line; 0 if the line makes no sense. */
    size_t (*whole)(const uint8_t *p, size_t line);
    bool (*is_error)(const uint8_t *p, size_t line);
};

bool starts_with(const uint8_t *p, size_t size, const char *word);

/* Appends the value and `end` to the `size` bytes at out; returns their new number. */
size_t put_value(uint8_t *out, size_t size, const uint8_t *value, const char *end);

size_t consume_text(struct connection *c, const uint8_t *p, size_t size, uint64_t now,
                    const struct text_replies *replies);

#endif
