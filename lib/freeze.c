/* restore: merged pages -> private anonymous copies (design 6.3).
 *
 * The state of a run, and what an access meets in it:
 *
 *   SHARED    in `shared`: reads see the segment, a write makes a private copy (kernel, no waiting).
 *   FILLED    every entry is there, so what happens between two contexts needs none.       undo: none needed
 *   FROZEN    in `guard`, WP|MINOR, write-protected synchronously: reads of present pages go on, writes and accesses to
 *             absent pages wait.                                                     undo: thaw
 *   AWAY      (whole runs that map the segment) the entries are in another mapping of the file, which is in no userfaultfd:
 *             readers wait, too.                                              undo: drop that mapping, thaw, populate
 *   COPIED    the bytes stand in anonymous memory of ours (staging).                 undo: drop staging, as above
 *   REPLACED  staging was moved over the run by one mremap: complete by itself.      no undo: the result
 *   TRACKED / SHARED, accesses woken.
 *
 * A page that maps the segment (FILE), or the zero page after a discard, has bytes that nobody can change: no pin for writing finds
 * it without making it private first. A page that was copied on write is anonymous memory in a file mapping; it may be pinned
 * by an I/O in flight, and then its bytes change without a fault. It is replaced only with a certificate (I1): lib/witness.h.
 * The order: the witness is called, the page frozen, and then pagemap asked. A pin from before the witness shows there, and so
 * does one between witness and freeze; after the freeze a pin for writing waits as any writer, one for reading breaks the sharing
 * as ever and keeps a frame that nobody writes any more. Without certificate the page stays, is reported
 * (APPLY_PINNED_OR_FORKED), and its mapping keeps a reference on the segment. */
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"
#include "common/fault.h"
#include "lib/agent_loop.h"
#include "lib/book.h"
#include "lib/sys.h"
#include "lib/transition.h"
#include "lib/vma.h"
#include "lib/witness.h"

#define PROTECT_TRIES 64U

static int protect(struct transition *t, uint64_t start, uint64_t end) {
        int r;
        unsigned tries = 0;
        while ((r = context_writeprotect(&t->a->guard, start, end, true)) == -EAGAIN && ++tries < PROTECT_TRIES)
                agent_drain(t->a);
        return r;
}

/* An empty entry would read as the segment between two contexts, also where it was discarded; and the freeze would put a marker
 * there, which cannot be told from swapped memory. */
int freeze_fill(struct transition *t, uint64_t pages, struct look *ret) {
        struct agent *a = t->a;
        if (!events_zero_removed(a, t->base, pages))
                return -EAGAIN;
        int r = look_at(a->pagemap_fd, t->base, BLOCK_PAGES, ret);
        uint64_t empty = r < 0 ? 0 : pages & ~ret->present;
        place_populate(t, empty);
        fault_point(FAULT_freeze_filled);
        if (empty)
                r = look_at(a->pagemap_fd, t->base, BLOCK_PAGES, ret);
        if (r < 0)
                return r;
        /* Discarded meanwhile, around libc: nobody knows whether those entries are empty already. */
        return t->removed & pages ? -EAGAIN : 0;
}

static int freeze(struct transition *t, uint64_t start, uint64_t end) {
        struct agent *a = t->a;
        const uint64_t mode = UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR;
        int r = context_unregister(&a->shared, start, end);
        fault_point(FAULT_freeze_unshared);
        if (r == 0)
                r = context_register(&a->guard, start, end, mode);
        if (r == 0) {
                if (!t->armed_usec)
                        t->armed_usec = now_usec();
                fault_point(FAULT_freeze_armed);
                r = protect(t, start, end);
                fault_point(FAULT_freeze_protected);
        }
        return r;
}

void freeze_thaw(struct transition *t, uint64_t pages) {
        for (unsigned i = 0, n; next_run(pages, &i, &n); i += n) {
                uint64_t start = page_address(t->base, i), end = page_address(t->base, i + n);
                (void) context_unregister_surely(&t->a->guard, start, end); /* clears the write protection */
                place_share(t->a, start, end);
                fault_point(FAULT_freeze_thawed);
        }
}

