/* Recomputes the books from what they are made of. Each text names the invariant that broke. */
#include "daemon/core/internal.h"

#include <string.h>

#define REQUIRE(condition, text)     \
        do {                         \
                if (!(condition))    \
                        return text; \
        } while (0)

/* Nothing to check with is no fault of the books. */
static const char no_memory[] = "no memory";

struct totals {
        uint64_t states[PAGE_STATES];
        uint64_t blocks, vmas, registered;
};

/* A page record and what it refers to. */
static const char *check_page(struct core *c, struct client *cl, uint32_t block, unsigned i, struct totals *t) {
        struct domain *d = client_domain(c, cl);
        struct block *b = block_at(c, block);
        uint64_t r = b->page[i];
        struct match m;
        uint32_t slot;

        t->states[record_state(r)]++;
        switch (record_state(r)) {
        case PAGE_UNSHARED:
        case PAGE_PARTNER:
                match_find(c, d, record_hash(r), &m);
                REQUIRE(m.page != NIL, "an unshared page is not in its domain's index");
                break;
        case PAGE_MATCHED:
        case PAGE_MERGING:
                slot = (uint32_t) record_payload(r);
                REQUIRE(slot / SEGMENT_UNIT < d->n_units && segment_of(d, slot), "a page is to be merged into no segment");
                REQUIRE(slot_at(d, slot)->state == SLOT_LIVE, "a page is to be merged into a slot that is not live");
                break;
        case PAGE_MERGED:
        case PAGE_COWED: {
                const struct extent *e;

                REQUIRE(pool_has(&c->extents, (uint32_t) record_payload(r)), "a merged page has no extent");
                e = extent_at(c, (uint32_t) record_payload(r));
                REQUIRE(e->page >> BLOCK_SHIFT == block && (e->page & (BLOCK_PAGES - 1)) <= i,
                        "an extent is not of its page's block");
                REQUIRE((e->live >> i & 1) == (record_state(r) == PAGE_MERGED), "an extent's live pages are wrong");
                slot = page_slot(c, b, i);
                REQUIRE(slot / SEGMENT_UNIT < d->n_units && segment_of(d, slot), "I4: a page maps no segment of its domain");
                REQUIRE(record_state(r) == PAGE_COWED || slot_at(d, slot)->state == SLOT_LIVE,
                        "a merged page maps a slot that is not live");
                break;
        }
        default:
                break;
        }
        return NULL;
}

static const char *check_client(struct core *c, struct client *cl, struct totals *all) {
        struct totals t = {};
        uint64_t n_blocks = 0, edges = 0;

        for (uint32_t i = 0; i < cl->n_ranges; i++) {
                REQUIRE(cl->ranges[i].start < cl->ranges[i].end, "an empty range");
                REQUIRE(i == 0 || cl->ranges[i - 1].end <= cl->ranges[i].start, "ranges overlap");
                t.registered += cl->ranges[i].end - cl->ranges[i].start;
        }
        REQUIRE(t.registered == cl->registered_pages, "registered pages of a client are miscounted");
        for (uint32_t block = cl->blocks; block != NIL; block = block_at(c, block)->next) {
                struct block *b = block_at(c, block);

                n_blocks++;
                REQUIRE(b->client == id_index(cl->id), "a block is in another client's list");
                REQUIRE(block_find(c, cl, b->number) == block, "a block is not in the block table");
                for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                        const char *e = check_page(c, cl, block, i, &t);

                        if (e)
                                return e;
                        if (is_in_file(record_state(b->page[i])))
                                edges += extent_vma_edges(c, b, i);
                        if (i + 1 < BLOCK_PAGES && is_in_file(record_state(b->page[i])) &&
                            is_in_file(record_state(b->page[i + 1])) && page_slot(c, b, i) + 1 != page_slot(c, b, i + 1))
                                edges--; /* a boundary between two mapped pages is counted from both sides */
                        if (i + 1 < BLOCK_PAGES && is_in_file(record_state(b->page[i])) &&
                            is_in_file(record_state(b->page[i + 1])) && page_slot(c, b, i) + 1 == page_slot(c, b, i + 1) &&
                            segment_of(client_domain(c, cl), page_slot(c, b, i)) !=
                                    segment_of(client_domain(c, cl), page_slot(c, b, i + 1)))
                                edges--;
                }
                if (is_in_file(record_state(b->page[BLOCK_PAGES - 1]))) {
                        uint32_t next = block_find(c, cl, b->number + 1);

                        if (next != NIL && is_in_file(record_state(block_at(c, next)->page[0]))) {
                                uint32_t l = page_slot(c, b, BLOCK_PAGES - 1), r = page_slot(c, block_at(c, next), 0);

                                edges -= l + 1 != r || segment_of(client_domain(c, cl), l) != segment_of(client_domain(c, cl), r);
                        }
                }
        }
        REQUIRE(n_blocks == cl->n_blocks, "blocks of a client are miscounted");
        REQUIRE((int64_t) edges == cl->vmas_used, "the VMA estimate of a client is wrong");
        for (unsigned s = 0; s < PAGE_STATES; s++) {
                REQUIRE(t.states[s] == cl->states[s], "page states of a client are miscounted");
                all->states[s] += t.states[s];
        }
        all->blocks += n_blocks;
        all->vmas += edges;
        all->registered += t.registered;
        return NULL;
}

