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
#include "lib/sys.h"

/* Calls nothing deep; the program's static TLS is placed in it too. */
#define WATCH_STACK_BYTES (131072U + STACK_EXTRA_BYTES)

struct watch {
        _Atomic uint32_t sequence; /* odd: a move is running */
        _Atomic uint32_t awake;    /* futex word: 1 = watching */
        _Atomic uint32_t asleep;   /* 1: about to sleep on `awake` */
        _Atomic uint32_t retired;
        uint64_t scratch;          /* destination window, 64 pages */
        const struct context *spare;
        _Atomic uint64_t broken;   /* loops ended so far */
        void *stack;
};

/* From the agent thread (the fd table is shared with its children), asleep until the first move. At the agent's start, while the
 * thread that starts it waits: libc takes heap for a thread, and taken later it would shift the program's own heap, at a time
 * that differs from run to run. 0 or -EAGAIN. */
int watch_start(struct watch *w);
/* Before the first move: where moves go. */
void watch_aim(struct watch *w, const struct context *spare, uint64_t scratch);
/* It makes no system call any more once this has returned, but for the futex that it sleeps on. */
void watch_retire(struct watch *w);
/* Around every UFFDIO_MOVE into scratch. */
void watch_begin(struct watch *w);
void watch_end(struct watch *w);
