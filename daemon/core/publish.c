/* Publishing: a page whose equal is known (an unshared page of the domain, its partner) is copied into a slot, by
 * preference a whole run of them into consecutive slots; then both sides match the slot and are merged like any other.
 *
 * Between hand-out and answer anything may happen to both pages. So the answer decides anew, from what the index then
 * holds for the hash of what was really written: the partner, another page that came meanwhile, a chain that came
 * meanwhile (the slot is wasted), or nobody (wasted too: a page shared by one saves nothing). Of a strip (chain.c) only the first
 * source has a partner; the others make dups of the chain that it makes. All of one publish are on one node (node.c). */
#include "daemon/core/internal.h"

#include <errno.h>

#define LONG_RUN 8

struct publishing {
        struct core *c;
        struct client *cl;
        uint32_t block;
        uint64_t now_usec;
        unsigned nid;                  /* of the sources */
        uint64_t sources;              /* pages with a partner */
        uint64_t had_one;              /* and those that had one */
        uint64_t strips;               /* get dups of their own beside the first of their content */
        uint32_t partner[BLOCK_PAGES]; /* page ids; NIL: none is needed, for the one before makes the chain */
        unsigned longest_short;
};

static uint64_t *record_of(struct core *c, uint32_t id) {
        return &block_at(c, id >> BLOCK_SHIFT)->page[id & (BLOCK_PAGES - 1)];
}

static void remark(struct core *c, uint32_t id, enum page_state state) {
        uint64_t r = *record_of(c, id);

        page_mark(c, id >> BLOCK_SHIFT, id & (BLOCK_PAGES - 1), (r & ~UINT64_C(15)) | state);
}

static bool is_equal(const struct block *b, unsigned i, uint64_t hash) {
        return record_state(b->page[i]) == PAGE_HASHED && record_hash(b->page[i]) == hash;
}

/* Pages from this one on that wait for a publish of the same bytes, as far as it matters; of them *ret_here in this block. */
static uint32_t count_equal(const struct publishing *p, unsigned i, uint64_t hash, uint32_t *ret_here) {
        const struct block *b = block_at(p->c, p->block);
        uint32_t n = 1, block = p->block;

        *ret_here = 0;
        for (unsigned k = i + 1; n < STRIP_PAGES; k++) {
                if (k == BLOCK_PAGES) {
                        *ret_here = *ret_here ? *ret_here : n;
                        block = block_find(p->c, p->cl, block_at(p->c, block)->number + 1);
                        if (block == NIL)
                                break;
                        b = block_at(p->c, block);
                        k = 0;
                }
                if (!is_equal(b, k, hash))
                        break;
                n++;
        }
        *ret_here = *ret_here ? *ret_here : n;
        return n;
}

/* A source whose neighbours have the same bytes: as many of them become sources as make a strip. */
static void widen(struct publishing *p, unsigned i, uint32_t indexed) {
        uint64_t hash = record_hash(block_at(p->c, p->block)->page[i]);
        uint32_t here, n, width;

        if (!client_is_short_of_vmas(p->c, p->cl))
                return;
        n = count_equal(p, i, hash, &here);
        width = MIN(here, strip_width(p->c, p->cl, indexed, n));
        for (uint32_t k = 0; k < width && width > 1; k++) {
                p->strips |= UINT64_C(1) << (i + k);
                if (k == 0)
                        continue;
                remark(p->c, page_id(p->block, i + k), PAGE_SOURCE);
                p->partner[i + k] = NIL;
                p->sources |= UINT64_C(1) << (i + k);
        }
}