uint64_t freeze_arm(struct transition *t, uint64_t pages) {
        uint64_t frozen = 0;
        t->armed_usec = 0;
        for (unsigned i = 0, n; next_run(pages, &i, &n); i += n) {
                uint64_t bits = run_bits(i, n);
                int r = freeze(t, page_address(t->base, i), page_address(t->base, i + n));
                if (r == 0) {
                        frozen |= bits;
                        continue;
                }
                transition_set(t, bits, (enum apply_status) errno_status(r));
                freeze_thaw(t, bits);
        }
        if (!t->armed_usec)
                t->armed_usec = now_usec();
        /* Who writes through /proc/PID/mem or ptrace and found its page before the protection holds mmap_lock for reading until the
         * bytes are there. brk takes it for writing: after it nobody does. */
        (void) sys_call(SYS_brk, 0, 0, 0, 0, 0, 0);
        return frozen;
}

/* Copied on write, or discarded and filled again. Swapped ones among them: nothing is known of those. */
static uint64_t private_pages(const struct look *look, uint64_t pages) {
        return (look->present | look->swapped) & ~look->file & ~look->zero & pages;
}

bool freeze_call_witness(struct transition *t, uint64_t private, bool pressing) {
        int r = witness_call(t->a, pressing);
        if (r < 0)
                transition_set(t, private, r == -EAGAIN ? APPLY_LATER : APPLY_PINNED_OR_FORKED);
        return r == 0;
}

uint64_t freeze_certify(struct transition *t, uint64_t frozen, struct look *ret) {
        if (look_at(t->a->pagemap_fd, t->base, BLOCK_PAGES, ret) < 0) {
                transition_set(t, frozen, APPLY_ERROR);
                return 0;
        }
        uint64_t private = private_pages(ret, frozen);
        if (private)
                private &= ~witness_shared(t->a, t->base, private);
        transition_set(t, private, APPLY_PINNED_OR_FORKED);
        return frozen & ~private;
}

/* The bytes of a run of present pages into staging; returns those that are there. The agent never touches the pages themselves: it
 * could wait for its own guard. `from`: where the entries of the pages are now. */
static uint64_t read_run(struct transition *t, unsigned at, unsigned n, uint64_t from, uint8_t *to) {
        uint64_t copied = 0;
        /* All of staging in one call is half the price of a page fault each. Should it fail, they come one by one. */
        (void) sys_madvise((uint64_t) to, (uint64_t) n << KSM_PAGE_SHIFT, MADV_POPULATE_WRITE);
        for (unsigned i = 0; i < n;) {
                size_t offset = (size_t) i << KSM_PAGE_SHIFT, length = (size_t) (n - i) << KSM_PAGE_SHIFT;
                long got = sys_pread(t->a->mem_fd, to + offset, length, from + offset);
                unsigned k = got > 0 ? (unsigned) ((size_t) got >> KSM_PAGE_SHIFT) : 0;
                copied |= run_bits(at + i, k);
                if (k == 0)
                        transition_set(t, run_bits(at + i, 1), APPLY_ERROR);
                i += MAX(k, 1U);
        }
        return copied;
}

/* The bytes of pages that must be private from now on, into staging (already zero). Returns the pages of which they are there. */
static uint64_t read_pages(struct transition *t, unsigned at, uint64_t pages, uint64_t present, uint64_t removed, uint8_t *staging) {
        uint64_t copied = pages & removed;
        for (uint64_t m = pages & ~removed & ~present; m; m &= m - 1) {
                uint64_t address = page_address(t->base, (unsigned) __builtin_ctzll(m)), done;
                (void) context_continue(&t->a->guard, address, address + KSM_PAGE_SIZE, &done);
        }
        for (unsigned i = 0, n; next_run(pages & ~removed, &i, &n); i += n)
                copied |= read_run(t, i, n, page_address(t->base, i), staging + ((size_t) (i - at) << KSM_PAGE_SHIFT));
        return copied;
}

