/* The frame around every transition: mapping lock, guard events, bookkeeping. */
#include "lib/transition.h"

#include <errno.h>
#include <string.h>

#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/book.h"
#include "lib/maplock.h"
#include "lib/notes.h"
#include "lib/sys.h"
#include "lib/vma.h"

/* How long the agent waits for threads to leave their mapping calls with everybody else held off: longer than any call but
 * a fork or an munmap of gigabytes, short enough not to be felt. */
#define LOCK_SPIN_USEC 200U
/* A restore is somebody waiting for it; tries of LOCK_SPIN_USEC with a pause in between, 2 s in all. */
#define RESTORE_TRIES 2000U
#define RESTORE_PAUSE_USEC 1000U

bool transition_begin(struct transition *t) {
        /* A fresh time slice makes it less likely to be descheduled with a hole open. */
        sys_yield();
        if (!map_lock_acquire(LOCK_SPIN_USEC, agent_drain, t->a)) {
                t->a->figures.busy++;
                return false;
        }
        t->a->current = t;
        agent_consume_notes(t->a);
        fault_point(FAULT_transition_locked);
        return true;
}

static void count_waits(struct transition *t) {
        unsigned bucket = 0;
        while (bucket < WAIT_BUCKETS - 1 && t->longest_usec > wait_bucket_usec[bucket])
                bucket++;
        t->a->figures.waits[bucket] += t->n_waited;
        t->n_waited = 0;
}

void transition_wake(struct transition *t, uint64_t start, uint64_t end) {
        /* Read the faults first: who is woken before its message was read is never counted. */
        agent_drain(t->a);
        t->longest_usec = (uint32_t) (now_usec() - t->armed_usec);
        context_wake(&t->a->guard, start, end);
        count_waits(t);
}

void transition_end(struct transition *t) {
        agent_drain(t->a);
        t->a->current = NULL;
        t->a->figures.transitions++;
        map_lock_release();
        fault_point(FAULT_transition_over);
}

void transition_set(struct transition *t, uint64_t mask, enum apply_status status) {
        for (unsigned i = 0; mask; mask &= mask - 1) {
                i = (unsigned) __builtin_ctzll(mask);
                t->status[i] = (uint8_t) status;
        }
}

int errno_status(int error) {
        return error == -ENOMEM ? APPLY_BUDGET : APPLY_ERROR;
}

/* The pages asked for, or 0 when the request does not fit one block and known segments. */
static uint64_t asked_pages(const struct extent_element *x, uint32_t n) {
        uint64_t asked = 0;
        for (uint32_t i = 0; i < n; i++)
                asked |= run_bits((unsigned) (x[i].page & (BLOCK_PAGES - 1)), x[i].n_pages);
        return asked;
}

uint32_t transition_apply(struct agent *a, uint32_t kind, const struct extent_element *extents, uint32_t n,
                          uint8_t status[64]) {
        memset(status, APPLY_NOT_ASKED, 64);
        struct transition t = {
                .a = a,
                .base = extents[0].page >> BLOCK_SHIFT << (BLOCK_SHIFT + KSM_PAGE_SHIFT),
                .status = status,
        };
        uint64_t asked = asked_pages(extents, n);
        transition_set(&t, asked, APPLY_BUSY);
        if (a->raw && kind != APPLY_RESTORE) {
                transition_set(&t, asked, APPLY_VMA_GONE);
                return 0;
        }
        if (a->suspended && kind != APPLY_RESTORE)
                return 0;
        if (kind == APPLY_RESTORE) {
                if (transition_begin(&t)) {
                        freeze_restore(&t, asked);
                        transition_end(&t);
                }
        } else
                hole_apply(&t, kind, extents, n, asked);
        return t.longest_usec;
}

int transition_restore_range(struct agent *a, uint64_t start, uint64_t end) {
        bool left = false;
        struct book_walk walk = { .start = start, .end = end };
        uint64_t block, mask;
        while (book_walk_next(&walk, &block, &mask)) {
                uint8_t status[64];
                struct transition t = { .a = a, .base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT), .status = status };
                memset(status, APPLY_NOT_ASKED, sizeof(status));
                unsigned tries = 0;
                while (!transition_begin(&t)) {
                        if (++tries > RESTORE_TRIES)
                                return -EBUSY;
                        const struct timespec pause = { .tv_nsec = RESTORE_PAUSE_USEC * 1000L };
                        (void) sys_call(SYS_nanosleep, (long) &pause, 0, 0, 0, 0, 0);
                        agent_drain(a);
                }
                freeze_restore(&t, mask);
                transition_end(&t);
                for (unsigned i = 0; i < 64; i++) {
                        if (!(mask >> i & 1) || status[i] == APPLY_OK || status[i] == APPLY_VMA_GONE)
                                continue;
                        if (status[i] == APPLY_BUDGET)
                                return -ENOMEM;
                        left = true;
                }
        }
        return left ? 1 : 0;
}
