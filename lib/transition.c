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
#include "lib/witness.h"

/* How long the agent waits for threads to leave their mapping calls with everybody else held off: longer than any call but
 * a fork or an munmap of gigabytes, short enough not to be felt. */
#define LOCK_SPIN_USEC 200U
/* A restore is somebody waiting for it; tries of LOCK_SPIN_USEC with a pause in between, 2 s in all. */
#define RESTORE_TRIES 2000U
#define RESTORE_PAUSE_USEC 1000U
/* A pin may be the daemon's, which is reading the page: it is gone in a moment. Together 15 ms. */
#define PIN_TRIES 5U
#define PIN_PAUSE_USEC 500U

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

/* Reads the slots' bytes into `expected`: while accesses wait they must be in cache, and a segment must not fault. */
static void load_expected(struct advice *d, const struct extent_element *x, uint32_t n) {
        struct agent *a = d->t->a;
        for (uint32_t e = 0; e < n; e++) {
                unsigned at = (unsigned) (x[e].page & (BLOCK_PAGES - 1));
                const struct segment *s = segments_find(&a->segments, x[e].segment);
                size_t length = (size_t) x[e].n_pages << KSM_PAGE_SHIFT;
                if (!s || x[e].slot + x[e].n_pages > s->n_slots ||
                    sys_pread(s->fd, a->expected + ((size_t) at << KSM_PAGE_SHIFT), length,
                              (uint64_t) x[e].slot << KSM_PAGE_SHIFT) != (long) length) {
                        transition_set(d->t, run_bits(at, x[e].n_pages), APPLY_ERROR);
                        d->todo &= ~run_bits(at, x[e].n_pages);
                        continue;
                }
                for (unsigned i = 0; i < x[e].n_pages; i++) {
                        d->segment[at + i] = s;
                        d->slot[at + i] = x[e].slot + i;
                }
        }
}

static void drop_unregistered(struct advice *d) {
        const struct agent *a = d->t->a;
        uint64_t bad = 0;
        for (uint64_t m = d->todo; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);
                uint64_t start = page_address(d->t->base, i), end = start + KSM_PAGE_SIZE;
                if (!rangeset_contains(&a->ranges, start, end) || rangeset_overlaps(&a->excluded, start, end))
                        bad |= 1ULL << i;
        }
        transition_set(d->t, bad, APPLY_VMA_GONE);
        d->todo &= ~bad;
}

/* VMA by VMA; what lies there now decides how. */
static void replace(struct advice *d) {
        struct transition *t = d->t;
        drop_unregistered(d);
        for (uint64_t all = d->todo; all; all &= ~d->todo) {
                struct vma v;
                uint64_t address = page_address(t->base, (unsigned) __builtin_ctzll(all));
                d->todo = all & -all;
                if (vma_query(t->a->maps_fd, address, false, &v) < 0) {
                        transition_set(t, d->todo, APPLY_VMA_GONE);
                        continue;
                }
                uint64_t start = MAX(v.start, t->base), end = MIN(v.end, t->base + BLOCK_BYTES);
                uint64_t part = all & run_bits((unsigned) ((start - t->base) >> KSM_PAGE_SHIFT),
                                               (unsigned) ((end - start) >> KSM_PAGE_SHIFT));
                d->todo = part;
                if (v.segment)
                        remerge_replace(d, &v);
                else if (vma_is_candidate(&v))
                        hole_replace(d);
                else
                        transition_set(t, part, APPLY_VMA_GONE);
                d->todo = part;
        }
}

uint32_t transition_apply(struct agent *a, uint32_t kind, const struct extent_element *extents, uint32_t n,
                          uint8_t status[64]) {
        memset(status, APPLY_NOT_ASKED, 64);
        struct transition t = {
                .a = a,
                .base = extents[0].page >> BLOCK_SHIFT << (BLOCK_SHIFT + KSM_PAGE_SHIFT),
                .status = status,
        };
        struct advice d = { .t = &t, .kind = kind, .todo = asked_pages(extents, n) };
        transition_set(&t, d.todo, APPLY_BUSY);
        if (a->raw && kind != APPLY_RESTORE) {
                transition_set(&t, d.todo, APPLY_VMA_GONE);
                return 0;
        }
        if (a->suspended && kind != APPLY_RESTORE)
                return 0;
        if (kind == APPLY_MERGE)
                load_expected(&d, extents, n);
        if (!d.todo || !transition_begin(&t))
                return 0;
        if (kind == APPLY_RESTORE)
                freeze_restore(&t, d.todo, false);
        else
                replace(&d);
        transition_end(&t);
        return t.longest_usec;
}

static void pause_usec(struct agent *a, unsigned usec) {
        const struct timespec pause = { .tv_nsec = usec * 1000L };
        (void) sys_call(SYS_nanosleep, (long) &pause, 0, 0, 0, 0, 0);
        agent_drain(a);
}

/* Restores the pages of a block. Returns those that are left, of which the kernel says that they are pinned; -errno for all others. */
static int restore_pages(struct agent *a, uint64_t base, uint64_t mask, uint64_t *ret_left) {
        uint8_t status[BLOCK_PAGES];
        struct transition t = { .a = a, .base = base, .status = status };
        memset(status, APPLY_NOT_ASKED, sizeof(status));
        for (unsigned tries = 0; !transition_begin(&t); tries++) {
                if (tries == RESTORE_TRIES)
                        return -EBUSY;
                pause_usec(a, RESTORE_PAUSE_USEC);
        }
        freeze_restore(&t, mask, true);
        transition_end(&t);
        *ret_left = 0;
        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                if (!(mask >> i & 1) || status[i] == APPLY_OK || status[i] == APPLY_VMA_GONE)
                        continue;
                if (status[i] == APPLY_BUDGET)
                        return -ENOMEM;
                *ret_left |= 1ULL << i;
        }
        return 0;
}

int transition_restore_range(struct agent *a, uint64_t start, uint64_t end) {
        bool any_left = false;
        struct book_walk walk = { .start = start, .end = end };
        uint64_t block, left;
        witness_dismiss(a); /* of a page that was written since then it knows nothing */
        while (book_walk_next(&walk, &block, &left)) {
                for (unsigned tries = 0; left && tries < PIN_TRIES; tries++) {
                        if (tries) {
                                witness_dismiss(a);
                                pause_usec(a, PIN_PAUSE_USEC << tries);
                        }
                        int r = restore_pages(a, block << (BLOCK_SHIFT + KSM_PAGE_SHIFT), left, &left);
                        if (r < 0)
                                return r;
                }
                any_left |= left;
        }
        return any_left ? 1 : 0;
}