/* -- slots: sharers and pending recounted into a scratch array per segment ------------------------------------------- */

struct recount {
        uint32_t sharers, pending;
};

static void recount_block(struct core *c, struct domain *d, struct block *b, const struct segment *s, struct recount *n) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                enum page_state state = record_state(b->page[i]);
                uint32_t slot = page_slot(c, b, i);

                if (slot == NIL || segment_of(d, slot) != s)
                        continue;
                n[slot - s->base].sharers += state == PAGE_MERGED;
                n[slot - s->base].pending += state == PAGE_MATCHED || state == PAGE_MERGING;
        }
}

static const char *check_ring(struct core *c, struct domain *d, uint32_t slot, uint64_t *ret_dups) {
        uint32_t at = slot;
        bool is_indexed = false;

        *ret_dups = 0;
        do {
                REQUIRE(slot_at(d, at)->state == SLOT_LIVE, "a dup of a chain is not live");
                REQUIRE(slot_key(d, at) == slot_key(d, slot), "I5: dups of a chain have different keys");
                is_indexed |= index_replace(&d->index, slot_key(d, at), SLOT_ID | at, SLOT_ID | at);
                at = slot_at(d, at)->next;
                REQUIRE(++*ret_dups <= UINT32_MAX, "a ring does not close");
        } while (at != slot);
        REQUIRE(is_indexed, "a chain is not in the index");
        return NULL;
}

static const char *check_segment(struct core *c, struct domain *d, struct segment *s, uint64_t *dups) {
        struct recount *n;
        uint32_t n_writing = 0, n_live = 0, n_sharers = 0;
        const char *error = NULL;

        n = memory_realloc(&c->memory, NULL, 0, s->n_slots * sizeof(*n));
        if (!n)
                return no_memory;
        memset(n, 0, s->n_slots * sizeof(*n));
        for (uint32_t i = pool_next(&c->blocks, 0); i != NIL; i = pool_next(&c->blocks, i + 1))
                if (domain_at(c, block_client(c, block_at(c, i))->domain) == d)
                        recount_block(c, d, block_at(c, i), s, n);
        for (uint32_t i = 0; i < s->n_slots && !error; i++) {
                const struct slot *slot = &s->slots[i];
                uint64_t ring;

                n_writing += slot->state == SLOT_WRITING;
                n_live += slot->state == SLOT_LIVE;
                n_sharers += slot->sharers;
                if (slot->sharers != n[i].sharers || slot->pending != n[i].pending)
                        error = "sharers of a slot are miscounted";
                else if (slot->state == SLOT_LIVE && slot->sharers + slot->pending == 0)
                        error = "a slot without sharers is live";
                else if (slot->state == SLOT_LIVE && !(error = check_ring(c, d, s->base + i, &ring)))
                        *dups += ring > 1;
        }
        memory_release(&c->memory, n, s->n_slots * sizeof(*n));
        if (error)
                return error;
        REQUIRE(n_writing == s->n_writing && n_live == s->n_live && n_sharers == s->n_sharers, "slots of a segment are miscounted");
        REQUIRE(s->n_writing + s->n_live + s->n_dead + s->n_lost <= s->next_slot, "more slots in use than given");
        return NULL;
}

struct entries {
        struct core *c;
        struct domain *d;
        uint64_t pages, slots;
        const char *error;
};

