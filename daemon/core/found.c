/* What a scan has found: each page of a result is told to page.c, and after a plain look over everything what it did not find is forgotten.
 * The same walk over all blocks queues them for restoring at run=2.
 *
 * Results are believed as far as they lie in the window that was asked for and in a range of the client. A scan that failed may have
 * protected pages without reporting them: all of its window counts as written then. */
#include "daemon/core/internal.h"

#include <errno.h>

struct scan_results {
        struct core *c;
        struct client *cl;
        const struct op *op;
        uint64_t time_usec;
        uint32_t block; /* under way */
        unsigned n_rewritten;
};

static void block_end(struct scan_results *s) {
        if (s->block != NIL && !s->op->is_plain && !s->op->is_request)
                heat_judge(s->c, s->cl, s->block, s->n_rewritten);
        s->block = NIL;
        s->n_rewritten = 0;
}

static void block_pages(struct scan_results *s, uint64_t number, uint64_t mask, const struct core_run *run) {
        uint32_t categories = run->categories;
        struct core *c = s->c;
        int nid = node_nid(c, s->op, run->node);
        uint32_t block = s->block;
        struct block *b;

        if (block == NIL || block_at(c, block)->number != number) {
                block_end(s);
                block = block_find(c, s->cl, number);
        }
        if (block == NIL && (categories & (CORE_FILE | CORE_ZERO)))
                return; /* nothing of ours, nothing to do */
        if (block == NIL) {
                if (memory_has_room(&c->memory, 0))
                        block = block_ensure(c, s->cl, number);
                if (block == NIL) {
                        s->cl->wants_look = true; /* finds it again */
                        return;
                }
        }
        s->block = block;
        b = block_at(c, block);
        if (b->look != s->cl->look) {
                b->look = s->cl->look;
                b->seen = 0;
        }
        b->seen |= mask;
        for (uint64_t m = mask; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);

                if (s->op->is_plain) {
                        page_seen(c, block, i, categories, s->time_usec);
                        if (s->cl->is_placing && nid >= 0)
                                page_placed(c, block, i, (unsigned) nid);
                        continue;
                }
                s->n_rewritten += record_state(b->page[i]) != PAGE_NONE;
                s->cl->n_rewritten += record_state(b->page[i]) != PAGE_NONE;
                s->cl->n_new += record_state(b->page[i]) == PAGE_NONE && !(categories & (CORE_FILE | CORE_ZERO));
                page_written(c, block, i, categories, s->time_usec);
        }
}

/* A piece of a result that lies in one range. */
static void pages_found(struct scan_results *s, uint64_t page, uint64_t end, const struct core_run *run) {
        while (page < end) {
                uint64_t stop = MIN(end, (page | (BLOCK_PAGES - 1)) + 1);
                uint64_t mask = (stop - page == BLOCK_PAGES ? UINT64_MAX : (UINT64_C(1) << (stop - page)) - 1)
                                << (page & (BLOCK_PAGES - 1));

                if (client_is_forgetting(s->cl, page, stop))
                        s->cl->wants_look = true;
                else
                        block_pages(s, page >> BLOCK_SHIFT, mask, run);
                page = stop;
        }
}

static void run_found(struct scan_results *s, struct core_run run) {
        uint64_t page = MAX(run.page, s->op->scan.page), end;

        if (__builtin_add_overflow(run.page, run.n_pages, &end))
                return;
        end = MIN(end, s->op->scan.page + s->op->scan.n_pages);
        while (page < end) {
                const struct range *r = range_find(s->cl, page);

                if (!r || r->start >= end)
                        return;
                if (!r->is_unmerged)
                        pages_found(s, MAX(page, r->start), MIN(end, r->end), &run);
                page = r->end;
        }
}

/* Of the pages with which the next runs begin the blocks, then the records, then what those hold: three misses one after the other for
 * all of them together instead of for each. */
static void fetch_runs(const struct scan_results *s, const struct core_run *runs, size_t n) {
        const struct domain *d = client_domain(s->c, s->cl);
        uint64_t numbers[FETCH_BLOCKS], hashes[FETCH_BLOCKS];
        const uint64_t *records[FETCH_BLOCKS];
        size_t n_records = 0, n_hashes = 0;

        for (size_t k = 0; k < n; k++)
                numbers[k] = runs[k].page >> BLOCK_SHIFT;
        blocks_fetch(s->c, s->cl, numbers, n);
        for (size_t k = 0; k < n; k++) {
                uint32_t block = block_find(s->c, s->cl, numbers[k]);

                if (block == NIL)
                        continue;
                records[n_records] = &block_at(s->c, block)->page[runs[k].page & (BLOCK_PAGES - 1)];
                __builtin_prefetch(records[n_records++]);
        }
        for (size_t k = 0; k < n_records; k++)
                if (record_state(*records[k]) == PAGE_UNSHARED)
                        hashes[n_hashes++] = record_hash(*records[k]);
                else if (record_state(*records[k]) == PAGE_MERGED)
                        __builtin_prefetch(extent_at(s->c, (uint32_t) record_payload(*records[k])));
        index_fetch(&d->index, hashes, n_hashes);
}

