/* merge and zero: anonymous pages -> slots of a segment, or holes (design 6.1, 6.2).
 *
 * The state of a block, and what an access by anybody meets in it:
 *
 *   TRACKED   in `track`: plain memory.                                              undo: none needed
 *   ARMED     in `guard`, MISSING: still plain memory, all pages present.            undo: disarm
 *   HOLE      pages moved to scratch: an access waits (user mode, kernel mode, GUP). undo: move back, disarm
 *   COMPARED  nothing changes.                                                       undo: move back, disarm
 *   PLACED    equal pages: a private mapping of the segment, in `shared`; complete by itself, as the bytes are equal.
 *             Other pages: moved back. Zero: the hole stays, it reads as zeros.      no undo: the result
 *   TRACKED / SHARED, accesses woken.
 *
 * Why no byte can differ. While a page is in scratch nobody but the agent can reach it: the kernel moved it only because it
 * was exclusive and unpinned (I1), and MOVE is atomic against page table users. So the comparison is of frozen bytes with
 * immutable bytes (I2). The replacement is one mmap(MAP_FIXED), atomic for the address space: before it accesses wait in the
 * guard, after it they find the segment's bytes. Between that mmap and its REGISTER in `shared` a write makes a private copy
 * as it always will; CONTINUE then finds the page there (EEXIST) and leaves it. No mapping call of the program runs
 * meanwhile (mapping lock); one that bypasses libc shows as a REMOVE event on the guard, its pages are dropped from
 * scratch and from the books (transition.removed).
 *
 * What the ioctl says it moved is never believed (docs/kernel.md): scratch is looked at. */
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "lib/book.h"
#include "lib/sys.h"
#include "lib/transition.h"
#include "lib/vma.h"

/* EAGAIN without progress: an event that was just drained, a page lock, a migration; all short. */
#define MOVE_TRIES 64U
/* Moving back must end; each try without progress yields, so this is minutes. Then memory cannot be given back: stop. */
#define BACK_TRIES 1000000U

static uint64_t scratch_address(const struct agent *a, unsigned i) {
        return (uint64_t) a->scratch + ((uint64_t) i << KSM_PAGE_SHIFT);
}

/* -- before the hole --------------------------------------------------------------------------------------------- */

/* Drops pages that are not plain memory, or not there now. The kernel's zero page is what ZERO is for: splitting a huge page gives it to
 * all pieces of zeros, those of other blocks, too. */
static void drop_ineligible(struct advice *d) {
        struct transition *t = d->t;
        struct look look;
        if (look_at_entries(t->a->pagemap_fd, t->base, BLOCK_PAGES, &look) < 0) {
                transition_set(t, d->todo, APPLY_ERROR);
                d->todo = 0;
                return;
        }
        uint64_t done = d->kind == APPLY_ZERO ? d->todo & look.zero : 0;
        transition_set(t, done, APPLY_OK);
        d->todo &= ~done;
        uint64_t bad = d->todo & (look.zero | look.swapped);
        transition_set(t, bad, APPLY_CHANGED);
        d->todo &= ~bad;
        bad = d->todo & ~look.present;
        transition_set(t, bad, APPLY_VMA_GONE);
        d->todo &= ~bad;
}

/* -- the hole ------------------------------------------------------------------------------------------------------ */

static uint64_t in_scratch(struct agent *a) {
        struct look look;
        unsigned tries = 0;
        while (look_at_entries(a->pagemap_fd, (uint64_t) a->scratch, BLOCK_PAGES, &look) < 0) {
                if (++tries > BACK_TRIES)
                        __builtin_trap(); /* cannot know where the program's pages are: would corrupt */
                sys_yield();
        }
        /* The kernel's zero page in scratch is the watchdog's; pages of the program were chosen not to be it. */
        return (look.present | look.swapped) & ~look.zero;
}

/* False: what is there would be taken for pages of the next transition. */
static bool drop_scratch(struct agent *a) {
        if (a->scratch_used)
                a->scratch_used = sys_drop((uint64_t) a->scratch, BLOCK_BYTES) < 0;
        return !a->scratch_used;
}

/* Made exclusive again by a write fault of ours: pages that a fork shared until the child went away stay marked as not
 * exclusive. Only when nobody else maps them now (pagemap bit 56), or the write would copy and cost memory. The page
 * is present and guarded in MISSING mode only, so the agent cannot wait for itself. */
static bool make_exclusive(struct agent *a, uint64_t address) {
        uint64_t entry;
        if (sys_pread(a->pagemap_fd, &entry, sizeof(entry), address >> KSM_PAGE_SHIFT << 3) != sizeof(entry))
                return false;
        const uint64_t present = 1ULL << 63, exclusive = 1ULL << 56;
        if ((entry & (present | exclusive)) != (present | exclusive))
                return false;
        if (sys_madvise(address, KSM_PAGE_SIZE, 23 /* MADV_POPULATE_WRITE */) < 0)
                return false;
        fault_point(FAULT_hole_exclusive);
        return true;
}