/* -- from beside ----------------------------------------------------------------------------------------------------
 *
 * UFFDIO_COPY makes a page of the bytes at an address: no clearing, one copy, half the price of the above. But it reads as any access
 * does: where reclaim has taken an entry of a frozen page, it would wait in the guard, for the agent, which is itself. So the
 * entries of the run go to another mapping of the same file before, by mremap(MREMAP_DONTUNMAP): the guard has no EVENT_REMAP, so
 * that mapping is in no userfaultfd, and an entry that is missing there the kernel fills from the file. Where they were the guard
 * stays, empty: who reads now waits as who writes.
 *
 * Why nothing can be lost with it: every page maps the segment (no private page among them, looked at when writers waited
 * already), so what stays behind is a mapping of the same bytes at the same offsets. Undone, the run is populated from the segment as
 * any merged run is. Nor can a discard be: one whose event was read before the look has kept its run from coming here, and until the run is
 * replaced no event is read. So one that comes now zaps what it finds afterwards. */

struct beside {
        uint64_t start, length; /* of the other mapping; 0: there is none */
};

static bool take_beside(struct agent *a, uint64_t start, uint64_t length, struct beside *ret) {
        long r = sys_mremap(start, length, length, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, own_hint(length));
        fault_point(FAULT_freeze_beside);
        if (sys_is_error(r))
                return false;
        *ret = (struct beside) { (uint64_t) r, length };
        return true;
}

static void drop_beside(const struct beside *b) {
        if (b->length)
                (void) sys_munmap(b->start, b->length);
}

/* The same as read_run, from there. What the kernel does not copy (staging has a page: all new memory is locked) is read; not while
 * staging is registered, or the agent would wait for itself where it has no page. */
