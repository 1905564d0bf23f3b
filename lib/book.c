#include "lib/book.h"

#include <stdatomic.h>
#include <string.h>

#include "common/cleanup.h"
#include "lib/sys.h"

#define BOOK_MIN_ENTRIES 256U /* 6 KiB: enough for 64 MiB of merged memory */
#define BLOCK_SIZE_SHIFT (KSM_PAGE_SHIFT + BLOCK_SHIFT)

static struct book_block *table;
static uint32_t n_entries; /* power of two, or 0 */
static uint32_t n_used;
static _Atomic uint64_t n_removed; /* discards of merged pages since the last fork preparation, by block */

static uint32_t place(uint64_t number, uint32_t n) {
        return (uint32_t) ((number * 0x9e3779b97f4a7c15ULL) >> 32) & (n - 1);
}

static struct book_block *lookup(struct book_block *t, uint32_t n, uint64_t number) {
        uint32_t i = place(number, n);
        while (t[i].number && t[i].number != number)
                i = (i + 1) & (n - 1);
        return &t[i];
}

static bool grow(void) {
        /* Entries with nothing merged and nothing removed are left behind, so the table follows what is in use. */
        uint32_t live = 0;
        for (uint32_t i = 0; i < n_entries; i++)
                live += table[i].number && (table[i].merged | table[i].removed);
        uint32_t n = BOOK_MIN_ENTRIES;
        while (n < live * 3)
                n *= 2;
        struct book_block *t = own_alloc(n * sizeof(*t));
        if (!t)
                return false;
        uint32_t used = 0;
        for (uint32_t i = 0; i < n_entries; i++)
                if (table[i].number && (table[i].merged | table[i].removed)) {
                        *lookup(t, n, table[i].number) = table[i];
                        used++;
                }
        own_free(table, n_entries * sizeof(*table));
        table = t;
        n_entries = n;
        n_used = used;
        return true;
}

struct book_block *book_find(uint64_t block) {
        if (!n_entries)
                return NULL;
        struct book_block *b = lookup(table, n_entries, block + 1);
        return b->number ? b : NULL;
}

struct book_block *book_get(uint64_t block) {
        struct book_block *b = book_find(block);
        if (b)
                return b;
        if (n_used * 3 >= n_entries * 2 && !grow())
                return NULL;
        b = lookup(table, n_entries, block + 1);
        b->number = block + 1;
        n_used++;
        return b;
}

/* Bits of the block's pages that lie in [start, end). */
static uint64_t mask_of(uint64_t block, uint64_t start, uint64_t end) {
        uint64_t first = block << BLOCK_SHIFT, from = start >> KSM_PAGE_SHIFT,
                 to = (end >> KSM_PAGE_SHIFT) + ((end & (KSM_PAGE_SIZE - 1)) != 0); /* end may be UINT64_MAX */
        uint64_t mask = ~0ULL;
        if (from > first)
                mask &= ~0ULL << (from - first);
        if (to < first + BLOCK_PAGES)
                mask &= ~0ULL >> (first + BLOCK_PAGES - to);
        return mask;
}

bool book_walk_next(struct book_walk *w, uint64_t *ret_block, uint64_t *ret_mask) {
        if (!n_entries || w->start >= w->end)
                return false;
        uint64_t from = w->start >> BLOCK_SIZE_SHIFT, to = (w->end - 1) >> BLOCK_SIZE_SHIFT;
        /* Small ranges by block number, large ones by table entry. */
        bool by_number = to - from < n_entries;
        for (uint64_t limit = by_number ? to - from + 1 : n_entries; w->position < limit;) {
                uint64_t at = w->position++;
                struct book_block *b = by_number ? book_find(from + at) : &table[at];
                if (!b || !b->number || b->number - 1 < from || b->number - 1 > to)
                        continue;
                *ret_block = b->number - 1;
                *ret_mask = b->merged & mask_of(*ret_block, w->start, w->end);
                if (*ret_mask)
                        return true;
        }
        return false;
}

/* Calls for every known block that overlaps; stops when f returns true. */
static bool each_block(uint64_t start, uint64_t end, bool (*f)(struct book_block *, uint64_t mask)) {
        if (!n_entries || start >= end)
                return false;
        uint64_t from = start >> BLOCK_SIZE_SHIFT, to = (end - 1) >> BLOCK_SIZE_SHIFT;
        if (to - from < n_entries) {
                for (uint64_t n = from; n <= to; n++) {
                        struct book_block *b = book_find(n);
                        if (b && f(b, mask_of(n, start, end)))
                                return true;
                }
        } else {
                for (uint32_t i = 0; i < n_entries; i++)
                        if (table[i].number && table[i].number - 1 >= from && table[i].number - 1 <= to &&
                            f(&table[i], mask_of(table[i].number - 1, start, end)))
                                return true;
        }
        return false;
}

static bool block_merged(struct book_block *b, uint64_t mask) {
        return b->merged & mask;
}

bool book_any_merged(uint64_t start, uint64_t end) {
        return each_block(start, end, block_merged);
}

static bool block_forget(struct book_block *b, uint64_t mask) {
        b->merged &= ~mask;
        b->removed &= ~mask;
        return false;
}

void book_forget(uint64_t start, uint64_t end) {
        (void) each_block(start, end, block_forget);
}

static bool block_remove(struct book_block *b, uint64_t mask) {
        uint64_t removed = b->merged & mask;
        if (removed) /* also where the bit is set already: the page may have been written since, and is empty again */
                atomic_fetch_add(&n_removed, 1);
        b->removed |= removed;
        return false;
}

void book_mark_removed(uint64_t start, uint64_t end) {
        (void) each_block(start, end, block_remove);
}

bool book_take_any_removed(void) {
        return atomic_exchange(&n_removed, 0) != 0;
}

void book_leave_removed(void) {
        atomic_fetch_add(&n_removed, 1);
}

bool book_some_removed(void) {
        return atomic_load(&n_removed) != 0;
}

uint64_t book_merged_pages(void) {
        uint64_t n = 0;
        for (uint32_t i = 0; i < n_entries; i++)
                n += (uint64_t) __builtin_popcountll(table[i].merged & ~table[i].removed);
        return n;
}
