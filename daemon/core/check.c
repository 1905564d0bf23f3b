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
        uint32_t states[PAGE_STATES];
        uint64_t blocks, extents, vmas, registered;
        uint64_t segments, written, dead, sharers, shared, chains, dups, for_runs, misplaced;
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
                REQUIRE(pool_has(&c->extents, (uint32_t) record_payload(r)), "a merged page has no extent");
                REQUIRE(extent_at(c, (uint32_t) record_payload(r))->mapped >> i & 1, "a merged page lies outside its extent");
                slot = page_slot(c, b, i);
                REQUIRE(slot_at(d, slot)->state == SLOT_LIVE, "a merged page maps a slot that is not live");
                break;
        default:
                break;
        }
        return NULL;
}

/* The mappings of a block: apart from each other, in segments of the domain, no empty ones. */
static const char *check_extents(struct core *c, struct domain *d, uint32_t block, struct totals *t) {
        uint64_t seen = 0;

        for (uint32_t id = block_at(c, block)->extents; id != NIL; id = extent_at(c, id)->block_next) {
                const struct extent *e;

                REQUIRE(pool_has(&c->extents, id), "a block names an extent that is none");
                e = extent_at(c, id);
                REQUIRE(e->page >> BLOCK_SHIFT == block, "an extent is in another block's list");
                REQUIRE(e->mapped != 0, "an extent holds nothing");
                REQUIRE(!(e->mapped & seen), "a page lies in two extents");
                seen |= e->mapped;
                t->extents++;
                for (uint64_t m = e->mapped; m; m &= m - 1) {
                        uint32_t slot = e->slot + (uint32_t) __builtin_ctzll(m) - (e->page & (BLOCK_PAGES - 1));

                        REQUIRE(slot / SEGMENT_UNIT < d->n_units && segment_of(d, slot), "I4: a page maps no segment of its domain");
                        REQUIRE(segment_of(d, slot) == segment_of(d, e->slot), "an extent crosses segments");
                }
        }
        return NULL;
}

/* VMA boundaries as the kernel would count them: at each page that lies in a mapping, the one before it, and the one behind it
 * when anonymous memory follows. */
static uint64_t count_edges(struct core *c, struct client *cl, struct block *b) {
        const struct domain *d = client_domain(c, cl);
        uint32_t before = b->number > 0 ? block_find(c, cl, b->number - 1) : NIL, after = block_find(c, cl, b->number + 1);
        uint32_t left = before == NIL ? NIL : page_file_slot(c, block_at(c, before), BLOCK_PAGES - 1);
        uint64_t n = 0;

        for (unsigned i = 0; i <= BLOCK_PAGES; i++) {
                uint32_t own = i < BLOCK_PAGES    ? page_file_slot(c, b, i)
                               : after == NIL     ? NIL
                                                  : page_file_slot(c, block_at(c, after), 0);

                if (i == BLOCK_PAGES)
                        n += left != NIL && own == NIL; /* else the next block counts it */
                else if (own != NIL)
                        n += left == NIL || left + 1 != own || segment_of(d, left) != segment_of(d, own);
                else
                        n += i > 0 && left != NIL;
                left = own;
        }
        return n;
}

static const char *check_client(struct core *c, struct client *cl, struct totals *all) {
        struct totals t = {};
        uint64_t n_blocks = 0, edges = 0;
        const char *error = range_check(cl, &t.registered);

        if (error)
                return error;
        REQUIRE(t.registered == cl->registered_pages, "registered pages of a client are miscounted");
        for (uint32_t block = cl->blocks; block != NIL; block = block_at(c, block)->next) {
                struct block *b = block_at(c, block);

                n_blocks++;
                REQUIRE(b->client == id_index(cl->id), "a block is in another client's list");
                REQUIRE(block_find(c, cl, b->number) == block, "a block is not in the block table");
                error = check_extents(c, client_domain(c, cl), block, &t);
                if (error)
                        return error;
                edges += count_edges(c, cl, b);
                for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                        error = check_page(c, cl, block, i, &t);
                        if (error)
                                return error;
                }
        }
        REQUIRE(n_blocks == cl->n_blocks, "blocks of a client are miscounted");
        REQUIRE((int64_t) edges == cl->vmas_used, "the VMA estimate of a client is wrong");
        for (unsigned s = 0; s < PAGE_STATES; s++) {
                REQUIRE(t.states[s] == cl->states[s], "page states of a client are miscounted");
                all->states[s] += t.states[s];
        }
        all->blocks += n_blocks;
        all->extents += t.extents;
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

/* Adds a dup to the totals, and its chain by one of its dups. */
static const char *check_ring(struct domain *d, uint32_t slot, struct totals *t) {
        uint32_t at = slot, first = slot;
        uint64_t n = 0;
        bool is_indexed = false;

        do {
                REQUIRE(slot_at(d, at)->state == SLOT_LIVE, "a dup of a chain is not live");
                REQUIRE(slot_hash(d, at) == slot_hash(d, slot), "I5: dups of a chain have different hashes");
                REQUIRE(segment_of(d, at)->nid == segment_of(d, slot)->nid, "dups of a chain are bound to different nodes");
                REQUIRE(*slot_prev(d, slot_at(d, at)->next) == at, "a ring is not the same in both directions");
                is_indexed |= index_replace(&d->index, slot_hash(d, at), SLOT_ID | at, SLOT_ID | at);
                at = slot_at(d, at)->next;
                first = MIN(first, at);
                REQUIRE(++n <= UINT32_MAX, "a ring does not close");
        } while (at != slot);
        REQUIRE(is_indexed, "a chain is not in the index");
        t->dups += n > 1;
        t->chains += n > 1 && first == slot;
        return NULL;
}

