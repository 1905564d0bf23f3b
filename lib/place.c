/* What replaces pages: slots of a segment, or nothing. */
#include <errno.h>
#include <string.h>

#include "common/fault.h"
#include "lib/book.h"
#include "lib/sys.h"
#include "lib/transition.h"

/* EAGAIN without progress: an event that was just drained, a zap under way; short. */
#define POPULATE_TRIES 64U

static bool is_zero(const uint8_t *p) {
        return !*(const uint64_t *) p && memcmp(p, p + 8, KSM_PAGE_SIZE - 8) == 0;
}

bool place_is_wanted(const struct advice *d, unsigned i, const uint8_t *bytes) {
        if (d->kind == APPLY_ZERO)
                return is_zero(bytes);
        return memcmp(bytes, d->t->a->expected + ((size_t) i << KSM_PAGE_SHIFT), KSM_PAGE_SIZE) == 0;
}

bool next_slots(const struct advice *d, uint64_t mask, unsigned *at, unsigned *n) {
        unsigned k = 1;
        if (!next_run(mask, at, n))
                return false;
        while (k < *n && d->segment[*at + k] == d->segment[*at] && d->slot[*at + k] == d->slot[*at] + k)
                k++;
        *n = k;
        return true;
}

static void put_back(const struct rangeset *s, uint64_t start, uint64_t end, int advice) {
        const struct interval *x = rangeset_from(s, start);
        for (; x && x < s->v + s->n && x->start < end; x++) {
                uint64_t from = MAX(x->start, start), to = MIN(x->end, end);
                (void) sys_madvise(from, to - from, advice);
        }
}

void place_put_advice_back(struct agent *a, uint64_t start, uint64_t end) {
        put_back(&a->dontfork, start, end, MADV_DONTFORK);
        put_back(&a->huge, start, end, MADV_HUGEPAGE);
        put_back(&a->nohuge, start, end, MADV_NOHUGEPAGE);
}

enum apply_status place_slots(struct advice *d, unsigned at, unsigned n) {
        struct agent *a = d->t->a;
        uint64_t start = page_address(d->t->base, at), end = page_address(d->t->base, at + n);
        struct book_block *b = book_get(d->t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        if (!b)
                return APPLY_BUDGET;
        long r = sys_mmap(start, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, d->segment[at]->fd,
                          (uint64_t) d->slot[at] << KSM_PAGE_SHIFT);
        if (sys_is_error(r))
                return (enum apply_status) errno_status((int) r);
        b->merged |= run_bits(at, n);
        b->removed &= ~run_bits(at, n);
        put_back(&a->dontfork, start, end, MADV_DONTFORK); /* about huge pages it says nothing here, and runs must fuse */
        fault_point(FAULT_hole_mapped);
        return APPLY_OK;
}

enum apply_status place_nothing(struct transition *t, unsigned at, unsigned n) {
        uint64_t start = page_address(t->base, at), end = page_address(t->base, at + n);
        struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        long r = sys_mmap(start, end - start, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        if (sys_is_error(r))
                return (enum apply_status) errno_status((int) r);
        b->merged &= ~run_bits(at, n);
        b->removed &= ~run_bits(at, n);
        place_put_advice_back(t->a, start, end);
        fault_point(FAULT_hole_mapped);
        return APPLY_OK;
}

void place_share(struct agent *a, uint64_t start, uint64_t end) {
        /* When the kernel has no memory for that (a few hundred bytes), later writes are not tracked and a discard of these
         * pages is not heard: no more transitions then, and docs/agent.md says so. */
        if (context_register_surely(&a->shared, start, end, UFFDIO_REGISTER_MODE_WP | UFFDIO_REGISTER_MODE_MINOR) < 0)
                a->raw = true;
}

void place_track(struct agent *a, uint64_t start, uint64_t end) {
        if (rangeset_contains(&a->ranges, start, end) && !rangeset_overlaps(&a->excluded, start, end) &&
            context_register(&a->track, start, end, UFFDIO_REGISTER_MODE_WP) < 0)
                a->retrack = true;
}

/* What must read as zeros, as far as it has been heard of. */
static uint64_t removed_pages(const struct transition *t) {
        const struct book_block *b = book_find(t->base >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
        return b ? b->removed : 0;
}

/* Why this brings back nothing that was discarded. What comes now comes around libc, for the mapping lock is held:
 *
 *   discard  its zap comes after its event was read, and nobody but this thread reads events. What CONTINUE has mapped by then, the
 *            zap takes away. From then on the book says "removed", before any other CONTINUE: so the book is asked before each one,
 *            and a page that it names is left absent. An access to it is a fault in `shared`, which gives zeros (events.c).
 *            The event may be one of the guard, from before the run was placed: the same holds.
 *   remap    what was moved away is no longer there (ENOENT), or was left behind by MREMAP_DONTUNMAP: then it must read as zeros, and
 *            moved_note says so to the book before the next CONTINUE.
 *   unmap    not announced; ENOENT. What is mapped there anew is in no context of ours: ENOENT, too.
 *   fork     has no event. An absent entry reads as the segment in the child, as a present one does; what a discard and a raw fork at
 *            the same time do is in limits.md.
 *
 * What is not heard is a discard before the run was in `shared`: limits.md, too. */
void place_populate(struct transition *t, uint64_t pages) {
        struct agent *a = t->a;
        unsigned tries = 0, most = BLOCK_PAGES;
        for (unsigned i = 0, n; next_run(pages & ~removed_pages(t), &i, &n);) {
                uint64_t start = page_address(t->base, i), done;
                int r = context_continue(&a->shared, start, page_address(t->base, i + MIN(n, most)), &done);
                if (done > start)
                        tries = 0;
                i += (unsigned) ((done - start) >> KSM_PAGE_SHIFT);
                if (r == 0)
                        continue;
                if (r == -ENOENT && most > 1) { /* several mappings: a part of the run is DONTFORK */
                        most = 1;
                        continue;
                }
                if (r == -EEXIST) { /* written between mmap and here: already a private copy */
                        i++;
                        continue;
                }
                agent_drain(a);
                if (r != -EAGAIN || ++tries > POPULATE_TRIES)
                        return; /* the rest comes by minor faults */
        }
}
