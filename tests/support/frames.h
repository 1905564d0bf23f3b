/* Valid and broken frames for the tests of the protocol: one generator for unit tests, fuzz seeds and fake peers. */
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "proto/codec.h"

/* Numbers of all types in MESSAGES, ending with 0. */
extern const uint16_t message_types[];
unsigned message_senders(uint16_t type);

/* xorshift64*: tests print the seed and are repeatable. State must not be 0. */
uint64_t random_next(uint64_t *state);
static inline uint64_t random_below(uint64_t *state, uint64_t n) {
        return random_next(state) % n;
}

/* Writes a valid frame with random contents and `count` elements (clipped to what the type allows); returns its
 * size. buffer holds FRAME_MAX_BYTES and is aligned to FRAME_ALIGN. */
size_t random_frame(void *buffer, uint16_t type, uint32_t count, uint64_t *state);
