/* The watchdog of UFFDIO_MOVE.
 *
 * On the kernels of docs/kernel.md a move that splits a huge page with an extra reference (vmsplice, for one) loops inside
 * the kernel for as long as the reference stays, and the hole with it. Another thread filling the destination ends the
 * loop (the move then fails with EEXIST). This is that thread: it shares the agent's fd table, sleeps while nothing is
 * merged, and while moves go on looks every WATCH_PERIOD_USEC whether one and the same move is still running. */
#pragma once

#include <stdatomic.h>
#include <stdint.h>

#include "lib/context.h"

#define WATCH_STACK_BYTES 131072U /* calls nothing deep; the program's static TLS is placed in it too */

struct watch {
        _Atomic uint32_t sequence; /* odd: a move is running */
        _Atomic uint32_t awake;    /* futex word: 1 = watching */
        uint64_t scratch;          /* destination window, 64 pages */
        const struct context *spare;
        _Atomic uint64_t broken;   /* loops ended so far */
        void *stack;
};

/* From the agent thread (the fd table is shared with its children). 0 or -EAGAIN. */
int watch_start(struct watch *w, const struct context *spare, uint64_t scratch);
/* Around every UFFDIO_MOVE into scratch. */
void watch_begin(struct watch *w);
void watch_end(struct watch *w);
