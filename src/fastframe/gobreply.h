/* Replies of net/rpc in gob, byte for byte as Go's. Plain C11. See gob.h. */

#ifndef IPROTO_GOBREPLY_H
#define IPROTO_GOBREPLY_H

#include "gob.h"

/* Definitions and ids of what a server sends. The ids are as in the first reply of a
   server of Go's, where its process has sent nothing else. */
enum { GOB_SENT_RESPONSE = 1, GOB_SENT_REPLY = 2, GOB_SENT_NOTHING = 4 };

/* Bytes, at most: all definitions; rpc.Response without its texts; a reply without its body. */
enum { GOB_DEFINITIONS = 200, GOB_RESPONSE_HEAD = 32, GOB_REPLY_HEAD = 48 };

/* The longest body of a reply: Go refuses messages of more than 1 GiB. */
#define GOB_MOST_BODY ((1u << 30) - GOB_REPLY_HEAD)

/* What clients call; it stands in every response too. */
#define GOB_SERVICE "MyService"
#define GOB_MAIN_METHOD GOB_SERVICE ".MainHandler"

static inline unsigned char *gob_put(unsigned char *out, const char *bytes, size_t size) {
    memcpy(out, bytes, size);
    return out + size;
}

#define GOB_PUT(out, literal) gob_put(out, literal, sizeof(literal) - 1)

static inline unsigned char *gob_put_uint(unsigned char *out, uint64_t value) {
    int width = 1;
    if (value < 0x80) {
        *out = (unsigned char)value;
        return out + 1;
    }
    while (width < 8 && value >> (8 * width)) width++;
    *out = (unsigned char)(256 - width);
    store_be(out + 1, value, width);
    return out + 1 + width;
}

static inline unsigned char *gob_put_text(unsigned char *out, const void *text, uint64_t size) {
    out = gob_put_uint(out, size);
    memcpy(out, text, size);
    return out + size;
}

/* Definitions that the connection has not sent yet. */
static inline unsigned char *gob_put_definitions(gob_t *g, unsigned char *out, int wanted) {
    wanted &= ~g->sent;
    if (!wanted) return out;
    g->sent = (uint8_t)(g->sent | wanted);
    if (wanted & GOB_SENT_RESPONSE)
        out = GOB_PUT(out, "\x3a\xff\x81\x03\x01\x01\x08Response\x01\xff\x82\x00\x01\x03"
                           "\x01\x0dServiceMethod\x01\x0c\x00\x01\x03Seq\x01\x06\x00"
                           "\x01\x05" "Error\x01\x0c\x00\x00\x00");
    if (wanted & GOB_SENT_REPLY)
        out = GOB_PUT(out, "\x3a\xff\x83\x03\x01\x01\x08Response\x01\xff\x84\x00\x01\x03"
                           "\x01\x06Header\x01\xff\x86\x00\x01\x0aReturnCode\x01\x06\x00"
                           "\x01\x04" "Body\x01\x0a\x00\x00\x00"
                           "\x3c\xff\x85\x03\x01\x01\x06Header\x01\xff\x86\x00\x01\x03"
                           "\x01\x06" "FuncID\x01\x06\x00\x01\x0a" "BodyLength\x01\x06\x00"
                           "\x01\x09RequestID\x01\x06\x00\x00\x00");
    if (wanted & GOB_SENT_NOTHING)
        out = GOB_PUT(out, "\x0a\xff\x87\x03\x01\x02\xff\x88\x00\x00\x00");
    return out;
}

static inline uint64_t gob_uint_size(uint64_t value) {
    uint64_t size = 2;
    if (value < 0x80) return 1;
    while (value >>= 8) size++;
    return size;
}

/* rpc.Response; an error, where there is one, is that the method was not called. */
static inline unsigned char *gob_put_response(unsigned char *out, const void *method,
                                              uint64_t method_length, uint64_t seq,
                                              const void *error, uint64_t error_length) {
    unsigned char field = 1; /* the next one's number, so much more than the last one's */
    uint64_t size = 3;
    if (method_length) size += 1 + gob_uint_size(method_length) + method_length;
    if (seq) size += 1 + gob_uint_size(seq);
    if (error_length) size += 1 + gob_uint_size(error_length) + error_length;
    out = gob_put_uint(out, size);
    out = GOB_PUT(out, "\xff\x82");
    if (method_length) {
        *out++ = field;
        out = gob_put_text(out, method, method_length);
        field = 0;
    }
    field++;
    if (seq) {
        *out++ = field;
        out = gob_put_uint(out, seq);
        field = 0;
    }
    field++;
    if (error_length) {
        *out++ = field;
        out = gob_put_text(out, error, error_length);
    }
    *out++ = 0;
    return out;
}

/* The reply of a method that was not called. */
static inline unsigned char *gob_put_nothing(unsigned char *out) {
    return GOB_PUT(out, "\x03\xff\x88\x00");
}

/* The method's reply up to its body, which the caller puts there, and one zero behind it. */
static inline unsigned char *gob_put_reply(unsigned char *out, uint32_t func_id,
                                           uint32_t request_id, int is_error,
                                           uint32_t body_length) {
    unsigned char head[GOB_REPLY_HEAD], *to = head;
    const uint32_t header[3] = {func_id, body_length, request_id};
    unsigned char delta = 1;
    to = GOB_PUT(to, "\xff\x84\x01");
    for (int i = 0; i < 3; i++, delta++) {
        if (!header[i]) continue;
        *to++ = delta;
        to = gob_put_uint(to, header[i]);
        delta = 0;
    }
    *to++ = 0;
    if (is_error) to = GOB_PUT(to, "\x01\x01");
    if (body_length) {
        *to++ = is_error ? 1 : 2;
        to = gob_put_uint(to, body_length);
    }
    out = gob_put_uint(out, (uint64_t)(to - head) + body_length + 1);
    memcpy(out, head, (size_t)(to - head));
    return out + (to - head);
}

#endif
