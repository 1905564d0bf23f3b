/* The daemon's clocks, in microseconds. */
#pragma once

#include <stdint.h>
#include <time.h>

#define USEC_PER_MSEC UINT64_C(1000)
#define USEC_PER_SEC UINT64_C(1000000)

static inline uint64_t clock_usec(clockid_t id) {
        struct timespec ts;
        (void) clock_gettime(id, &ts); /* cannot fail for the clocks used here */
        return (uint64_t) ts.tv_sec * USEC_PER_SEC + (uint64_t) ts.tv_nsec / 1000;
}

/* Monotonic, never zero: zero means "never" in the callers' books. */
static inline uint64_t now_usec(void) {
        return clock_usec(CLOCK_MONOTONIC) + 1;
}
