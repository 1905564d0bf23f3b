/* From a page's hash to what it can share: the chain with equal bytes, or another page with equal bytes, or neither yet.
 *
 * Neighbours of equal bytes (memset, poison) share slots in strips: with one slot for all of them each would be a mapping of its own.
 * With D dups in a row, in turn, D pages are one. So when VMAs are short a chain gets dups in rows, although one would do. */
#include "daemon/core/internal.h"

/* Dups looked at before the chain counts as full: keeps the cost of a lookup from growing with the number of dups. */
#define CHAIN_WALK 16

void content_fetch(void *domain, uint32_t id) {
        struct domain *d = domain;
        uint32_t slot = id & ~SLOT_ID;
        const struct segment *s;

        if (!(id & SLOT_ID)) {
                __builtin_prefetch(&block_at(d->core, id >> BLOCK_SHIFT)->page[id & (BLOCK_PAGES - 1)]);
                return;
        }
        s = segment_of(d, slot);
        __builtin_prefetch(s->hashes[slot - s->base]);
        __builtin_prefetch(&s->slots[slot - s->base]);
}

struct matching {
        const struct core *c;
        const struct domain *d;
        uint64_t hash;
        struct match *ret;
        bool is_unshared; /* ret->page is */
};

static bool collect(void *userdata, uint32_t id) {
        struct matching *m = userdata;

        if (id & SLOT_ID) {
                if (slot_hash(m->d, id & ~SLOT_ID) == m->hash)
                        m->ret->slot = id & ~SLOT_ID;
        } else if (!m->is_unshared) {
                uint64_t r = block_at(m->c, id >> BLOCK_SHIFT)->page[id & (BLOCK_PAGES - 1)];

                if (record_hash(r) == m->hash) {
                        m->ret->page = id;
                        m->is_unshared = record_state(r) == PAGE_UNSHARED;
                }
        }
        return m->ret->slot != NIL && m->is_unshared;
}

void match_find(const struct core *c, const struct domain *d, uint64_t hash, struct match *ret) {
        struct matching m = { .c = c, .d = d, .hash = hash, .ret = ret };

        *ret = (struct match){ NIL, NIL };
        (void) index_find(&d->index, hash, collect, &m);
}

uint32_t chain_pick(struct core *c, struct domain *d, uint32_t indexed, uint32_t prefer) {
        uint32_t best = NIL, slot = indexed;

        if (prefer != NIL && prefer / SEGMENT_UNIT < d->n_units && segment_of(d, prefer) &&
            slot_hash(d, prefer) == slot_hash(d, indexed) && slot_has_room(c, d, prefer))
                return prefer;
        for (unsigned n = 0; n < CHAIN_WALK; n++) {
                const struct slot *s = slot_at(d, slot);

                if (slot_has_room(c, d, slot) && (best == NIL || s->sharers > slot_at(d, best)->sharers))
                        best = slot;
                slot = s->next;
                if (slot == indexed)
                        break;
        }
        /* The walk begins where there was room last, or goes on where it ended. */
        if (best != NIL ? best != indexed && !slot_has_room(c, d, indexed) : slot != indexed)
                (void) index_replace(&d->index, slot_hash(d, indexed), SLOT_ID | indexed,
                                     SLOT_ID | (best != NIL ? best : slot));
        return best;
}

uint32_t strip_width(const struct core *c, const struct client *cl, uint32_t indexed, uint32_t n_more) {
        const struct domain *d = client_domain(c, cl);
        uint64_t n = n_more;
        uint32_t slot = indexed;

        if (!client_is_short_of_vmas(c, cl))
                return 1;
        for (unsigned k = 0; slot != NIL && k < BLOCK_PAGES; k++) {
                n += slot_at(d, slot)->sharers + slot_at(d, slot)->pending;
                slot = slot_at(d, slot)->next;
                if (slot == indexed)
                        break;
        }
        n = MIN(n / STRIP_SHARERS, (uint64_t) BLOCK_PAGES);
        return (uint32_t) MAX(n, UINT64_C(1));
}

/* The slot that the page before maps or will map, or NIL. */
static uint32_t slot_before(const struct core *c, const struct block *b, unsigned i) {
        uint32_t before, other;

        if (i > 0) {
                before = page_slot(c, b, i - 1);
                return before != NIL ? before : page_file_slot(c, b, i - 1);
        }
        other = b->number > 0 ? block_find(c, block_client(c, b), b->number - 1) : NIL;
        return other != NIL ? page_slot(c, block_at(c, other), BLOCK_PAGES - 1) : NIL;
}

static bool is_dup(const struct domain *d, uint32_t slot, uint64_t hash) {
        return slot != NIL && slot / SEGMENT_UNIT < d->n_units && segment_of(d, slot) && slot_hash(d, slot) == hash;
}

/* The next dup of the row after this one that has room, from the row's begin when there is none up to its end; or NIL. */
static uint32_t strip_next(const struct core *c, const struct domain *d, uint32_t slot, uint64_t hash) {
        uint32_t first = slot, at;

        for (at = slot + 1; at < slot + BLOCK_PAGES && slots_are_neighbours(d, at - 1, at) && is_dup(d, at, hash); at++)
                if (slot_has_room(c, d, at))
                        return at;
        while (slot - first < BLOCK_PAGES && slots_are_neighbours(d, first - 1, first) && is_dup(d, first - 1, hash))
                first--;
        for (at = first; at <= slot; at++)
                if (slot_has_room(c, d, at))
                        return at;
        return NIL;
}

/* The one that costs no VMA: where the page lies anyway, or the continuation of the page before; and of a strip the next. */
static uint32_t preferred_slot(const struct core *c, const struct domain *d, const struct block *b, unsigned i, uint32_t before,
                               uint64_t hash) {
        uint32_t own = page_file_slot(c, b, i);

        if (is_dup(d, own, hash) && slot_has_room(c, d, own))
                return own;
        if (before == NIL)
                return NIL;
        return is_dup(d, before, hash) ? strip_next(c, d, before, hash) : before + 1;
}

void page_resolve(struct core *c, uint32_t block, unsigned i, uint64_t hash, uint64_t now_usec) {
        struct block *b = block_at(c, block);
        struct domain *d = client_domain(c, block_client(c, b));
        unsigned fails = record_fails(b->page[i]);
        uint32_t slot = NIL, before = slot_before(c, b, i);
        struct match m;

        match_find(c, d, hash, &m);
        if (m.slot != NIL)
                slot = chain_pick(c, d, m.slot, preferred_slot(c, d, b, i, before, hash));
        if (slot != NIL && slot == before && strip_width(c, block_client(c, b), slot, 0) > 1)
                slot = NIL; /* the same once more would be a mapping more: as if it were full */
        if (slot != NIL) {
                slot_pend(d, slot);
                page_mark(c, block, i, record(PAGE_MATCHED, fails, slot));
                block_queue_apply(c, block);
        } else if (m.page != NIL) {
                page_mark(c, block, i, hash | record(PAGE_HASHED, fails, 0));
                block_queue_publish(c, block);
        } else {
                page_mark(c, block, i, hash | record(PAGE_UNSHARED, fails, 0));
                if (!clean_has_memory(c, d, 0) || index_insert(&d->index, hash, page_id(block, i)) < 0) {
                        page_mark(c, block, i, record(PAGE_NONE, 0, 0));
                        page_fresh(c, block, i, more_fails(fails, 1), now_usec);
                }
        }
}
