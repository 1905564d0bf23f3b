/* Hot blocks: of which more than a quarter was written again since the pass before. They are left out of 1, 3, 7, ... 63 passes, so that
 * they are not write-protected all the time; with smart_scan 0 none is left out. Each pass reads one list of them, in address order as it
 * goes, and writes the one for the next. */
#include "daemon/core/internal.h"

#define HOT_PAGES (BLOCK_PAGES / 4)
#define HOT_AGE_MAX 6

/* Without memory the block is scanned each pass: costs faults, loses nothing. */
static bool skip_append(struct core *c, struct client *cl, struct skip s) {
        struct skip_list *l = &cl->skips[~cl->pass & 1];

        if (memory_grow(&c->memory, (void **) &l->items, &l->capacity, l->n + 1, sizeof(*l->items)) < 0)
                return false;
        l->items[l->n++] = s;
        return true;
}

/* An item that no list holds any more must not leave its block marked: it would never be read again. */
static void skip_ended(struct core *c, struct client *cl, struct skip s) {
        uint32_t block = block_find(c, cl, s.number);

        if (block != NIL)
                block_at(c, block)->flags &= (uint16_t) ~BLOCK_SKIPPED;
}

bool heat_skip(struct core *c, struct client *cl, uint64_t *page, uint64_t *end) {
        struct skip_list *l = &cl->skips[cl->pass & 1];

        for (; l->next < l->n; l->next++) {
                struct skip s = l->items[l->next];
                uint64_t start = s.number << BLOCK_SHIFT;
                uint32_t block;

                if (start + BLOCK_PAGES <= *page) { /* its range went */
                        skip_ended(c, cl, s);
                        continue;
                }
                if (start >= *end)
                        break;
                block = block_find(c, cl, s.number);
                if (block == NIL)
                        continue;
                if (s.due_pass <= cl->pass || !c->tunables.smart_scan) {
                        block_at(c, block)->flags &= (uint16_t) ~BLOCK_SKIPPED;
                        block_at(c, block)->age |= BLOCK_RECHECK;
                        continue;
                }
                if (start > *page) {
                        *end = start;
                        break;
                }
                if (!skip_append(c, cl, s)) {
                        skip_ended(c, cl, s);
                        continue;
                }
                block_at(c, block)->flags |= BLOCK_SKIPPED;
                *page = start + BLOCK_PAGES;
                if (*page >= *end) {
                        l->next++;
                        return true;
                }
        }
        return false;
}

void heat_judge(struct core *c, struct client *cl, uint32_t block, unsigned n_rewritten) {
        struct block *b = block_at(c, block);
        uint8_t age = b->age & (uint8_t) ~BLOCK_RECHECK;

        if (n_rewritten > HOT_PAGES)
                age = (uint8_t) MIN(age + 1, HOT_AGE_MAX);
        else
                age = age > 0 ? (uint8_t) (age - 1) : 0;
        b->age = age;
        if (age > 0)
                (void) skip_append(c, cl, (struct skip){ b->number, cl->pass + (1U << age) });
}

void heat_pass_begins(struct client *cl) {
        cl->skips[cl->pass & 1].next = 0;
        cl->skips[~cl->pass & 1].n = 0;
}

void heat_pass_ends(struct core *c, struct client *cl) {
        struct skip_list *l = &cl->skips[cl->pass & 1];

        for (; l->next < l->n; l->next++) /* behind the last range */
                skip_ended(c, cl, l->items[l->next]);
}

uint64_t heat_next(const struct client *cl) {
        const struct skip_list *l = &cl->skips[cl->pass & 1];

        return l->next == l->n ? UINT64_MAX : l->items[l->next].number << BLOCK_SHIFT;
}