/* Resolves what can be resolved by now, and pairs the rest off. */
static void find_sources(struct publishing *p) {
        struct core *c = p->c;
        struct block *b = block_at(c, p->block);

        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                struct match m;

                if (record_state(b->page[i]) != PAGE_HASHED || content_nid(record_hash(b->page[i])) != p->nid)
                        continue;
                page_resolve(c, p->block, i, record_hash(b->page[i]), p->now_usec);
                if (record_state(b->page[i]) != PAGE_HASHED)
                        continue;
                match_find(c, client_domain(c, p->cl), record_hash(b->page[i]), &m);
                if (record_state(*record_of(c, m.page)) != PAGE_UNSHARED)
                        continue;
                remark(c, m.page, PAGE_PARTNER);
                remark(c, page_id(p->block, i), PAGE_SOURCE);
                p->partner[i] = m.page;
                p->sources |= UINT64_C(1) << i;
                widen(p, i, m.slot);
        }
        p->had_one |= p->sources;
}

/* When this op has let go of what it does not publish: is there something else to be done in the block before the runs that are
 * too short? A page whose equal others publish, or whose equal a neighbour held that was refused. */
static bool has_more(const struct publishing *p) {
        struct core *c = p->c;
        const struct block *b = block_at(c, p->block);

        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                struct match m;

                if (record_state(b->page[i]) != PAGE_HASHED)
                        continue;
                if (p->longest_short == 0 && !(p->had_one >> i & 1))
                        return true;
                match_find(c, client_domain(c, p->cl), record_hash(b->page[i]), &m);
                if (m.page != NIL && record_state(*record_of(c, m.page)) == PAGE_PARTNER)
                        return true;
        }
        return false;
}

static void unpair(struct publishing *p, unsigned i, bool backs_off) {
        uint32_t id = page_id(p->block, i);

        if (p->partner[i] != NIL)
                remark(p->c, p->partner[i], PAGE_UNSHARED);
        p->sources &= ~(UINT64_C(1) << i);
        if (backs_off)
                page_fresh(p->c, p->block, i, more_fails(record_fails(*record_of(p->c, id)), 1), p->now_usec);
        else
                remark(p->c, id, PAGE_HASHED);
}

/* VMAs are left for a page that is to map a slot of which nobody maps a neighbour: none are needed when it lies alone in a mapping now. */
static bool has_vmas_for(const struct core *c, uint32_t id, bool is_long) {
        const struct block *b = block_at(c, id >> BLOCK_SHIFT);
        int cost = extent_vma_cost(c, b, id & (BLOCK_PAGES - 1), 1, SLOT_ELSEWHERE);

        return cost <= 0 || client_has_vmas(c, block_client(c, b), (uint32_t) cost, is_long);
}

/* A page in company of n - 1 others; what merges into neighbouring slots counts as company. */
static bool may_publish(struct publishing *p, unsigned i, unsigned n, bool *ret_waits) {
        struct core *c = p->c;
        struct domain *d = client_domain(c, p->cl);
        bool is_long = n >= LONG_RUN;
        struct block *b = block_at(c, p->block);

        *ret_waits = !is_long && !(b->flags & BLOCK_SHORT_DUE) && !client_merging_now(p->cl);
        if (*ret_waits)
                return false;
        return clean_leaves_room(c, d, (uint64_t) __builtin_popcountll(p->sources)) &&
               has_vmas_for(c, page_id(p->block, i), is_long) && (p->partner[i] == NIL || has_vmas_for(c, p->partner[i], is_long));
}

static void select_runs(struct publishing *p) {
        struct block *b = block_at(p->c, p->block);
        uint64_t company = p->sources, all = p->sources;

        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (page_slot(p->c, b, i) != NIL)
                        company |= UINT64_C(1) << i;
        for (unsigned i = 0, n; i < BLOCK_PAGES; i += n) {
                for (n = 0; i + n < BLOCK_PAGES && company >> (i + n) & 1; n++)
                        ;
                for (unsigned k = i; k < i + n; k++) {
                        bool waits;

                        if (!(all >> k & 1) || may_publish(p, k, n, &waits))
                                continue;
                        if (waits)
                                p->longest_short = MAX(p->longest_short, n);
                        else
                                p->c->counters.failed_budget++;
                        unpair(p, k, !waits);
                }
                n = MAX(n, 1U);
        }
}

