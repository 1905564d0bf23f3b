/* What this process has merged, per block of 64 pages: the pages mapped from segments, and those of them that
 * the program has discarded (MADV_DONTNEED) and that must read as zeros from then on.
 *
 * A "removed" bit stays set until the page is mapped anew by a transition: a later empty page table entry there can only
 * come from another discard, never from reclaim of segment content, so the record decides, not the fault (design 6.4).
 *
 * Written by the agent only, or by a program thread of a forked child that has no agent yet, under book_lock. Readers
 * on program threads hold the mapping lock (no transition, so no rehash, runs meanwhile). Bits may be stale where the
 * program unmapped memory: whoever acts on one asks the kernel first (lib/vma.h). Memory comes from mmap, never malloc, and
 * is never registered. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct book_block {
        uint64_t number; /* (address >> 18) + 1; 0 = free entry */
        uint64_t merged; /* bit i: page i of the block maps a slot */
        uint64_t removed;
};

/* Grows if needed; NULL when out of memory. */
struct book_block *book_get(uint64_t block);
struct book_block *book_find(uint64_t block);

/* Walks the blocks of [start, end) that have merged pages: block number and the merged pages of it in the range. Bits
 * may be changed between steps; a rehash (book_get) restarts the walk's luck: pages may then be seen twice. */
struct book_walk {
        uint64_t start, end;
        uint64_t position; /* 0 at the beginning */
};
bool book_walk_next(struct book_walk *w, uint64_t *ret_block, uint64_t *ret_mask);

/* True when some page of [start, end) is (or was, see above) merged. Cost: min(blocks of the range, entries). */
bool book_any_merged(uint64_t start, uint64_t end);
void book_forget(uint64_t start, uint64_t end);
uint64_t book_merged_pages(void);

/* Merged pages of the range now read as zeros (a REMOVE event was read). */
void book_mark_removed(uint64_t start, uint64_t end);
/* True when something was marked since the last call: fork must give those pages their zeros first. */
bool book_take_any_removed(void);
void book_leave_removed(void); /* ... which was not done: taken back */
bool book_some_removed(void); /* the same, asked by any thread, without taking */
