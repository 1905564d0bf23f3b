/* Reading: settled pages are read and hashed once, whole blocks at a time so that each can be planned at once. */
#include "daemon/core/internal.h"

#include <errno.h>

struct picked {
        uint64_t page;
        uint32_t id;
};
struct picking {
        struct core *c;
        struct client *cl;
        struct picked pages[CORE_READ_PAGES];
        uint32_t n, limit;
        uint64_t now_usec;
        bool for_request;
};

/* Unwritten in the last complete pass and for the settle time, both counted between beginnings of passes. */
static bool is_settled(const struct core *c, const struct client *cl, uint64_t r) {
        uint64_t written = record_payload(r);

        return written < cl->last_pass_usec && cl->last_pass_usec - written >= settle_usec(c, record_fails(r));
}

static bool is_wanted(const struct picking *p, uint64_t page, uint64_t r) {
        if (record_state(r) != PAGE_FRESH)
                return false;
        return p->for_request ? request_wants_page(p->c, p->cl, page, r) : is_settled(p->c, p->cl, r);
}

/* Adds the block's settled pages, all or none; when even an empty op has no room for all, as many as it has. False: some are left. */
static bool pick_block(struct picking *p, uint32_t block) {
        struct block *b = block_at(p->c, block);
        uint64_t first = b->number << BLOCK_SHIFT, mask = 0;

        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (is_wanted(p, first + i, b->page[i]))
                        mask |= UINT64_C(1) << i;
        if (p->n > 0 && p->n + (uint32_t) __builtin_popcountll(mask) > p->limit)
                return false;
        for (; mask && p->n < p->limit; mask &= mask - 1) {
                unsigned i = (unsigned) __builtin_ctzll(mask);

                p->pages[p->n++] = (struct picked){ first + i, page_id(block, i) };
        }
        return mask == 0;
}

static bool has_fresh(const struct block *b) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (record_state(b->page[i]) == PAGE_FRESH)
                        return true;
        return false;
}

/* Blocks of the last pass. Those with pages still to settle wait for the next. */
static void pick_ready(struct picking *p) {
        enum { VISITS = 512 };

        for (unsigned n = 0; n < VISITS && p->n < p->limit && p->cl->ready.head != NIL; n++) {
                uint32_t block = p->cl->ready.head, n_before = p->n;
                struct block *b = block_at(p->c, block);
                bool is_hot = b->flags & BLOCK_SKIPPED;

                records_fetch(p->c, b->read_next);
                if (!is_hot && !pick_block(p, block))
                        return;
                (void) block_pop(p->c, &p->cl->ready, BLOCK_WAITING);
                scan_was_read(p->c, p->cl, block, p->now_usec);
                if (b->age & BLOCK_RECHECK) {
                        b->age &= (uint8_t) ~BLOCK_RECHECK; /* it was quiet */
                        b->age -= b->age > 0;
                }
                /* With the ones just picked it waits too: cheaper than telling them apart. */
                if (has_fresh(b))
                        block_queue_read(p->c, block);
                else if (p->n == n_before)
                        block_free_if_idle(p->c, block);
        }
}

static void pick_for_request(struct picking *p) {
        struct client *cl = p->cl;
        unsigned budget = 1024;

        while (p->n < p->limit && budget > 0 && cl->request_walk.is_active) {
                struct walk before = cl->request_walk;
                uint32_t block = walk_next(p->c, cl, &cl->request_walk, &budget);

                if (block != NIL && !pick_block(p, block)) {
                        cl->request_walk = before;
                        return;
                }
        }
}

static void sort_picked(struct picked *p, uint32_t n) {
        for (uint32_t i = 1; i < n; i++) {
                struct picked x = p[i];
                uint32_t k = i;

                for (; k > 0 && p[k - 1].page > x.page; k--)
                        p[k] = p[k - 1];
                p[k] = x;
        }
}

