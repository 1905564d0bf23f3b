/* Extents: pages of one block that map consecutive slots. And the estimate of the VMAs that they take: a boundary between
 * two neighbouring pages is a VMA boundary unless both are anonymous or both map neighbouring slots of one segment; a
 * client uses as many VMAs as it has such boundaries. Pages copied on write stay inside the file mapping and count as
 * mapped. */
#include "daemon/core/internal.h"

#include <assert.h>

static uint32_t in_file_slot(const struct core *c, const struct block *b, unsigned i) {
        uint64_t r = b->page[i];
        const struct extent *e;

        if (!is_in_file(record_state(r)))
                return NIL;
        e = extent_at(c, (uint32_t) record_payload(r));
        return e->slot + i - (e->page & (BLOCK_PAGES - 1));
}

uint32_t page_slot(const struct core *c, const struct block *b, unsigned i) {
        enum page_state s = record_state(b->page[i]);

        if (s == PAGE_MATCHED || s == PAGE_MERGING)
                return (uint32_t) record_payload(b->page[i]);
        return in_file_slot(c, b, i);
}

static unsigned edge(const struct core *c, const struct client *cl, uint32_t left, uint32_t right) {
        const struct domain *d = client_domain(c, cl);

        if (left == NIL && right == NIL)
                return 0;
        if (left != NIL && right == left + 1 && segment_of(d, left) == segment_of(d, right))
                return 0;
        return 1;
}

static uint32_t neighbour_slot(const struct core *c, const struct block *b, int step) {
        uint32_t other;

        if ((step < 0 && b->number == 0))
                return NIL;
        other = block_find(c, block_client(c, b), b->number + (uint64_t) (int64_t) step);
        return other == NIL ? NIL : in_file_slot(c, block_at(c, other), step < 0 ? BLOCK_PAGES - 1 : 0);
}

/* VMA boundaries at both ends of page i. */
unsigned extent_vma_edges(const struct core *c, const struct block *b, unsigned i) {
        const struct client *cl = block_client(c, b);
        uint32_t own = in_file_slot(c, b, i);
        uint32_t left = i > 0 ? in_file_slot(c, b, i - 1) : neighbour_slot(c, b, -1);
        uint32_t right = i < BLOCK_PAGES - 1 ? in_file_slot(c, b, i + 1) : neighbour_slot(c, b, 1);

        return edge(c, cl, left, own) + edge(c, cl, own, right);
}

static void account_vmas(struct core *c, struct client *cl, int64_t change) {
        cl->vmas_used += change;
        c->vmas_used += change;
}

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
        segment_of(d, slot)->n_extents++;
        *ret = id;
        return 0;
}

static void extent_free(struct core *c, struct domain *d, uint32_t id) {
        struct extent *e = extent_at(c, id);
        struct segment *s = segment_of(d, e->slot);

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

/* The page before may map the slot before: then the page prolongs its extent. */
int extent_add(struct core *c, uint32_t block, unsigned i, uint32_t slot, unsigned fails) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);
        struct domain *d = client_domain(c, cl);
        unsigned before;
        uint32_t id;
        int r;

        if (i > 0 && in_file_slot(c, b, i - 1) == slot - 1 && segment_of(d, slot - 1) == segment_of(d, slot)) {
                id = (uint32_t) record_payload(b->page[i - 1]);
        } else {
                r = extent_new(c, d, block, i, slot, &id);
                if (r < 0)
                        return r;
        }
        before = extent_vma_edges(c, b, i);
        extent_at(c, id)->live |= UINT64_C(1) << i;
        slot_share(c, d, slot);
        /* Asked for before the cleaning of its segment began, which has passed this block by. */
        if (segment_of(d, slot)->events & SEGMENT_CLEANING)
                b->flags |= BLOCK_RAGGED;
        page_mark(c, block, i, record(PAGE_MERGED, fails, id));
        account_vmas(c, cl, (int64_t) extent_vma_edges(c, b, i) - before);
        return 0;
}

uint64_t extent_mapped(const struct core *c, const struct block *b, uint32_t extent) {
        uint64_t mask = 0;

        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (is_in_file(record_state(b->page[i])) && record_payload(b->page[i]) == extent)
                        mask |= UINT64_C(1) << i;
        return mask;
}

/* With less than a quarter live it costs VMAs for little: its pages come back, and are candidates again. */
bool extent_is_ragged(const struct core *c, const struct block *b, uint32_t extent) {
        const struct extent *e = extent_at(c, extent);

        return segment_of(client_domain(c, block_client(c, b)), e->slot)->events & SEGMENT_CLEANING ||
               __builtin_popcountll(e->live) * 4 < __builtin_popcountll(extent_mapped(c, b, extent));
}

void extent_cow(struct core *c, uint32_t block, unsigned i) {
        struct block *b = block_at(c, block);
        struct domain *d = client_domain(c, block_client(c, b));
        uint32_t id = (uint32_t) record_payload(b->page[i]), slot = in_file_slot(c, b, i);

        extent_at(c, id)->live &= ~(UINT64_C(1) << i);
        page_mark(c, block, i, record(PAGE_COWED, more_fails(record_fails(b->page[i]), 1), id));
        slot_unshare(c, d, slot);
        c->counters.unshares++;
        if (extent_is_ragged(c, b, id) && !(b->flags & BLOCK_RAGGED)) {
                b->flags |= BLOCK_RAGGED;
                block_queue_apply(c, block);
        }
}

void extent_leave(struct core *c, uint32_t block, unsigned i) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);
        struct domain *d = client_domain(c, cl);
        bool is_live = record_state(b->page[i]) == PAGE_MERGED;
        uint32_t id = (uint32_t) record_payload(b->page[i]), slot = in_file_slot(c, b, i);
        unsigned before = extent_vma_edges(c, b, i);

        extent_at(c, id)->live &= ~(UINT64_C(1) << i);
        page_mark(c, block, i, record(PAGE_NONE, 0, 0));
        account_vmas(c, cl, (int64_t) extent_vma_edges(c, b, i) - before);
        if (extent_mapped(c, b, id) == 0)
                extent_free(c, d, id);
        if (is_live)
                slot_unshare(c, d, slot);
}
