/* restore: merged pages -> private anonymous copies (design 6.3).
 *
 * The state of a run, and what an access meets in it:
 *
 *   SHARED    in `shared`: reads see the segment, a write makes a private copy (kernel, no waiting).
 *   FILLED    every entry is there, so what happens between two contexts needs none.       undo: none needed
 *   FROZEN    in `guard`, WP|MINOR, write-protected synchronously: reads of present pages go on, writes and accesses to
 *             absent pages wait.                                                     undo: thaw
 *   COPIED    the bytes stand in anonymous memory of ours (staging).                 undo: drop staging, thaw
 *   REPLACED  staging was moved over the run by one mremap: complete by itself.      no undo: the result
 *   TRACKED / SHARED, accesses woken.
 *
 * Only pages that still map the segment (FILE), the zero page after a discard, or nothing are replaced: their bytes are known and
 * cannot be pinned for writing. A page that was copied on write may be pinned by an I/O in flight, which MOVE cannot
 * certify in a file mapping: it stays where it is, an anonymous page of a file mapping, and is reported (APPLY_PINNED_OR_FORKED).
 * Its mapping keeps a reference on the segment until the program unmaps it. */
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/book.h"
#include "lib/sys.h"
#include "lib/transition.h"
#include "lib/vma.h"

#define PROTECT_TRIES 64U

static int protect(struct transition *t, uint64_t start, uint64_t end) {
        int r;
        unsigned tries = 0;
        while ((r = context_writeprotect(&t->a->guard, start, end, true)) == -EAGAIN && ++tries < PROTECT_TRIES)
                agent_drain(t->a);
        return r;
}

/* Every page of the run gets an entry while `shared` still watches it: zeros where the program has discarded, else the
 * segment's. An empty one would read as the segment between two contexts, also where it was discarded; and the freeze
 * would put a marker there, which cannot be told from swapped memory. */
static int fill(struct transition *t, uint64_t start, uint64_t end) {
        struct agent *a = t->a;
        unsigned at = (unsigned) ((start - t->base) >> KSM_PAGE_SHIFT);
        uint64_t bits = run_bits(at, (unsigned) ((end - start) >> KSM_PAGE_SHIFT));
        struct look look;
        if (!events_zero_removed(a, t->base, bits))
                return -EAGAIN;
        int r = look_at(a->pagemap_fd, t->base, BLOCK_PAGES, &look);
        if (r < 0)
                return r;
        for (unsigned i = 0, n; next_run(bits & ~look.present, &i, &n); i += n)
                transition_populate(a, page_address(t->base, i), page_address(t->base, i + n));
        return 0;
}

static int freeze(struct transition *t, uint64_t start, uint64_t end) {
        struct agent *a = t->a;
        const uint64_t mode = UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR;
        int r = context_unregister(&a->shared, start, end);
        fault_point(FAULT_freeze_unshared);
        if (r == 0)
                r = context_register(&a->guard, start, end, mode);
        if (r == 0) {
                t->armed_usec = now_usec();
                fault_point(FAULT_freeze_armed);
                r = protect(t, start, end);
                fault_point(FAULT_freeze_protected);
        }
        return r;
}

static void thaw(struct transition *t, uint64_t start, uint64_t end) {
        struct agent *a = t->a;
        (void) context_unregister(&a->guard, start, end); /* clears the write protection */
        if (context_register(&a->shared, start, end, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR) < 0)
                a->raw = true; /* as in hole.c: discards could not be told any more */
        fault_point(FAULT_freeze_thawed);
}

/* The bytes of a page that must be private from now on, into staging (already zero). The agent never touches the page
 * itself: it could wait for its own guard. */
static int copy_page(struct transition *t, uint64_t address, bool present, bool removed, uint8_t *to) {
        struct agent *a = t->a;
        if (removed)
                return 0;
        if (!present) {
                uint64_t done;
                (void) context_continue(&a->guard, address, address + KSM_PAGE_SIZE, &done);
        }
        long n = sys_pread(a->mem_fd, to, KSM_PAGE_SIZE, address);
        return n == (long) KSM_PAGE_SIZE ? 0 : n < 0 ? (int) n : -EIO;
}