/* False: nothing to read, or no memory for the op. */
static bool read_build(struct core *c, struct client *cl, bool for_request, uint32_t limit, uint64_t now_usec, struct core_read *ret) {
        struct picking p = { .c = c, .cl = cl, .limit = limit, .now_usec = now_usec, .for_request = for_request };
        struct op *op = op_new(c, OP_READ, cl);

        if (!op)
                return false;
        op->read.pages = memory_realloc(&c->memory, NULL, 0, CORE_READ_PAGES * sizeof(*op->read.pages));
        if (op->read.pages) {
                if (for_request)
                        pick_for_request(&p);
                else
                        pick_ready(&p);
        }
        if (p.n == 0) {
                op_free(c, op);
                return false;
        }
        sort_picked(p.pages, p.n);
        for (uint32_t k = 0; k < p.n; k++) {
                uint32_t block = p.pages[k].id >> BLOCK_SHIFT;
                unsigned i = p.pages[k].id & (BLOCK_PAGES - 1);
                uint64_t r = block_at(c, block)->page[i];

                page_mark(c, block, i, record(PAGE_READING, record_fails(r), record_payload(r)));
                op->read.pages[k] = p.pages[k].id;
                ret->pages[k] = p.pages[k].page;
        }
        op->read.n_pages = ret->n_pages = p.n;
        op->is_request = for_request;
        ret->op = op->id;
        ret->client = cl->id;
        ret->domain = op->domain;
        ret->wants_nodes = op->wants_nodes = nodes_matter(c);
        cl->is_reading = true;
        client_domain(c, cl)->is_reading = true;
        return true;
}

/* Token bucket: pages_to_scan a sleep_millisecs, at most one such batch saved up. */
static void refill(struct core *c, uint64_t now_usec) {
        double batch = (double) c->tunables.pages_to_scan;
        double rate = batch / (double) MAX(usec_of_ms(c->tunables.sleep_millisecs), UINT64_C(1));

        if (c->read_tokens_usec == 0 || c->tunables.sleep_millisecs == 0)
                c->read_tokens = batch;
        else if (now_usec > c->read_tokens_usec)
                c->read_tokens = MIN(batch, c->read_tokens + rate * (double) (now_usec - c->read_tokens_usec));
        c->read_tokens_usec = now_usec;
}

/* merge_now goes first and is not held back by tokens. */
static bool next_urgent(struct core *c, uint64_t now_usec, struct core_read *ret) {
        uint32_t last = c->urgent.tail;

        while (c->urgent.head != NIL) {
                struct client *cl = client_at(c, c->urgent.head);
                bool is_last = c->urgent.head == last;

                urgent_remove(c, cl);
                if (cl->is_reading || client_domain(c, cl)->is_reading || cl->is_parked)
                        urgent_add(c, cl);
                else if (read_build(c, cl, true, CORE_READ_PAGES, now_usec, ret))
                        return true;
                else
                        job_add(c, cl);
                if (is_last)
                        break;
        }
        return false;
}

bool core_next_read(struct core *c, uint64_t now_usec, struct core_read *ret, uint64_t *ret_next_usec) {
        enum { TRIES = 64 };
        uint32_t limit = (uint32_t) MIN(c->tunables.pages_to_scan, (int64_t) CORE_READ_PAGES);

        *ret_next_usec = UINT64_MAX;
        if (c->tunables.run != 1)
                return false;
        refill(c, now_usec);
        if (next_urgent(c, now_usec, ret)) {
                *ret_next_usec = now_usec;
                return true;
        }
        if (limit == 0 || c->pace == CORE_PACE_REST) /* pages_to_scan, until it is set anew */
                return false;
        for (unsigned n = 0; n < TRIES; n++) {
                struct client *cl = turn_head(c, TURN_READ);

                if (!cl)
                        return false;
                if (cl->is_reading || cl->ready.head == NIL) {
                        turn_drop(c, TURN_READ);
                        continue;
                }
                if (c->read_tokens < limit) {
                        *ret_next_usec = now_usec + 1 + (uint64_t) ((limit - c->read_tokens) /
                                                                    (double) c->tunables.pages_to_scan *
                                                                    (double) usec_of_ms(c->tunables.sleep_millisecs));
                        return false;
                }
                *ret_next_usec = now_usec;
                if (read_build(c, cl, false, limit, now_usec, ret)) {
                        c->read_tokens -= ret->n_pages;
                        turn_spend(c, TURN_READ, ret->n_pages);
                        return true;
                }
                if (cl->ready.head != NIL) {
                        turn_spend(c, TURN_READ, CORE_READ_PAGES); /* only visits, or no memory: others first */
                        if (n >= 8)
                                return false;
                }
        }
        *ret_next_usec = now_usec;
        return false;
}