/* All of one op in one segment, ascending: what does not fit goes into the next op. True: something was left. */
static bool give_slots(struct publishing *p, struct op_publish *o, struct core_publish *ret) {
        struct domain *d = client_domain(p->c, p->cl);
        bool is_left = false;

        while (p->sources) {
                uint32_t first, n;

                if (slot_take(p->c, p->cl, p->nid, (uint32_t) __builtin_popcountll(p->sources), &first, &n) < 0) {
                        while (p->sources)
                                unpair(p, (unsigned) __builtin_ctzll(p->sources), true);
                        break;
                }
                if (o->n_pages > 0 && segment_of(d, first)->id != ret->segment) {
                        for (uint32_t k = 0; k < n; k++)
                                slot_fail(p->c, d, first + k, false);
                        while (p->sources)
                                unpair(p, (unsigned) __builtin_ctzll(p->sources), false);
                        is_left = true;
                        break;
                }
                ret->segment = segment_of(d, first)->id;
                ret->segment_slots = segment_of(d, first)->n_slots;
                for (uint32_t k = 0; k < n; k++, o->n_pages++, p->sources &= p->sources - 1) {
                        unsigned i = (unsigned) __builtin_ctzll(p->sources);

                        o->strips |= (p->strips >> i & 1) << o->n_pages;
                        o->pages[o->n_pages] = page_id(p->block, i);
                        o->slots[o->n_pages] = first + k;
                        o->hashes[o->n_pages] = record_hash(block_at(p->c, p->block)->page[i]);
                        ret->pages[o->n_pages] = (block_at(p->c, p->block)->number << BLOCK_SHIFT) + i;
                        ret->slots[o->n_pages] = first + k - segment_of(d, first)->base;
                }
        }
        return is_left;
}

/* The lowest nid, from this one on, of the pages that wait for a publish; or -1. */
static int waiting_nid(const struct block *b, unsigned from) {
        int best = -1;

        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                unsigned nid = content_nid(record_hash(b->page[i]));

                if (record_state(b->page[i]) == PAGE_HASHED && nid >= from && (best < 0 || nid < (unsigned) best))
                        best = (int) nid;
        }
        return best;
}

/* Sources of the first node that has some which may be published. True: those of other nodes have not been looked at. */
static bool choose_sources(struct publishing *p) {
        const struct block *b = block_at(p->c, p->block);

        for (int nid = waiting_nid(b, 0); nid >= 0; nid = waiting_nid(b, (unsigned) nid + 1)) {
                p->nid = (unsigned) nid;
                find_sources(p);
                select_runs(p);
                if (p->sources)
                        return waiting_nid(b, (unsigned) nid + 1) >= 0;
        }
        return false;
}

/* One block's publish. False: nothing to publish in it, for now. */
static bool publish_build(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec, bool *ret_waits,
                          struct core_publish *ret) {
        struct publishing p = { .c = c, .cl = cl, .block = block, .now_usec = now_usec };
        struct block *b = block_at(c, block);
        struct op *op = op_new(c, OP_PUBLISH, cl);
        bool is_left;

        *ret_waits = true;
        if (!op)
                return false;
        op->publish = memory_realloc(&c->memory, NULL, 0, sizeof(*op->publish));
        if (!op->publish) {
                op_free(c, op);
                return false;
        }
        op->publish->n_pages = 0;
        op->publish->strips = 0;
        is_left = choose_sources(&p);
        *ret_waits = give_slots(&p, op->publish, ret) || is_left || has_more(&p);
        b->flags &= (uint16_t) ~BLOCK_PUBLISH;
        if (op->publish->n_pages == 0) {
                op_free(c, op);
                if (block_has_state(b, PAGE_MATCHED))
                        block_queue_apply(c, block);
                else if (p.longest_short > 0)
                        block_queue_short(c, block, p.longest_short);
                else
                        b->flags &= (uint16_t) ~BLOCK_SHORT_DUE;
                return false;
        }
        b->flags |= BLOCK_PUBLISHING;
        cl->is_publishing = true;
        ret->op = op->id;
        ret->client = cl->id;
        ret->domain = op->domain;
        ret->n_pages = op->publish->n_pages;
        ret->node = (int32_t) p.nid - 1;
        c->n_publishing_pages += ret->n_pages;
        memory_promise(&c->memory, ret->n_pages * KSM_PAGE_SIZE);
        return true;
}