/* mremap over the run. Its failures come before anything changed, but for one that the kernel takes for granted not to happen
 * (no memory for a VMA after the target was unmapped): then the target must be filled at any price. */
static long move_over(struct agent *a, uint64_t from, uint64_t size, uint64_t to) {
        for (unsigned tries = 0;; tries++) {
                struct vma v;
                long r = sys_mremap(from, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to);
                if (!sys_is_error(r) || vma_query(a->maps_fd, to, false, &v) == 0)
                        return r;
                if (tries > PROTECT_TRIES)
                        __builtin_trap(); /* the program's memory is gone: would corrupt */
                sys_yield();
        }
}

/* One frozen run, one VMA. Returns the pages replaced. */
static uint64_t copy_and_replace(struct transition *t, unsigned at, unsigned n, const struct vma *v) {
        struct agent *a = t->a;
        struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        uint64_t bits = run_bits(at, n), length = (uint64_t) n << KSM_PAGE_SHIFT, replaced = 0;
        struct look look;
        if (look_at(a->pagemap_fd, t->base, BLOCK_PAGES, &look) < 0)
                return 0;
        /* Plain memory, not own_alloc: it becomes the program's. */
        long staging = sys_mmap(own_hint(length), length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(staging)) {
                transition_set(t, bits, APPLY_BUDGET);
                return 0;
        }
        uint64_t private = (look.present | look.swapped) & ~look.file & ~look.zero & bits;
        transition_set(t, private, APPLY_PINNED_OR_FORKED);
        uint64_t copied = bits & ~private;
        for (uint64_t m = copied; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);
                /* A removed page that still maps the segment: its discard failed (MADV_FREE) or is still to come. */
                bool removed = ((b->removed & ~look.file) | look.zero) >> i & 1;
                uint8_t *to = (uint8_t *) staging + ((uint64_t) (i - at) << KSM_PAGE_SHIFT);
                if (copy_page(t, page_address(t->base, i), look.present >> i & 1, removed, to) < 0) {
                        copied &= ~(1ULL << i);
                        transition_set(t, 1ULL << i, APPLY_ERROR);
                }
        }
        if (vma_prot(v) != (PROT_READ | PROT_WRITE) && sys_mprotect((uint64_t) staging, length, vma_prot(v)) < 0)
                copied = 0;
        if (rangeset_overlaps(&a->dontfork, page_address(t->base, at), page_address(t->base, at + n)))
                (void) sys_madvise((uint64_t) staging, length, MADV_DONTFORK);
        fault_point(FAULT_freeze_copied);
        for (unsigned i = 0, k; next_run(copied, &i, &k); i += k) {
                uint64_t from = (uint64_t) staging + ((uint64_t) (i - at) << KSM_PAGE_SHIFT);
                uint64_t size = (uint64_t) k << KSM_PAGE_SHIFT;
                long r = move_over(a, from, size, page_address(t->base, i));
                if (sys_is_error(r)) {
                        transition_set(t, run_bits(i, k), (enum apply_status) errno_status((int) r));
                        continue;
                }
                replaced |= run_bits(i, k);
                b->merged &= ~run_bits(i, k);
                b->removed &= ~run_bits(i, k);
                transition_set(t, run_bits(i, k), APPLY_OK);
                fault_point(FAULT_freeze_replaced);
        }
        /* Only what was not moved away: elsewhere somebody may have mapped anew meanwhile. */
        for (unsigned i = 0, k; next_run(bits & ~replaced, &i, &k); i += k)
                (void) sys_munmap((uint64_t) staging + ((uint64_t) (i - at) << KSM_PAGE_SHIFT),
                                  (uint64_t) k << KSM_PAGE_SHIFT);
        return replaced;
}