static void page_read(struct core *c, const struct op *op, uint32_t block, unsigned i, const struct core_read_result *result,
                      uint64_t now_usec) {
        unsigned fails = record_fails(block_at(c, block)->page[i]);
        int nid = node_nid(c, op, result->node);
        enum page_state state;

        if (nid >= 0 && (result->status == CORE_READ_OK || (result->status == CORE_READ_ALL_ZERO && !c->tunables.use_zero_pages))) {
                page_resolve(c, block, i, content_hash(result->hash, (unsigned) nid), now_usec);
                state = record_state(block_at(c, block)->page[i]);
                pace_page_read(c, state == PAGE_MATCHED || state == PAGE_HASHED);
        } else if (result->status == CORE_READ_ALL_ZERO && c->tunables.use_zero_pages) {
                page_mark(c, block, i, record(PAGE_ZEROABLE, fails, 0));
                block_queue_apply(c, block);
                pace_page_read(c, true);
        } else {
                page_fresh(c, block, i, more_fails(fails, 1), now_usec);
                return;
        }
        c->counters.pages_scanned++;
}

#define FETCH_HASHES 32

/* Of the next results the places in the index, and what is known to have their hashes. */
static void fetch_contents(const struct core *c, const struct domain *d, const struct op *op, const struct core_read_result *results,
                           uint32_t from) {
        uint64_t hashes[FETCH_HASHES];
        size_t n = 0;

        for (uint32_t k = from; k < MIN(from + FETCH_HASHES, op->read.n_pages); k++) {
                int nid = node_nid(c, op, results[k].node);

                if (results[k].status == CORE_READ_OK && nid >= 0)
                        hashes[n++] = content_hash(results[k].hash, (unsigned) nid);
        }
        index_fetch(&d->index, hashes, n);
}

void core_read_done(struct core *c, uint64_t id, uint64_t now_usec, const struct core_read_result *results) {
        struct op *op = op_get(c, id, OP_READ);
        struct client *cl = op ? op_client(c, op) : NULL;
        struct domain *d = op ? domain_get(c, op->domain) : NULL;

        if (!op)
                return;
        for (uint32_t k = 0; cl && k < op->read.n_pages; k++) {
                if (k % FETCH_HASHES == 0)
                        fetch_contents(c, d, op, results, k);
                uint32_t block = op->read.pages[k] >> BLOCK_SHIFT;
                unsigned i = op->read.pages[k] & (BLOCK_PAGES - 1);

                /* Written or gone meanwhile, the block perhaps with it: only this op makes this client's pages READING. */
                if (pool_has(&c->blocks, block) && block_at(c, block)->client == id_index(cl->id) &&
                    record_state(block_at(c, block)->page[i]) == PAGE_READING)
                        page_read(c, op, block, i, &results[k], now_usec);
        }
        if (d) {
                d->is_reading = false;
                turn_add_domain(c, d, TURN_READ);
        }
        if (cl) {
                cl->is_reading = false;
                if (cl->ready.head != NIL)
                        turn_add(c, cl, TURN_READ);
                if (client_merging_now(cl))
                        job_add(c, cl);
        }
        op_free(c, op);
}