static void check_entry(void *userdata, struct index_entry e) {
        struct entries *x = userdata;
        struct match m;
        uint64_t r;

        if (e.id & SLOT_ID) {
                uint32_t slot = e.id & ~SLOT_ID;

                x->slots++;
                if (slot / SEGMENT_UNIT >= x->d->n_units || !segment_of(x->d, slot) ||
                    slot_at(x->d, slot)->state != SLOT_LIVE) {
                        x->error = "the index names a slot that is not live";
                        return;
                }
                match_find(x->c, x->d, (uint64_t) slot_key(x->d, slot) << 32 | (uint64_t) e.tag << 8, &m);
                if (m.slot != slot)
                        x->error = "I5: two chains have one hash";
                return;
        }
        x->pages++;
        if (!pool_has(&x->c->blocks, e.id >> BLOCK_SHIFT)) {
                x->error = "the index names a page of no block";
                return;
        }
        r = block_at(x->c, e.id >> BLOCK_SHIFT)->page[e.id & (BLOCK_PAGES - 1)];
        if (record_state(r) != PAGE_UNSHARED && record_state(r) != PAGE_PARTNER)
                x->error = "the index names a page that is not unshared";
        else if (index_tag(record_hash(r)) != e.tag)
                x->error = "an index entry has another tag than its page";
        else if (block_client(x->c, block_at(x->c, e.id >> BLOCK_SHIFT))->domain != id_index(x->d->id))
                x->error = "I4: the index names a page of another domain";
}

static const char *check_domain(struct core *c, struct domain *d, uint64_t *dups) {
        struct entries x = { .c = c, .d = d };
        uint64_t registered = 0, given = 0, unshared = 0;

        for (uint32_t u = 0; u < d->n_units; u++) {
                struct segment *s = d->units[u];
                const char *error;

                if (!s || s->base != u * SEGMENT_UNIT)
                        continue;
                given += s->n_writing + s->n_live + s->n_dead;
                error = check_segment(c, d, s, dups);
                if (error)
                        return error;
        }
        REQUIRE(given == d->given_slots, "slots of a domain are miscounted");
        index_each(&d->index, check_entry, &x);
        if (x.error)
                return x.error;
        REQUIRE(x.pages + x.slots == d->index.n_entries, "index entries are miscounted");
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                struct client *cl = client_at(c, i);

                if (domain_at(c, cl->domain) != d)
                        continue;
                registered += cl->registered_pages;
                unshared += cl->states[PAGE_UNSHARED] + cl->states[PAGE_PARTNER];
        }
        REQUIRE(registered == d->registered_pages, "registered pages of a domain are miscounted");
        REQUIRE(unshared == x.pages, "unshared pages and index entries differ");
        return NULL;
}

const char *core_check(struct core *c) {
        struct totals t = {};
        uint64_t dups = 0, sharers = 0, shared = 0, live_extents = 0;

        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                const char *error = check_client(c, client_at(c, i), &t);

                if (error)
                        return error;
        }
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                struct domain *d = domain_at(c, i);
                const char *error = check_domain(c, d, &dups);

                if (error)
                        return error == no_memory ? NULL : error;
                for (uint32_t u = 0; u < d->n_units; u++)
                        for (uint32_t k = 0; d->units[u] && k < SEGMENT_UNIT; k++) {
                                const struct slot *s = slot_at(d, u * SEGMENT_UNIT + k);

                                sharers += s->sharers;
                                shared += s->sharers > 0;
                        }
        }
        for (uint32_t i = pool_next(&c->extents, 0); i != NIL; i = pool_next(&c->extents, i + 1))
                live_extents += (uint64_t) __builtin_popcountll(extent_at(c, i)->live);
        REQUIRE(t.blocks == c->blocks.n_items && t.blocks == c->block_table.n_entries, "blocks are miscounted");
        REQUIRE(t.registered == c->registered_pages, "registered pages are miscounted");
        REQUIRE((int64_t) t.vmas == c->vmas_used, "the VMA estimate is wrong");
        for (unsigned s = 0; s < PAGE_STATES; s++)
                REQUIRE(t.states[s] == c->states[s], "page states are miscounted");
        REQUIRE(dups == c->dups, "dups are miscounted");
        REQUIRE(sharers == c->slots_sharers && shared == c->slots_shared, "shared pages are miscounted");
        REQUIRE(live_extents == sharers && sharers == t.states[PAGE_MERGED], "merged pages and sharers differ");
        return NULL;
}
