/* Transitions: the only code that replaces pages of the program (design 6.1 to 6.3).
 *
 * Each works on pages of one 64-page aligned block while the mapping lock is held, and is exact whatever it meets: a page is
 * either replaced by equal bytes or left as it was. See hole.c (merge, zero) and freeze.c (restore) for the arguments. */
#pragma once

#include "lib/state.h"

struct transition {
        struct agent *a;
        uint64_t base;        /* address of the block */
        uint8_t *status;      /* [64], enum apply_status */
        uint64_t removed;     /* pages that the program discarded while the block was guarded */
        uint64_t armed_usec;  /* when the guard went up */
        uint32_t n_waited;    /* accesses seen waiting */
        uint32_t longest_usec;
};

/* What the daemon asks: the pages of one block. status [64] is filled; returns microseconds the guard was up. */
uint32_t transition_apply(struct agent *a, uint32_t kind, const struct extent_element *extents, uint32_t n,
                          uint8_t status[64]);

/* Restores every merged page in [start, end), block by block. 0; 1: pages that were copied on write stay where they are;
 * -EBUSY: threads never left their mapping calls; -ENOMEM. */
int transition_restore_range(struct agent *a, uint64_t start, uint64_t end);

/* -- shared by hole.c and freeze.c -- */

bool transition_begin(struct transition *t);
void transition_end(struct transition *t);
void transition_wake(struct transition *t, uint64_t start, uint64_t end);
void transition_set(struct transition *t, uint64_t mask, enum apply_status status);
/* Maps the segment's pages where a run in `shared` has none. */
void transition_populate(struct agent *a, uint64_t start, uint64_t end);
int errno_status(int error); /* enum apply_status for a failed system call */

/* Next maximal run of set bits at or above *at: position and length; false at the end. */
static inline bool next_run(uint64_t mask, unsigned *at, unsigned *n) {
        if (*at >= 64 || !(mask >> *at))
                return false;
        *at += (unsigned) __builtin_ctzll(mask >> *at);
        uint64_t rest = ~(mask >> *at);
        *n = rest ? (unsigned) __builtin_ctzll(rest) : 64;
        return true;
}
static inline uint64_t run_bits(unsigned at, unsigned n) {
        return (n >= 64 ? ~0ULL : (1ULL << n) - 1) << at;
}
static inline uint64_t page_address(uint64_t base, unsigned i) {
        return base + ((uint64_t) i << KSM_PAGE_SHIFT);
}

void hole_apply(struct transition *t, uint32_t kind, const struct extent_element *extents, uint32_t n, uint64_t asked);
void freeze_restore(struct transition *t, uint64_t asked);
/* All merged pages become plain copies, without guards: only in a forked child that still has one thread and has no contexts. Its
 * pages are not pinned (fork copies pinned pages). */
void freeze_unshare_plain(struct agent *a);
