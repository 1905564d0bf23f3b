/* Frames to bytes and back: pure functions, no allocation, no errno, usable from the agent (libc string.h only).
 *
 * The decoder checks everything that does not need state: size, version, type against the sender's role, count,
 * fds, reserved fields, ranges that are page aligned and do not wrap, extents inside one block and ascending,
 * statuses known, strings terminated and padded with NULs. What it returns may be used without further syntactic
 * checks. Whether an id, an op or an address means anything to the receiver is the receiver's to check. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/messages.h"

#define FRAME_ALIGN 8

/* A decoded frame: pointers into the caller's buffer, which must be aligned to FRAME_ALIGN. */
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

/* sender: the role whose frames are acceptable (one bit, or several or'ed for a first frame). *ret is written on
 * CODEC_OK only. */
enum codec_error frame_decode(const void *packet, size_t size, unsigned n_fds, unsigned sender, struct frame *ret);

/* Writes a frame to buffer (capacity FRAME_MAX_BYTES is always enough). Returns its size, or 0 when type, count or
 * capacity do not fit the table (a programming error; nothing was written). body has the type's size; elements may be
 * NULL when count is 0. Values are not checked: what the sender means is the sender's business, and the receiver
 * checks anyway. */
size_t frame_encode(void *buffer, size_t capacity, enum message_type type, const void *body, const void *elements,
                    uint32_t count);

/* Only the header, for a sender that gathers body and elements itself. Returns the frame's size, or 0 as above. */
size_t frame_header_fill(struct frame_header *ret, enum message_type type, uint32_t count);

/* Bytes of one body/element (0: the type has no elements), maximum count and fds of a type; 0 for an unknown type. */
size_t message_body_bytes(uint16_t type);
size_t message_element_bytes(uint16_t type);
uint32_t message_max_count(uint16_t type);
unsigned message_fds(uint16_t type);