/* The kernel protects before it copies results out: after an error nothing is known of the window's writes. */
static void window_lost(struct scan_results *s) {
        uint64_t start = s->op->scan.page, end = start + s->op->scan.n_pages;
        struct walk w;
        uint32_t block;
        unsigned budget = UINT32_MAX;

        s->cl->wants_look = true;
        if (s->op->is_plain) {
                s->cl->claim_look = s->cl->look; /* it has not seen what it did not find: the next one judges */
                node_look_failed(s->c, s->cl);
                return;
        }
        walk_begin(s->cl, &w, start, end);
        while ((block = walk_next(s->c, s->cl, &w, &budget)) != NIL)
                for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                        uint64_t page = (block_at(s->c, block)->number << BLOCK_SHIFT) + i;
                        uint64_t r = block_at(s->c, block)->page[i];

                        if (page < start || page >= end || record_state(r) == PAGE_NONE)
                                continue;
                        /* Merged ones: the look will tell. */
                        if (record_state(r) != PAGE_MERGED && record_state(r) != PAGE_ZEROED)
                                page_written(s->c, block, i, CORE_WRITTEN, s->time_usec);
                }
}

void core_scan_done(struct core *c, uint64_t id, uint64_t now_usec, const struct core_run *runs, size_t n_runs,
                    uint64_t end_page, int error) {
        struct op *op = op_get(c, id, OP_SCAN);
        struct client *cl = op ? op_client(c, op) : NULL;
        struct scan_results s = { .c = c, .cl = cl, .op = op, .block = NIL };
        uint64_t end;

        if (!op)
                return;
        if (!cl) {
                op_free(c, op);
                return;
        }
        cl->is_scanning = false;
        end = op->scan.page + op->scan.n_pages;
        /* The pass's beginning stands for all of it, so that a settle time of one pass is one pass; a request is more exact. */
        s.time_usec = op->is_request || client_merging_now(cl) ? op->scan.from_usec : cl->pass_usec;
        if (error < 0)
                window_lost(&s);
        for (size_t i = 0; error == 0 && i < n_runs; i++) {
                if (i % FETCH_BLOCKS == 0)
                        fetch_runs(&s, runs + i, MIN(n_runs - i, (size_t) FETCH_BLOCKS));
                run_found(&s, runs[i]);
        }
        block_end(&s);
        /* A scan that got nowhere must not be repeated for ever. */
        if (error < 0 || end_page <= op->scan.page || end_page > end)
                end_page = end;
        if (!op->is_request)
                cl->cursor = end_page;
        else if (client_merging_now(cl))
                cl->requests->cursor = end_page;
        scan_window_took(cl, op, now_usec, end_page == end ? n_runs : SCAN_MAX_RUNS);
        op_free(c, op);
        scan_schedule(c, cl, error == -ESRCH ? now_usec + usec_of_ms(c->tunables.pass_millisecs) : 0);
}

/* -- after a look, and at run=2 ----------------------------------------------------------------------------------------- */

static bool is_private(enum page_state s) {
        switch (s) {
        case PAGE_FRESH:
        case PAGE_HASHED:
        case PAGE_UNSHARED:
        case PAGE_PARTNER:
        case PAGE_MATCHED:
        case PAGE_ZEROABLE:
                return true;
        default:
                return false;
        }
}

static void sweep_block(struct core *c, struct client *cl, uint32_t block) {
        struct block *b = block_at(c, block);
        uint64_t seen = b->look == cl->look ? b->seen : 0;
        bool is_judging = b->flags & BLOCK_CLAIMED && cl->claim_look != cl->look; /* the look began after the claims */

        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                uint64_t r = b->page[i];

                if (!(seen >> i & 1) && is_private(record_state(r)))
                        page_set(c, block, i, record(PAGE_NONE, 0, 0));
                else if (is_judging && !(seen >> i & 1) && record_state(r) == PAGE_MERGED)
                        page_gone(c, block, i, false);
                /* What was at rest since the last look has made up for a failure. */
                else if (record_fails(r) > 0 && (record_state(r) == PAGE_MERGED || record_state(r) == PAGE_UNSHARED))
                        page_mark(c, block, i, r - record(0, 1, 0));
        }
        if (is_judging)
                b->flags &= (uint16_t) ~BLOCK_CLAIMED;
        restore_judge(c, block);
        block_free_if_idle(c, block);
}

void found_sweep_step(struct core *c, struct client *cl, unsigned *budget) {
        uint32_t block;

        while ((block = walk_next(c, cl, &cl->sweep, budget)) != NIL) {
                if (!c->is_unmerging) {
                        sweep_block(c, cl, block);
                        continue;
                }
                block_at(c, block)->flags |= BLOCK_RESTORE;
                if (block_at(c, block)->flags & BLOCK_LATER)
                        later_hurry(c, cl);
                block_queue_apply(c, block);
        }
        if (cl->sweep.is_active)
                job_add(c, cl);
}