bool core_next_publish(struct core *c, uint64_t now_usec, struct core_publish *ret) {
        enum { VISITS = 256, RETRY_USEC = 2000 };

        if (c->tunables.run != 1)
                return false;
        apply_wake_due(c, now_usec);
        for (unsigned n = 0; n < VISITS; n++) {
                struct client *cl = turn_head(c, TURN_PUBLISH);
                uint32_t block;
                bool waits;

                if (!cl)
                        return false;
                if (cl->is_publishing || cl->publish.head == NIL) {
                        turn_drop(c, TURN_PUBLISH);
                        continue;
                }
                block = block_pop(c, &cl->publish, BLOCK_PUBLISH);
                /* Keeps page_resolve from queueing it while it is being worked on. */
                block_at(c, block)->flags |= BLOCK_PUBLISHING;
                if (publish_build(c, cl, block, now_usec, &waits, ret)) {
                        turn_spend(c, TURN_PUBLISH, ret->n_pages);
                        return true;
                }
                block_at(c, block)->flags &= (uint16_t) ~BLOCK_PUBLISHING;
                if (!waits) {
                        block_free_if_idle(c, block);
                        continue;
                }
                block_push(c, &cl->publish, block, BLOCK_PUBLISH);
                timer_set(c, cl, TIMER_WAKE, now_usec + RETRY_USEC);
                if (n > 16)
                        turn_drop(c, TURN_PUBLISH);
        }
        return false;
}

/* -- answers ---------------------------------------------------------------------------------------------------------- */

/* The page, if it is still the source that the op took; else NULL. */
static uint64_t *source_of(struct core *c, const struct client *cl, const struct op_publish *o, uint32_t k) {
        uint32_t block = o->pages[k] >> BLOCK_SHIFT;
        uint64_t *r;

        if (!cl || !pool_has(&c->blocks, block) || block_at(c, block)->client != id_index(cl->id))
                return NULL;
        r = record_of(c, o->pages[k]);
        return record_state(*r) == PAGE_SOURCE && record_hash(*r) == o->hashes[k] ? r : NULL;
}

/* Nobody publishes for it any more. */
static void release_partner(struct core *c, struct domain *d, uint64_t hash) {
        struct match m;

        match_find(c, d, hash, &m);
        if (m.page != NIL && record_state(*record_of(c, m.page)) == PAGE_PARTNER)
                remark(c, m.page, PAGE_UNSHARED);
}

static void to_matched(struct core *c, uint32_t id, uint32_t slot) {
        unsigned fails = record_fails(*record_of(c, id));

        page_mark(c, id >> BLOCK_SHIFT, id & (BLOCK_PAGES - 1), record(PAGE_MATCHED, fails, slot));
        block_queue_apply(c, id >> BLOCK_SHIFT);
}