static uint64_t move_out(struct advice *d, uint64_t base) {
        struct agent *a = d->t->a;
        uint64_t left = d->todo, retried = 0;
        unsigned tries = 0;
        for (unsigned i = 0, n; i = 0, next_run(left, &i, &n);) {
                watch_begin(&a->watch);
                int r = context_move(&a->spare, scratch_address(a, i), page_address(base, i),
                                     (uint64_t) n << KSM_PAGE_SHIFT);
                watch_end(&a->watch);
                fault_point(FAULT_hole_moving);
                if (r == 0) {
                        left &= ~run_bits(i, n);
                        continue;
                }
                uint64_t before = left;
                left &= ~in_scratch(a);
                if (left != before)
                        tries = 0;
                uint64_t rest = left & run_bits(i, n);
                if (!rest)
                        continue;
                uint64_t first = rest & -rest; /* where it stopped */
                if (r == -EAGAIN) {
                        agent_drain(a);
                        if (++tries < MOVE_TRIES)
                                continue;
                        transition_set(d->t, left, APPLY_BUSY);
                        break;
                }
                if (r == -EBUSY && !(retried & first)) {
                        retried |= first;
                        if (make_exclusive(a, page_address(base, (unsigned) __builtin_ctzll(first))))
                                continue;
                }
                enum apply_status s = r == -EBUSY || r == -EEXIST ? APPLY_PINNED_OR_FORKED
                                      : r == -ENOENT             ? APPLY_CHANGED
                                      : r == -ENOMEM             ? APPLY_BUDGET
                                      : r == -EINVAL             ? APPLY_VMA_GONE
                                                                 : APPLY_ERROR;
                transition_set(d->t, first, s);
                left &= ~first;
        }
        return in_scratch(a);
}

static uint64_t compare(struct advice *d, uint64_t moved) {
        struct agent *a = d->t->a;
        uint64_t equal = 0;
        for (uint64_t m = moved; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);
                if (place_is_wanted(d, i, (const uint8_t *) scratch_address(a, i)))
                        equal |= 1ULL << i;
        }
        transition_set(d->t, moved & ~equal, APPLY_CHANGED);
        return equal;
}

/* -- placing ------------------------------------------------------------------------------------------------------- */

static enum apply_status place_run(struct advice *d, unsigned at, unsigned n) {
        struct agent *a = d->t->a;
        uint64_t start = page_address(d->t->base, at), end = page_address(d->t->base, at + n);
        enum apply_status s = place_slots(d, at, n);
        if (s != APPLY_OK)
                return s;
        /* Populated before it is in place, a run would never fuse with its neighbours; registered before it is populated, it
         * does. */
        place_share(a, start, end);
        fault_point(FAULT_hole_shared);
        place_populate(d->t, run_bits(at, n));
        return APPLY_OK;
}

static uint64_t place(struct advice *d, uint64_t equal) {
        uint64_t placed = 0;
        if (d->kind == APPLY_ZERO) {
                transition_set(d->t, equal, APPLY_OK);
                return equal;
        }
        /* Populating one run may have read the discard of a page of the next. */
        for (unsigned i = 0, n; next_slots(d, equal & ~d->t->removed, &i, &n); i += n) {
                enum apply_status s = place_run(d, i, n);
                transition_set(d->t, run_bits(i, n), s);
                if (s == APPLY_OK)
                        placed |= run_bits(i, n);
        }
        return placed;
}

/* -- closing ------------------------------------------------------------------------------------------------------- */

/* The page cannot be moved back: something was changed past the lock. True: it is where it belongs, or belongs nowhere any more.
 * Another protection, a lock or a name forbids UFFDIO_MOVE, but no UFFDIO_COPY. The frame is another one then, which nobody can
 * tell: it was exclusive and unpinned. COPY needs a mapping that is registered, which one made meanwhile is not (ENOENT, as
 * where there is none), and an empty entry (EEXIST): what is there now is right. A discard is not heard of by this: COPY waits
 * for its event to be read (EAGAIN), and move_back leaves what was removed. */
static bool give_back(struct advice *d, unsigned i) {
        struct agent *a = d->t->a;
        uint64_t copied;
        int r = context_copy(&a->guard, page_address(d->t->base, i), scratch_address(a, i), KSM_PAGE_SIZE, &copied);
        return r == 0 || r == -EEXIST || r == -ENOENT || r == -EINVAL;
}