static const char *check_groups(struct core *c, const struct segment *s) {
        uint32_t n = 0;

        for (uint32_t g = 0; g < s->n_slots / BLOCK_PAGES; g++)
                for (uint32_t id = s->groups[g], prev = NIL; id != NIL; prev = id, id = extent_at(c, id)->next) {
                        REQUIRE(pool_has(&c->extents, id), "a segment names an extent that is none");
                        REQUIRE(extent_at(c, id)->prev == prev, "a group's list is not the same in both directions");
                        REQUIRE((extent_at(c, id)->slot - s->base) / BLOCK_PAGES == g, "an extent is in the wrong group");
                        n++;
                }
        REQUIRE(n == s->n_extents, "extents of a segment are miscounted");
        return NULL;
}

static const char *check_segment(struct core *c, struct domain *d, struct segment *s, struct totals *t) {
        struct recount *n;
        uint32_t n_writing = 0, n_live = 0, n_dead = 0, n_sharers = 0, n_lonely = 0;
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
                bool is_held = s->events & SEGMENT_HELD && i >= s->held_next && slot->state == SLOT_LIVE;

                n_writing += slot->state == SLOT_WRITING;
                n_live += slot->state == SLOT_LIVE;
                n_dead += slot->state == SLOT_DEAD;
                n_sharers += slot->sharers;
                n_lonely += slot->sharers == 1;
                t->shared += slot->sharers > 0;
                t->misplaced += slot->is_misplaced;
                if (slot->sharers != n[i].sharers || slot->pending != n[i].pending + is_held)
                        error = "sharers of a slot are miscounted";
                else if (slot->state == SLOT_LIVE && slot->sharers + slot->pending == 0)
                        error = "a slot without sharers is live";
                else if (slot->state == SLOT_LIVE)
                        error = check_ring(d, s->base + i, t);
        }
        memory_release(&c->memory, n, s->n_slots * sizeof(*n));
        if (error)
                return error;
        REQUIRE(n_writing == s->n_writing && n_live == s->n_live && n_sharers == s->n_sharers, "slots of a segment are miscounted");
        REQUIRE(n_lonely == s->n_lonely, "slots with one sharer are miscounted");
        REQUIRE(n_dead == s->n_dead + s->n_lost, "dead slots of a segment are miscounted");
        REQUIRE(s->n_writing + s->n_live + s->n_dead + s->n_lost <= s->next_slot, "more slots in use than given");
        t->sharers += n_sharers;
        t->dead += s->n_dead;
        t->written += s->n_live + s->n_dead;
        REQUIRE(s->n_for_runs <= s->next_slot, "more dups are kept for runs than there are slots");
        t->for_runs += s->n_for_runs;
        t->segments++;
        return check_groups(c, s);
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
                match_find(x->c, x->d, slot_hash(x->d, slot), &m);
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
        else if (index_key(record_hash(r)) != e.key)
                x->error = "an index entry has another key than its page";
        else if (block_client(x->c, block_at(x->c, e.id >> BLOCK_SHIFT))->domain != id_index(x->d->id))
                x->error = "I4: the index names a page of another domain";
}

static const char *check_domain(struct core *c, struct domain *d, struct totals *t) {
        struct entries x = { .c = c, .d = d };
        uint64_t registered = 0, given = 0, leaving = 0, dead = 0, unshared = 0, shared = t->shared;

        for (uint32_t u = 0; u < d->n_units; u++) {
                struct segment *s = d->units[u];
                const char *error;

                if (!s || s->base != u * SEGMENT_UNIT)
                        continue;
                given += s->n_writing + s->n_live + s->n_dead;
                leaving += s->events & SEGMENT_CLEANING ? s->n_writing + s->n_live + s->n_dead : 0;
                dead += s->n_dead;
                error = check_segment(c, d, s, t);
                if (error)
                        return error;
        }
        REQUIRE(!d->cleaning || segment_of(d, d->cleaning->base) == d->cleaning, "a segment is cleaned that went");
        REQUIRE(given == d->given_slots && leaving == d->leaving_slots && dead == d->dead_slots, "slots of a domain are miscounted");
        REQUIRE(t->shared - shared == d->slots_shared, "shared pages of a domain are miscounted");
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

        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                const char *error = check_client(c, client_at(c, i), &t);

                if (error)
                        return error;
        }
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                struct domain *d = domain_at(c, i);
                const char *error = check_domain(c, d, &t);

                if (error)
                        return error == no_memory ? NULL : error;
        }
        REQUIRE(t.blocks == c->blocks.n_items && t.blocks == c->block_table.n_entries, "blocks are miscounted");
        REQUIRE(t.registered == c->registered_pages, "registered pages are miscounted");
        REQUIRE((int64_t) t.vmas == c->vmas_used, "the VMA estimate is wrong");
        for (unsigned s = 0; s < PAGE_STATES; s++)
                REQUIRE(t.states[s] == c->states[s], "page states are miscounted");
        REQUIRE(t.chains == c->chains && t.dups == c->dups, "dups are miscounted");
        REQUIRE(t.for_runs == c->dups_for_runs, "dups kept for runs are miscounted");
        REQUIRE(t.misplaced == c->slots_misplaced, "misplaced slots are miscounted");
        REQUIRE(t.segments == c->segments, "segments are miscounted");
        REQUIRE(t.written == c->segment_slots_written && t.dead == c->slots_dead, "dead slots are miscounted");
        REQUIRE(t.sharers == c->slots_sharers && t.shared == c->slots_shared, "shared pages are miscounted");
        REQUIRE(t.sharers == t.states[PAGE_MERGED], "merged pages and sharers differ");
        REQUIRE(t.extents == c->extents.n_items, "extents are miscounted");
        return NULL;
}
