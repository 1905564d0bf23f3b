/* merge and zero inside merged runs: pages that were copied on write, discarded, or map another slot (design 6.3).
 *
 * The state of a page, and what an access meets in it; the first ones are those of freeze.c:
 *
 *   SHARED    in `shared`.                                                             undo: none needed
 *   FILLED    every entry is there.                                                    undo: none needed
 *   FROZEN    in `guard`: readers go on, writers wait.                                 undo: thaw
 *   CERTIFIED its bytes cannot change: it maps a segment, or nobody has it pinned.     undo: thaw
 *   COMPARED  nothing changes.                                                         undo: thaw
 *   PLACED    equal: the slot is mapped over it, or untouched anonymous memory; complete by itself.
 *                                                                                      no undo: the result
 *   SHARED / TRACKED, accesses woken.
 *
 * Why no byte can differ: from FROZEN to PLACED nobody can write (a pin for writing is a write that waits; pins from before are
 * certified not to exist), so the compared bytes are the ones replaced, and the replacement is one mmap(MAP_FIXED), atomic for the
 * address space. Readers see equal bytes before and after it.
 *
 * All runs are placed and registered before any is populated: CONTINUE prepares an anon_vma, and two VMAs that have one each do not
 * fuse. So a page that comes back to its place leaves no VMA behind. */
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/book.h"
#include "lib/sys.h"
#include "lib/transition.h"

#define PAGES_A_READ (TEXT_BUFFER_BYTES / (uint32_t) KSM_PAGE_SIZE)

/* Those that map the slot already. */
static uint64_t in_place(const struct advice *d, const struct vma *v, uint64_t file) {
        uint64_t there = 0;
        for (uint64_t m = d->kind == APPLY_MERGE ? file : 0; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);
                uint64_t offset = v->offset + (page_address(d->t->base, i) - v->start);
                if (v->inode == d->segment[i]->inode && offset == (uint64_t) d->slot[i] << KSM_PAGE_SHIFT)
                        there |= 1ULL << i;
        }
        return there;
}

/* What can be done at all, and what is done already. */
static void drop_ineligible(struct advice *d, const struct vma *v) {
        struct transition *t = d->t;
        const struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        bool writable = vma_prot(v) == (PROT_READ | PROT_WRITE);
        uint64_t bad = d->todo & ~(b && writable ? b->merged : 0);
        transition_set(t, bad, APPLY_VMA_GONE);
        d->todo &= ~bad;
        struct look look = { 0 };
        int r = d->todo ? freeze_fill(t, d->todo, &look) : 0;
        if (r < 0) {
                transition_set(t, d->todo, r == -EAGAIN ? APPLY_BUSY : APPLY_ERROR);
                d->todo = 0;
                return;
        }
        uint64_t done = in_place(d, v, d->todo & look.file & look.present);
        transition_set(t, done, APPLY_OK);
        uint64_t absent = d->todo & ~look.present; /* swapped, or taken by reclaim a moment ago */
        transition_set(t, absent, APPLY_BUSY);
        d->todo &= ~done & ~absent;
        uint64_t private = d->todo & ~look.file & ~look.zero;
        if (private && !freeze_call_witness(t, private, false))
                d->todo &= ~private;
}

/* Frozen pages next to each other, one reading for several. The agent never touches the pages themselves: it could wait for its own
 * guard. */
static uint64_t compare(struct advice *d, uint64_t pages) {
        struct agent *a = d->t->a;
        uint64_t equal = 0;
        for (unsigned i = 0, n; next_run(pages, &i, &n); i += n) {
                n = MIN(n, (unsigned) PAGES_A_READ);
                long got = sys_pread(a->mem_fd, a->text, (size_t) n << KSM_PAGE_SHIFT, page_address(d->t->base, i));
                if (got != (long) n << KSM_PAGE_SHIFT) {
                        transition_set(d->t, run_bits(i, n), APPLY_ERROR);
                        continue;
                }
                for (unsigned k = 0; k < n; k++) {
                        const uint8_t *bytes = (const uint8_t *) a->text + ((size_t) k << KSM_PAGE_SHIFT);
                        if (place_is_wanted(d, i + k, bytes))
                                equal |= 1ULL << (i + k);
                        else
                                d->t->status[i + k] = APPLY_CHANGED;
                }
        }
        return equal;
}

static uint64_t place(struct advice *d, uint64_t equal) {
        uint64_t placed = 0;
        for (unsigned i = 0, n; d->kind == APPLY_ZERO ? next_run(equal, &i, &n) : next_slots(d, equal, &i, &n); i += n) {
                enum apply_status s = d->kind == APPLY_ZERO ? place_nothing(d->t, i, n) : place_slots(d, i, n);
                transition_set(d->t, run_bits(i, n), s);
                if (s == APPLY_OK)
                        placed |= run_bits(i, n);
        }
        return placed;
}

static void close_up(struct advice *d, uint64_t frozen, uint64_t placed) {
        struct transition *t = d->t;
        freeze_thaw(t, frozen & ~placed);
        for (unsigned i = 0, n; next_run(placed, &i, &n); i += n)
                (d->kind == APPLY_ZERO ? place_track : place_share)(t->a, page_address(t->base, i),
                                                                    page_address(t->base, i + n));
        fault_point(FAULT_freeze_tracked);
        if (d->kind == APPLY_MERGE)
                place_populate(t, placed);
}

void remerge_replace(struct advice *d, const struct vma *v) {
        struct transition *t = d->t;
        drop_ineligible(d, v);
        if (!d->todo)
                return;
        uint64_t frozen = freeze_arm(t, d->todo);
        agent_drain(t->a);
        struct look look;
        uint64_t certified = freeze_certify(t, frozen & ~t->removed, &look);
        uint64_t equal = compare(d, certified);
        fault_point(FAULT_freeze_compared);
        agent_drain(t->a);
        uint64_t placed = place(d, equal & ~t->removed);
        close_up(d, frozen, placed);
        transition_wake(t, t->base, t->base + BLOCK_BYTES);
        fault_point(FAULT_freeze_woken);
}