static void move_back(struct advice *d, uint64_t back) {
        struct transition *t = d->t;
        struct agent *a = t->a;
        unsigned tries = 0;
        while (back &= ~t->removed) {
                unsigned i = 0, n = 1;
                (void) next_run(back, &i, &n);
                int r = context_move(&a->guard, page_address(t->base, i), scratch_address(a, i),
                                     (uint64_t) n << KSM_PAGE_SHIFT);
                fault_point(FAULT_hole_returning);
                if (r == 0) {
                        back &= ~run_bits(i, n);
                        continue;
                }
                uint64_t before = back;
                back &= in_scratch(a);
                if (back != before)
                        tries = 0;
                agent_drain(a);
                uint64_t rest = back & run_bits(i, n);
                if (!rest)
                        continue;
                uint64_t first = rest & -rest;
                if (r == -EBUSY) {
                        /* A raw fork made it non-exclusive: a write does the opposite. */
                        volatile uint8_t *p = (volatile uint8_t *) scratch_address(a, (unsigned) __builtin_ctzll(first));
                        *p = *p;
                } else if ((r == -EEXIST || r == -EINVAL || r == -ENOENT) &&
                           give_back(d, (unsigned) __builtin_ctzll(first))) {
                        a->raw = true;
                        back &= ~first;
                        continue;
                }
                if (++tries > BACK_TRIES)
                        __builtin_trap(); /* the program's bytes cannot be given back: would corrupt */
                sys_yield();
        }
}

static void track_again(struct agent *a, uint64_t start, uint64_t end) {
        if (context_register(&a->track, start, end, UFFDIO_REGISTER_MODE_WP) < 0)
                a->retrack = true;
}

static void disarm(struct advice *d, uint64_t armed, uint64_t placed) {
        struct agent *a = d->t->a;
        uint64_t plain = d->kind == APPLY_ZERO ? armed : armed & ~placed;
        for (unsigned i = 0, n; next_run(plain, &i, &n); i += n) {
                uint64_t start = page_address(d->t->base, i), end = page_address(d->t->base, i + n);
                (void) context_unregister_surely(&a->guard, start, end);
                fault_point(FAULT_hole_disarmed);
                track_again(a, start, end);
        }
}

/* Runs of slots become mappings of their own, so they are armed one by one: what lies between them stays as it is, and write-protected.
 * Zero pages need none: all from the first to the last, or as many mappings would be made for a moment. */
static uint64_t pages_to_arm(const struct advice *d) {
        unsigned first = (unsigned) __builtin_ctzll(d->todo), last = 63 - (unsigned) __builtin_clzll(d->todo);
        return d->kind == APPLY_ZERO ? run_bits(first, last - first + 1) : d->todo;
}

/* Returns what is armed. */
static uint64_t arm(struct advice *d) {
        struct transition *t = d->t;
        struct agent *a = t->a;
        uint64_t armed = 0;
        for (unsigned i = 0, n; next_run(pages_to_arm(d), &i, &n); i += n) {
                uint64_t start = page_address(t->base, i), end = page_address(t->base, i + n);
                int r = context_unregister(&a->track, start, end);
                fault_point(FAULT_hole_untracked);
                if (r == 0)
                        r = context_register(&a->guard, start, end, UFFDIO_REGISTER_MODE_MISSING);
                if (r < 0) {
                        transition_set(t, d->todo & run_bits(i, n), r == -ENOMEM ? APPLY_BUDGET : APPLY_VMA_GONE);
                        track_again(a, start, end);
                        continue;
                }
                if (!armed)
                        t->armed_usec = now_usec();
                armed |= run_bits(i, n);
                fault_point(FAULT_hole_armed);
        }
        return armed;
}

/* One VMA's share of the block. */
static void replace_pages(struct advice *d) {
        struct transition *t = d->t;
        struct agent *a = t->a;
        if (!drop_scratch(a)) /* failed the last time, and does again */
                return transition_set(t, d->todo, APPLY_BUSY);
        uint64_t armed = arm(d);
        d->todo &= armed;
        if (!armed)
                return;
        a->scratch_used = true;
        uint64_t moved = move_out(d, t->base);
        fault_point(FAULT_hole_moved);
        uint64_t equal = compare(d, moved);
        agent_drain(a);
        equal &= ~t->removed;
        fault_point(FAULT_hole_compared);
        uint64_t placed = place(d, equal);
        fault_point(FAULT_hole_placed);
        move_back(d, moved & ~placed);
        disarm(d, armed, placed);
        fault_point(FAULT_hole_closed);
        transition_wake(t, t->base, t->base + BLOCK_BYTES);
        fault_point(FAULT_hole_woken);
        (void) drop_scratch(a);
}

void hole_replace(struct advice *d) {
        drop_ineligible(d);
        if (d->todo)
                replace_pages(d);
}
