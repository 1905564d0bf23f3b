/* Extents: pages of one block that lie in one file mapping of a segment, at consecutive slots. And the estimate of the VMAs
 * that they take: a boundary between two neighbouring pages is a VMA boundary unless both are anonymous or both lie at
 * neighbouring slots of one segment; a client uses as many VMAs as it has such boundaries.
 *
 * That a page lies in a mapping says nothing of what it holds: the shared page (then it is MERGED), or, after a copy on
 * write or a discard, private memory, with whatever record such memory has. Either way the mapping stays until the agent
 * replaces it, and keeps the segment. */
#include "daemon/core/internal.h"

#include <assert.h>

uint32_t extent_find(const struct core *c, const struct block *b, unsigned i) {
        uint32_t id;

        if (record_state(b->page[i]) == PAGE_MERGED)
                return (uint32_t) record_payload(b->page[i]);
        for (id = b->extents; id != NIL; id = extent_at(c, id)->block_next)
                if (extent_at(c, id)->mapped >> i & 1)
                        break;
        return id;
}

uint64_t block_in_file(const struct core *c, const struct block *b) {
        uint64_t mask = 0;

        for (uint32_t id = b->extents; id != NIL; id = extent_at(c, id)->block_next)
                mask |= extent_at(c, id)->mapped;
        return mask;
}

uint32_t page_file_slot(const struct core *c, const struct block *b, unsigned i) {
        uint32_t id = extent_find(c, b, i);

        return id == NIL ? NIL : extent_at(c, id)->slot + i - (extent_at(c, id)->page & (BLOCK_PAGES - 1));
}

uint32_t page_slot(const struct core *c, const struct block *b, unsigned i) {
        switch (record_state(b->page[i])) {
        case PAGE_MATCHED:
        case PAGE_MERGING:
                return (uint32_t) record_payload(b->page[i]);
        case PAGE_MERGED:
                return page_file_slot(c, b, i);
        default:
                return NIL;
        }
}

/* -- VMAs --------------------------------------------------------------------------------------------------------------- */

int vma_edge(const struct domain *d, uint32_t left, uint32_t right) {
        return !(left == NIL && right == NIL) && !slots_are_neighbours(d, left, right);
}

static uint32_t slot_before(const struct core *c, const struct block *b, unsigned i) {
        uint32_t other = NIL;

        if (i > 0)
                return page_file_slot(c, b, i - 1);
        if (b->number > 0)
                other = block_find(c, block_client(c, b), b->number - 1);
        return other == NIL ? NIL : page_file_slot(c, block_at(c, other), BLOCK_PAGES - 1);
}

static uint32_t slot_after(const struct core *c, const struct block *b, unsigned i) {
        uint32_t other;

        if (i < BLOCK_PAGES - 1)
                return page_file_slot(c, b, i + 1);
        other = block_find(c, block_client(c, b), b->number + 1);
        return other == NIL ? NIL : page_file_slot(c, block_at(c, other), 0);
}

unsigned extent_vma_edges(const struct core *c, const struct block *b, unsigned i) {
        const struct domain *d = client_domain(c, block_client(c, b));
        uint32_t own = page_file_slot(c, b, i);

        return (unsigned) (vma_edge(d, slot_before(c, b, i), own) + vma_edge(d, own, slot_after(c, b, i)));
}

int extent_vma_cost(const struct core *c, const struct block *b, unsigned i, unsigned n, uint32_t slot) {
        const struct domain *d = client_domain(c, block_client(c, b));
        uint32_t left = slot_before(c, b, i), right = slot_after(c, b, i + n - 1), at = left;
        int now = 0;

        for (unsigned k = i; k < i + n; k++) {
                uint32_t own = page_file_slot(c, b, k);

                now += vma_edge(d, at, own);
                at = own;
        }
        now += vma_edge(d, at, right);
        return vma_edge(d, left, slot) + vma_edge(d, slot == NIL ? NIL : slot + n - 1, right) - now;
}

static void account_vmas(struct core *c, struct client *cl, int64_t change) {
        cl->vmas_used += change;
        c->vmas_used += change;
}

