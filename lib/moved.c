#include "lib/moved.h"

#include "lib/agent_loop.h"
#include "lib/book.h"
#include "lib/transition.h"

bool moved_contains(const struct agent *a, uint64_t address) {
        return rangeset_overlaps(&a->moved, address, address + KSM_PAGE_SIZE);
}

bool moved_is_removed(const struct agent *a, uint64_t address) {
        return rangeset_overlaps(&a->moved_removed, address, address + KSM_PAGE_SIZE);
}

void moved_mark_removed(struct agent *a, uint64_t start, uint64_t end) {
        if (rangeset_overlaps(&a->moved, start, end))
                (void) rangeset_add(&a->moved_removed, start, end);
}

/* What of [from, end) must read as zeros, as it lies from `to` on. */
static void carry_removed(struct agent *a, uint64_t from, uint64_t end, uint64_t to) {
        struct book_walk w = { .start = from, .end = end };
        uint64_t block, mask;
        while (book_walk_next(&w, &block, &mask)) {
                uint64_t base = block << (BLOCK_SHIFT + KSM_PAGE_SHIFT), removed = mask & book_find(block)->removed;
                for (unsigned i = 0, n; next_run(removed, &i, &n); i += n)
                        if (!moved_contains(a, page_address(base, i)))
                                (void) rangeset_add(&a->moved_removed, to + (page_address(base, i) - from),
                                                    to + (page_address(base, i + n) - from));
        }
        const struct interval *x;
        for (uint64_t at = from; (x = rangeset_from(&a->moved_removed, at)) && x->start < end;) {
                uint64_t start = MAX(x->start, from), stop = MIN(x->end, end);
                at = stop;
                (void) rangeset_add(&a->moved_removed, to + (start - from), to + (stop - from));
        }
}

static bool is_known(const struct agent *a, uint64_t address) {
        return moved_contains(a, address) || book_any_merged(address, address + KSM_PAGE_SIZE);
}

/* The mapping may have grown: what lies behind the pages shows the segment's next slots, if it is touched. */
static void note_growth(struct agent *a, uint64_t end) {
        struct vma v;
        uint64_t at = end;
        if (vma_query(a->maps_fd, end - KSM_PAGE_SIZE, false, &v) < 0 || !v.segment)
                return;
        while (at < v.end && !is_known(a, at))
                at += KSM_PAGE_SIZE;
        (void) rangeset_add(&a->moved, end, at);
        (void) rangeset_add(&a->moved_removed, end, at);
}

void moved_note(struct agent *a, uint64_t from, uint64_t to, uint64_t length) {
        uint64_t end = from + length;
        a->raw = true;
        (void) rangeset_remove(&a->moved_removed, to, to + length);
        carry_removed(a, from, end, to);
        /* MREMAP_DONTUNMAP leaves the mapping, where zeros are to be read. Otherwise nothing is there, and nobody asks. */
        if (rangeset_overlaps(&a->moved, from, end))
                (void) rangeset_add(&a->moved_removed, from, end);
        book_mark_removed(from, end);
        (void) rangeset_add(&a->moved, to, to + length);
        note_growth(a, to + length);
        book_leave_removed(); /* a fork comes to settle first */
}

/* Into the book, block by block. False: no memory for it. */
static bool settle(struct agent *a, uint64_t start, uint64_t end) {
        for (uint64_t at = start; at < end; at += KSM_PAGE_SIZE) {
                struct book_block *b = book_get(at >> (BLOCK_SHIFT + KSM_PAGE_SHIFT));
                uint64_t bit = 1ULL << ((at >> KSM_PAGE_SHIFT) & (BLOCK_PAGES - 1));
                if (!b)
                        return false;
                b->merged |= bit;
                b->removed = moved_is_removed(a, at) ? b->removed | bit : b->removed & ~bit;
        }
        return true;
}

void moved_settle(struct agent *a) {
        struct transition t = { .a = a };
        if (!a->moved.n || !transition_begin(&t))
                return;
        bool done = true;
        for (uint32_t i = 0; i < a->moved.n; i++)
                done &= settle(a, a->moved.v[i].start, a->moved.v[i].end);
        for (uint32_t i = 0; i < a->moved_removed.n; i++)
                events_note_empty(a, a->moved_removed.v[i].start, a->moved_removed.v[i].end);
        if (done) {
                rangeset_clear(&a->moved);
                rangeset_clear(&a->moved_removed);
        }
        book_leave_removed();
        transition_end(&t);
}