static void restore_run(struct transition *t, unsigned at, unsigned n, const struct vma *v) {
        struct agent *a = t->a;
        uint64_t start = page_address(t->base, at), end = page_address(t->base, at + n);
        int r = fill(t, start, end);
        uint64_t replaced = 0;
        if (r < 0) { /* nothing has changed yet */
                transition_set(t, run_bits(at, n), r == -EAGAIN ? APPLY_BUSY : APPLY_ERROR);
                return;
        }
        fault_point(FAULT_freeze_filled);
        r = freeze(t, start, end);
        if (r == 0)
                replaced = copy_and_replace(t, at, n, v);
        else
                transition_set(t, run_bits(at, n), (enum apply_status) errno_status(r));
        for (unsigned i = 0, k; next_run(run_bits(at, n) & ~replaced, &i, &k); i += k)
                thaw(t, page_address(t->base, i), page_address(t->base, i + k));
        for (unsigned i = 0, k; next_run(replaced, &i, &k); i += k) {
                uint64_t from = page_address(t->base, i), to = page_address(t->base, i + k);
                if (rangeset_contains(&a->ranges, from, to) && !rangeset_overlaps(&a->excluded, from, to) &&
                    context_register(&a->track, from, to, UFFDIO_REGISTER_MODE_WP) < 0)
                        a->retrack = true;
        }
        fault_point(FAULT_freeze_tracked);
        transition_wake(t, start, end);
        fault_point(FAULT_freeze_woken);
}

void freeze_restore(struct transition *t, uint64_t asked) {
        struct agent *a = t->a;
        struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        uint64_t merged = b ? asked & b->merged : 0;
        /* Nothing merged there any more is what the asker wants. */
        transition_set(t, asked & ~merged, APPLY_OK);
        while (merged) {
                struct vma v;
                unsigned i = (unsigned) __builtin_ctzll(merged), n = 1;
                (void) next_run(merged, &i, &n);
                uint64_t address = page_address(t->base, i);
                if (vma_query(a->maps_fd, address, false, &v) < 0 || !v.segment) {
                        /* The book is stale: the program has unmapped or replaced the page. */
                        b->merged &= ~(1ULL << i);
                        b->removed &= ~(1ULL << i);
                        transition_set(t, 1ULL << i, APPLY_VMA_GONE);
                        merged &= ~(1ULL << i);
                        continue;
                }
                n = MIN(n, (unsigned) ((v.end - address) >> KSM_PAGE_SHIFT));
                restore_run(t, i, n, &v);
                merged &= ~run_bits(i, n);
        }
}

static bool copy_plain(struct agent *a, uint64_t start, uint64_t length, const struct vma *v) {
        long copy = sys_mmap(own_hint(length), length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(copy))
                return false;
        if (sys_pread(a->mem_fd, (void *) copy, length, start) == (long) length &&
            sys_mprotect((uint64_t) copy, length, vma_prot(v)) == 0 &&
            !sys_is_error(move_over(a, (uint64_t) copy, length, start)))
                return true;
        (void) sys_munmap((uint64_t) copy, length);
        return false;
}

void freeze_unshare_plain(struct agent *a) {
        struct book_walk w = { .start = 0, .end = UINT64_MAX };
        uint64_t block, mask;
        while (!a->contexts_open && book_walk_next(&w, &block, &mask)) {
                struct book_block *b = book_find(block);
                uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT);
                for (unsigned i = 0, n; next_run(mask, &i, &n); i += n) {
                        struct vma v;
                        uint64_t start = page_address(base, i);
                        if (vma_query(a->maps_fd, start, false, &v) < 0 || !v.segment) {
                                n = 1;
                                continue;
                        }
                        n = MIN(n, (unsigned) ((v.end - start) >> KSM_PAGE_SHIFT));
                        if (copy_plain(a, start, (uint64_t) n << KSM_PAGE_SHIFT, &v))
                                b->merged &= ~run_bits(i, n);
                        fault_point(FAULT_plain_copied);
                }
        }
}