/* -- life --------------------------------------------------------------------------------------------------------------- */

static uint32_t *group_of(const struct domain *d, uint32_t slot) {
        struct segment *s = segment_of(d, slot);

        return &s->groups[(slot - s->base) / BLOCK_PAGES];
}

static int extent_new(struct core *c, struct domain *d, uint32_t block, unsigned i, uint32_t slot, uint32_t *ret) {
        uint32_t *group = group_of(d, slot);
        struct extent *e;
        uint32_t id;
        int r = pool_alloc(&c->extents, &id);

        if (r < 0)
                return r;
        e = extent_at(c, id);
        e->page = page_id(block, i);
        e->slot = slot;
        e->prev = NIL;
        e->next = *group;
        if (*group != NIL)
                extent_at(c, *group)->prev = id;
        *group = id;
        e->block_next = block_at(c, block)->extents;
        block_at(c, block)->extents = id;
        segment_of(d, slot)->n_extents++;
        *ret = id;
        return 0;
}

static void extent_free(struct core *c, struct domain *d, uint32_t id) {
        struct extent *e = extent_at(c, id);
        struct segment *s = segment_of(d, e->slot);
        uint32_t *link = &block_at(c, e->page >> BLOCK_SHIFT)->extents;

        while (*link != id)
                link = &extent_at(c, *link)->block_next;
        *link = e->block_next;
        if (e->prev != NIL)
                extent_at(c, e->prev)->next = e->next;
        else
                *group_of(d, e->slot) = e->next;
        if (e->next != NIL)
                extent_at(c, e->next)->prev = e->prev;
        pool_free(&c->extents, id);
        s->n_extents--;
        segment_check(c, s);
}

static void take_out(struct core *c, struct domain *d, uint32_t id, unsigned i) {
        struct extent *e = extent_at(c, id);

        e->mapped &= ~(UINT64_C(1) << i);
        if (e->mapped == 0)
                extent_free(c, d, id);
}

/* The extent of a neighbour of which `slot` for page i is the continuation, or NIL. */
static uint32_t extent_prolonged(const struct core *c, const struct domain *d, const struct block *b, unsigned i,
                                 uint32_t slot) {
        for (int step = -1; step <= 1; step += 2) {
                unsigned k = i + (unsigned) step;
                uint32_t other = k < BLOCK_PAGES ? page_file_slot(c, b, k) : NIL;

                if (other != NIL && other - (uint32_t) step == slot && segment_of(d, other) == segment_of(d, slot))
                        return extent_find(c, b, k);
        }
        return NIL;
}

int extent_add(struct core *c, uint32_t block, unsigned i, uint32_t slot, unsigned fails) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);
        struct domain *d = client_domain(c, cl);
        uint32_t old = extent_find(c, b, i), id = extent_prolonged(c, d, b, i, slot);
        unsigned before = extent_vma_edges(c, b, i);
        int r;

        if (id == NIL && old != NIL && page_file_slot(c, b, i) == slot)
                id = old;
        if (id == NIL) {
                r = extent_new(c, d, block, i, slot, &id);
                if (r < 0)
                        return r;
        }
        /* The new one first: a segment that keeps a mapping is never without one in between. */
        extent_at(c, id)->mapped |= UINT64_C(1) << i;
        if (old != NIL && old != id)
                take_out(c, d, old, i);
        slot_share(c, d, slot);
        page_mark(c, block, i, record(PAGE_MERGED, fails, id));
        account_vmas(c, cl, (int64_t) extent_vma_edges(c, b, i) - before);
        return 0;
}

void extent_leave(struct core *c, uint32_t block, unsigned i) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);
        uint32_t id = extent_find(c, b, i);
        unsigned before;

        assert(record_state(b->page[i]) != PAGE_MERGED);
        if (id == NIL)
                return;
        before = extent_vma_edges(c, b, i);
        take_out(c, client_domain(c, cl), id, i);
        account_vmas(c, cl, (int64_t) extent_vma_edges(c, b, i) - before);
}
