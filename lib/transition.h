/* Transitions: the only code that replaces pages of the program (design 6.1 to 6.3).
 *
 * Each works on pages of one 64-page aligned block while the mapping lock is held, and is exact whatever it meets: a page is
 * either replaced by equal bytes or left as it was. See hole.c (merge and zero of plain memory), freeze.c (what all changes of
 * merged runs share, and restore) and remerge.c (merge and zero inside merged runs) for the arguments. */
#pragma once

#include "lib/state.h"
#include "lib/vma.h"

struct transition {
        struct agent *a;
        uint64_t base;        /* address of the block */
        uint8_t *status;      /* [64], enum apply_status */
        uint64_t removed;     /* pages of whose discard was heard since the lock was taken; the zap may still be to come */
        uint64_t armed_usec;  /* when the guard went up */
        uint32_t n_waited;    /* accesses seen waiting */
        uint32_t longest_usec;
};

/* The daemon's advice about one block (MERGE, ZERO). */
struct advice {
        struct transition *t;
        uint32_t kind; /* enum apply_kind */
        uint64_t todo; /* pages to replace */
        const struct segment *segment[64]; /* MERGE: where the bytes of each page are expected; */
        uint32_t slot[64];                 /* agent.expected has them */
};

/* What the daemon asks: the pages of one block. status [64] is filled; returns microseconds the guard was up. */
uint32_t transition_apply(struct agent *a, uint32_t kind, const struct extent_element *extents, uint32_t n,
                          uint8_t status[64]);

/* Restores every merged page in [start, end), block by block. 0; 1: pages that were copied on write stay where they are;
 * -EBUSY: threads never left their mapping calls; -ENOMEM. */
int transition_restore_range(struct agent *a, uint64_t start, uint64_t end);

/* -- shared by hole.c, freeze.c and remerge.c -- */

bool transition_begin(struct transition *t);
void transition_end(struct transition *t);
void transition_wake(struct transition *t, uint64_t start, uint64_t end);
void transition_set(struct transition *t, uint64_t mask, enum apply_status status);
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

/* The pages of advice.todo, which lie in one VMA: plain memory, or merged runs (v). */
void hole_replace(struct advice *d);
void remerge_replace(struct advice *d, const struct vma *v);
/* `pressing`: the program itself waits for it. */
void freeze_restore(struct transition *t, uint64_t asked, bool pressing);

/* place.c: what replaces pages */

/* Page i is to be replaced by these bytes. */
bool place_is_wanted(const struct advice *d, unsigned i, const uint8_t *bytes);
/* Next run of set bits whose slots are consecutive in one segment; as next_run. */
bool next_slots(const struct advice *d, uint64_t mask, unsigned *at, unsigned *n);
/* Maps the slots of such a run over its pages, in no userfaultfd yet; the book knows. */
enum apply_status place_slots(struct advice *d, unsigned at, unsigned n);
/* Replaces pages of a merged run by nothing: anonymous memory that was never touched. */
enum apply_status place_nothing(struct transition *t, unsigned at, unsigned n);
/* MADV_DONTFORK, HUGEPAGE and NOHUGEPAGE, which new anonymous memory does not have; before a fork can see it, because fork waits for
 * the mapping lock. */
void place_put_advice_back(struct agent *a, uint64_t start, uint64_t end);
/* Whatever lies there goes into `shared`. */
void place_share(struct agent *a, uint64_t start, uint64_t end);
void place_track(struct agent *a, uint64_t start, uint64_t end);
/* Maps the segment's pages where runs in `shared` have none; what has been discarded stays absent. */
void place_populate(struct transition *t, uint64_t pages);

/* freeze.c: the frame around every change of a merged run */

/* Gives every page an entry: zeros where the program has discarded, else the segment's; and looks at the block. 0 or -errno, nothing
 * changed; -EAGAIN also when a discard came meanwhile. */
int freeze_fill(struct transition *t, uint64_t pages, struct look *ret);
/* Stops writers of the pages. Those that it could not stop have their status and are as before. Returns the others. */
uint64_t freeze_arm(struct transition *t, uint64_t pages);
/* Of frozen pages: those whose bytes nobody can change now. The others have their status. `ret`: the look at the block that told. */
uint64_t freeze_certify(struct transition *t, uint64_t frozen, struct look *ret);
/* Private pages of merged runs: freeze_certify may pass them. False: not now, or never, and they have their status. */
bool freeze_call_witness(struct transition *t, uint64_t private, bool pressing);
/* Back under `shared`. */
void freeze_thaw(struct transition *t, uint64_t pages);
/* All merged pages become plain copies, without guards: only in a forked child that still has one thread and has no contexts. Its
 * pages are not pinned (fork copies pinned pages). */
void freeze_unshare_plain(struct agent *a);