/* The slot holds the bytes that the source was read with. */
static void publish_good(struct core *c, struct domain *d, uint32_t source, uint32_t slot, uint64_t hash, bool is_strip,
                         uint64_t now_usec) {
        struct match m;

        match_find(c, d, hash, &m);
        if (is_strip && m.slot != NIL && m.page == NIL) {
                slot_live(c, d, slot, hash);
                slot_join(c, d, slot, m.slot);
                to_matched(c, source, slot);
                return;
        }
        if (m.page == NIL || (!is_strip && m.slot != NIL && chain_pick(c, d, m.slot, NIL) != NIL)) {
                slot_fail(c, d, slot, true);
                page_resolve(c, source >> BLOCK_SHIFT, source & (BLOCK_PAGES - 1), hash, now_usec);
                if (m.page == NIL)
                        return;
                /* A chain came in between: the partner joins it by the same way. */
                remark(c, m.page, PAGE_UNSHARED);
                page_set(c, m.page >> BLOCK_SHIFT, m.page & (BLOCK_PAGES - 1),
                         hash | record(PAGE_HASHED, record_fails(*record_of(c, m.page)), 0));
                block_queue_publish(c, m.page >> BLOCK_SHIFT);
                return;
        }
        slot_live(c, d, slot, hash);
        slot_pend(d, slot);
        if (m.slot != NIL) {
                (void) index_remove(&d->index, hash, m.page);
                match_find(c, d, hash, &m); /* chain_pick may have turned the ring */
                slot_join(c, d, slot, m.slot);
        } else {
                (void) index_replace(&d->index, hash, m.page, SLOT_ID | slot);
        }
        to_matched(c, source, slot);
}

static void publish_one(struct core *c, struct client *cl, struct domain *d, const struct op_publish *o, uint32_t k,
                        const struct core_read_result *result, uint64_t now_usec) {
        uint64_t *source = source_of(c, cl, o, k);
        unsigned nid = segment_of(d, o->slots[k])->nid;
        bool was_written = result && result->status != CORE_READ_FAILED; /* takes memory, and counts against the domain's bound */
        bool was_read = was_written && result->status != CORE_READ_SPOILED;
        /* The kernel takes memory of another node when the wanted one is full. */
        bool is_misplaced = was_read && nid != 0 && result->node != (int32_t) nid - 1;
        unsigned fails = source ? record_fails(*source) : 0;
        struct match m;

        if (source && was_read && !is_misplaced && content_hash(result->hash, nid) == o->hashes[k]) {
                match_find(c, d, o->hashes[k], &m);
                publish_good(c, d, o->pages[k], o->slots[k], o->hashes[k], o->strips >> k & 1, now_usec);
                if (m.page != NIL && slot_at(d, o->slots[k])->state == SLOT_LIVE)
                        to_matched(c, m.page, o->slots[k]);
                return;
        }
        slot_fail(c, d, o->slots[k], was_written);
        release_partner(c, d, o->hashes[k]);
        if (source)
                page_fresh(c, o->pages[k] >> BLOCK_SHIFT, o->pages[k] & (BLOCK_PAGES - 1),
                           was_read && !is_misplaced ? fails : more_fails(fails, 1), now_usec);
}

static void publish_block_done(struct core *c, struct client *cl, uint32_t block) {
        struct block *b = block_at(c, block);

        b->flags &= (uint16_t) ~BLOCK_PUBLISHING;
        if (block_has_state(b, PAGE_HASHED))
                block_queue_publish(c, block);
        if (block_has_state(b, PAGE_MATCHED)) /* it waited for this to end */
                block_queue_apply(c, block);
        block_free_if_idle(c, block);
        cl->is_publishing = false;
        if (cl->publish.head != NIL)
                turn_add(c, cl, TURN_PUBLISH);
        if (cl->requests)
                job_add(c, cl);
}

void core_publish_done(struct core *c, uint64_t id, uint64_t now_usec, const struct core_read_result *results, int error) {
        struct op *op = op_get(c, id, OP_PUBLISH);
        struct client *cl = op ? op_client(c, op) : NULL;
        struct domain *d = op ? domain_get(c, op->domain) : NULL;
        uint32_t block;

        if (!op)
                return;
        c->n_publishing_pages -= op->publish->n_pages;
        block = op->publish->pages[0] >> BLOCK_SHIFT;
        index_fetch(&d->index, op->publish->hashes, op->publish->n_pages); /* its slots keep the domain */
        for (uint32_t k = 0; k < op->publish->n_pages; k++)
                publish_one(c, cl, d, op->publish, k, error < 0 ? NULL : &results[k], now_usec);
        if (cl)
                publish_block_done(c, cl, block);
        op_free(c, op);
}
