/* Frames to bytes and back: pure functions, no allocation, no errno, usable from the agent (libc string.h only).
 *
 * The decoder checks everything that does not need state: size, version, type against the sender's role, count,
 * fds, reserved fields, ranges that are page aligned and do not wrap, extents inside one block and ascending,
 * statuses known, strings NUL terminated. What it returns may be used without further syntactic checks. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/messages.h"

/* A decoded frame: pointers into the caller's buffer, which must be 8-byte aligned. */
struct frame {
        enum message_type type;
        const void *body;     /* struct msg_... of the type */
        const void *elements; /* array of `count` elements of the type */
        uint32_t count;
};

enum codec_error {
        CODEC_OK = 0,
        CODEC_SHORT,    /* shorter than its header, or size field differs from the packet's */
        CODEC_VERSION,  /* another protocol version: answer REFUSED */
        CODEC_TYPE,     /* unknown, or not for this sender */
        CODEC_SIZE,     /* not the exact size that type and count ask for, or count over its limit */
        CODEC_FDS,      /* other number of fds than the type carries */
        CODEC_RESERVED, /* a reserved field is not zero */
        CODEC_VALUE,    /* a field outside its documented range */
};
const char *codec_error_string(enum codec_error e); /* static text for one log line */
const char *message_name(uint16_t type);            /* "HELLO"; "?" when unknown */

/* sender: the role whose frames are acceptable (one bit, or several or'ed for a first frame). */
enum codec_error frame_decode(const void *packet, size_t size, unsigned n_fds, unsigned sender, struct frame *ret);

/* Writes a frame to buffer (capacity FRAME_MAX_BYTES is always enough). Returns its size, or 0 when the
 * arguments do not fit the table (a programming error: asserted in debug builds). body has the type's size;
 * elements may be NULL when count is 0. */
size_t frame_encode(void *buffer, size_t capacity, enum message_type type, const void *body, const void *elements,
                    uint32_t count);

/* Bytes of one body/element, maximum count and fds of a type; 0 for an unknown type. */
size_t message_body_bytes(uint16_t type);
size_t message_element_bytes(uint16_t type);
uint32_t message_max_count(uint16_t type);
unsigned message_fds(uint16_t type);