static uint64_t copy_beside(struct transition *t, unsigned at, unsigned n, const struct beside *b, uint8_t *staging) {
        const struct context *spare = &t->a->spare;
        uint64_t start = (uint64_t) staging, length = (uint64_t) n << KSM_PAGE_SHIFT, done = 0;
        if (context_register(spare, start, start + length, UFFDIO_REGISTER_MODE_MISSING) == 0) {
                (void) context_copy(spare, start, b->start, length, &done);
                if (done < length && context_unregister_surely(spare, start, start + length) < 0) {
                        transition_set(t, run_bits(at, n), APPLY_ERROR);
                        return 0;
                }
        }
        unsigned k = (unsigned) (done >> KSM_PAGE_SHIFT);
        return run_bits(at, k) | (k < n ? read_run(t, at + k, n - k, b->start + done, staging + done) : 0);
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

/* The pages of staging that hold what is to stand in the run, at `at`. `look`: at the frozen pages. */
static uint64_t copy_pages(struct transition *t, unsigned at, unsigned n, uint64_t pages, const struct look *look, uint8_t *staging,
                           struct beside *beside) {
        const struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        uint64_t bits = run_bits(at, n);
        bool of_segment = pages == bits && !(bits & (b->removed | ~(look->file & look->present)));
        if (of_segment && !beside->length && take_beside(t->a, page_address(t->base, at), (uint64_t) n << KSM_PAGE_SHIFT, beside))
                return copy_beside(t, at, n, beside, staging);
        /* A removed page that is there has been filled again, or its discard failed (MADV_FREE). */
        return read_pages(t, at, pages, look->present, (b->removed & ~look->present) | look->zero, staging);
}

static uint64_t replace(struct transition *t, unsigned at, uint64_t copied, uint64_t staging) {
        struct agent *a = t->a;
        struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        uint64_t replaced = 0;
        for (unsigned i = 0, k; next_run(copied, &i, &k); i += k) {
                uint64_t from = staging + ((uint64_t) (i - at) << KSM_PAGE_SHIFT);
                uint64_t size = (uint64_t) k << KSM_PAGE_SHIFT;
                long r = move_over(a, from, size, page_address(t->base, i));
                if (sys_is_error(r)) {
                        transition_set(t, run_bits(i, k), (enum apply_status) errno_status((int) r));
                        continue;
                }
                place_put_advice_back(a, page_address(t->base, i), page_address(t->base, i + k));
                replaced |= run_bits(i, k);
                b->merged &= ~run_bits(i, k);
                b->removed &= ~run_bits(i, k);
                transition_set(t, run_bits(i, k), APPLY_OK);
                fault_point(FAULT_freeze_replaced);
        }
        return replaced;
}

/* One frozen run, one VMA. Returns the pages replaced. */
static uint64_t copy_and_replace(struct transition *t, unsigned at, unsigned n, const struct vma *v, struct beside *beside) {
        uint64_t bits = run_bits(at, n), length = (uint64_t) n << KSM_PAGE_SHIFT, replaced;
        struct look look;
        /* A discard that was heard of, and came around libc, zaps later, perhaps after the bytes have been copied. */
        uint64_t copied = freeze_certify(t, bits & ~t->removed, &look);
        if (!copied)
                return 0;
        /* Plain memory, not own_alloc: it becomes the program's. */
        long staging = sys_mmap(own_hint(length), length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(staging)) {
                transition_set(t, copied, APPLY_BUDGET);
                return 0;
        }
        copied = copy_pages(t, at, n, copied, &look, (uint8_t *) staging, beside);
        if (vma_prot(v) != (PROT_READ | PROT_WRITE) && sys_mprotect((uint64_t) staging, length, vma_prot(v)) < 0) {
                transition_set(t, copied, APPLY_BUDGET);
                copied = 0;
        }
        fault_point(FAULT_freeze_copied);
        replaced = replace(t, at, copied, (uint64_t) staging);
        /* Only what was not moved away: elsewhere somebody may have mapped anew meanwhile. */
        for (unsigned i = 0, k; next_run(bits & ~replaced, &i, &k); i += k)
                (void) sys_munmap((uint64_t) staging + ((uint64_t) (i - at) << KSM_PAGE_SHIFT),
                                  (uint64_t) k << KSM_PAGE_SHIFT);
        return replaced;
}

static void restore_run(struct transition *t, unsigned at, unsigned n, const struct vma *v, bool pressing) {
        struct agent *a = t->a;
        uint64_t bits = run_bits(at, n), frozen, replaced = 0;
        struct beside beside = { 0 };
        struct look look;
        int r = freeze_fill(t, bits, &look);
        if (r < 0) { /* nothing has changed yet */
                transition_set(t, bits, r == -EAGAIN ? APPLY_BUSY : APPLY_ERROR);
                return;
        }
        uint64_t private = private_pages(&look, bits);
        bool left = private && !freeze_call_witness(t, private, pressing);
        frozen = freeze_arm(t, left ? bits & ~private : bits);
        transition_set(t, frozen, APPLY_BUSY);
        for (unsigned i = 0, k; next_run(frozen, &i, &k); i += k)
                replaced |= copy_and_replace(t, i, k, v, &beside);
        freeze_thaw(t, frozen & ~replaced);
        if (beside.length)
                place_populate(t, frozen & ~replaced);
        for (unsigned i = 0, k; next_run(replaced, &i, &k); i += k)
                place_track(a, page_address(t->base, i), page_address(t->base, i + k));
        fault_point(FAULT_freeze_tracked);
        transition_wake(t, page_address(t->base, at), page_address(t->base, at + n));
        fault_point(FAULT_freeze_woken);
        drop_beside(&beside);
}

void freeze_restore(struct transition *t, uint64_t asked, bool pressing) {
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
                restore_run(t, i, n, &v, pressing);
                merged &= ~run_bits(i, n);
        }
}

static bool copy_plain(struct agent *a, uint64_t start, uint64_t length, const struct vma *v) {
        long copy = sys_mmap(own_hint(length), length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (sys_is_error(copy))
                return false;
        if (sys_pread(a->mem_fd, (void *) copy, length, start) == (long) length &&
            sys_mprotect((uint64_t) copy, length, vma_prot(v)) == 0 &&
            !sys_is_error(move_over(a, (uint64_t) copy, length, start))) {
                place_put_advice_back(a, start, start + length);
                return true;
        }
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
