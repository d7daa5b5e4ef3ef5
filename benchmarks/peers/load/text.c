#include "text.h"

/* Size of the line at p with its CR LF; 0 when it has not come in whole, or is too long. */
static size_t line_size(const uint8_t *p, size_t size)
{
    const uint8_t *lf = memchr(p, '\n', size);
    return lf ? (size_t)(lf - p) + 1 : 0;
}

bool starts_with(const uint8_t *p, size_t size, const char *word)
{
    return size >= strlen(word) && memcmp(p, word, strlen(word)) == 0;
}


size_t put_value(uint8_t *out, size_t size, const uint8_t *value, const char *end)
{
    memcpy(out + size, value, options.value_size);
    size += options.value_size;
    memcpy(out + size, end, strlen(end));
    return size + strlen(end);
}

/* As in iproto.c; but a reply is the next one, or one too many. */
static size_t examine(struct connection *c, const uint8_t *p, size_t size, const struct text_replies *replies)
{
    size_t line = line_size(p, size);
    if (line == 0 && size < MAX_REPLY)
        return 0;
    size_t whole = line ? replies->whole(p, line) : 0;
    if (whole == 0 || whole > MAX_REPLY)
        return lose_track(c, p, size);
    if (size < whole)
        return 0;

    if (c->oldest == c->next) {
        result.doubled++;
        note_problem("connection %u: a reply with no request: %s", c->number, printable(p, whole));
        return whole;
    }
    take_oldest(c);
    if (replies->is_error(p, line))
        result.errors++;
    else
        result.wrong++;
    note_problem("connection %u: %s", c->number, printable(p, whole));
    return whole;
}

size_t consume_text(struct connection *c, const uint8_t *p, size_t size, uint64_t now,
                    const struct text_replies *replies)
{
    size_t used = 0;
    while (used < size) {
        if (c->oldest != c->next) {
            const struct expected *want = &tape.expected[c->answer_at];
            size_t have = size - used < want->size ? size - used : want->size;
            if (memcmp(p + used, want->bytes, have) == 0) {
                if (have < want->size)
                    break;
                used += want->size;
                answered(take_oldest(c), now);
                continue;
            }
        }
        size_t whole = examine(c, p + used, size - used, replies);
        if (whole == 0)
            break;
        used += whole;
    }
    return used;
}
