/* Passes: when and where a client's memory is looked at.
 *
 * A pass walks the client's ranges in windows, one in flight; a window may hold several ranges. It costs page-table walking for what is quiet and a visit
 * for what was written. Blocks of which more than a quarter was written again are hot: they are left out of 1, 3, 7, ... 63
 * passes (skip lists, in address order, read and rebuilt as the pass goes), so that they are not write-protected all the
 * time; with smart_scan 0 none is left out. Every 16th pass, or when something is uncertain, a plain look over everything follows the pass: what was known
 * and is no longer present is forgotten, what is present and unknown becomes known. Some looks ask for nodes, too (node.c). */
#include "common/probes.h"
#include "daemon/core/internal.h"

#include <errno.h>

#define SCAN_MAX_RUNS 1024
#define HOT_PAGES (BLOCK_PAGES / 4)
#define HOT_AGE_MAX 6
#define LOOK_PASSES 16
/* A pass has news when one page in so many of the process was not known. So many that follow then come after such a part of the period: until
 * the news have settled, by the defaults, and their short runs, which wait for two passes, have gone. But a pass over all that is known takes
 * 2 to 30 ns a page (daemon/sys/pagemap.c), and should not take more than a tenth of the time. */
#define NEWS_DIVISOR 8
#define NEWS_PASSES 8
#define NEWS_HASTE 4
#define NEWS_PAGES_A_USEC 4
/* A window should take a worker about this long. The kernel holds the process's mmap_lock for all of it; whoever wants to change mappings
 * waits, and with an agent that does so in a transition the accesses that wait for that. */
#define WINDOW_SHORT_USEC 500
#define WINDOW_LONG_USEC 2000
#define WINDOW_MIN_PAGES (UINT64_C(1) << 12)
#define WINDOW_MAX_PAGES (UINT64_C(1) << 40)
/* Asked first which pages are not protected (daemon/sys/pagemap.c), the kernel saves so much for each private page that is, and walks each
 * mapping once more (measured: docs/kernel.md). */
#define PRIVATE_SAVES_NSEC 30
#define MAPPING_COSTS_NSEC 500

void scan_schedule(struct core *c, struct client *cl, uint64_t at_usec) {
        if (!cl->is_parked && !cl->is_scanning)
                timer_set(c, cl, TIMER_SCAN, at_usec);
}

bool scan_is_unmerged(const struct client *cl, uint64_t page) {
        const struct range *r = range_find(cl, page);

        return !r || r->start > page || r->is_unmerged;
}

/* -- hot blocks ------------------------------------------------------------------------------------------------------- */

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

/* Shortens the window so that it holds no hot block that is not due; true when it became empty (*page is past it). */
static bool skip_hot(struct core *c, struct client *cl, uint64_t *page, uint64_t *end) {
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

static void judge_heat(struct core *c, struct client *cl, uint32_t block, unsigned n_rewritten) {
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

/* -- the pass ---------------------------------------------------------------------------------------------------------- */

static void full_scan_begin(struct core *c) {
        if (c->in_full_scan)
                return;
        c->in_full_scan = true;
        probe_ksm_start_scan((uint64_t) c->counters.full_scans, states_tracked(c->states));
}

static void pass_begin(struct core *c, struct client *cl, uint64_t now_usec) {
        if (cl->in_epoch)
                full_scan_begin(c);
        cl->in_pass = true;
        cl->is_looking = false;
        cl->pass++;
        cl->pass_usec = now_usec;
        cl->cursor = 0;
        cl->n_rewritten = cl->n_new = 0;
        cl->skips[cl->pass & 1].next = 0;
        cl->skips[~cl->pass & 1].n = 0;
}

static void queue_splice(struct core *c, struct block_queue *to, struct block_queue *from) {
        if (from->head == NIL)
                return;
        if (to->head == NIL)
                to->head = from->head;
        else
                block_at(c, to->tail)->read_next = from->head;
        to->tail = from->tail;
        *from = (struct block_queue){ NIL, NIL };
}

/* full_scans: of every client that passes walk a pass has ended since it last went up, and what had settled then has been read (or its
 * reading handed out). */
static void epoch_count(struct core *c, struct client *cl, uint64_t now_usec) {
        c->n_epoch_counted += !cl->has_counted;
        cl->has_counted = true;
        if (c->n_epoch_counted < c->n_epoch_clients)
                return;
        full_scan_begin(c); /* it may be all of passes that were under way when the one before ended, after clients have left */
        probe_ksm_stop_scan((uint64_t) c->counters.full_scans, states_tracked(c->states));
        c->in_full_scan = false;
        c->counters.full_scans++;
        c->n_epoch_counted = 0;
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1))
                client_at(c, i)->has_counted = false;
        advisor_scan_ends(c, now_usec);
        pace_scan_ends(c, now_usec);
        round_scan_ended(c, now_usec);
}

/* The queue of blocks to read is in the order in which they came: all that are in it now have been read when its last has. */
static void epoch_end_of_pass(struct core *c, struct client *cl, uint64_t now_usec) {
        if (!cl->in_epoch || cl->scan_mark != NIL)
                return;
        if (cl->ready.head != NIL && !cl->has_counted)
                cl->scan_mark = cl->ready.tail;
        else
                epoch_count(c, cl, now_usec);
}

void scan_was_read(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec) {
        if (block != cl->scan_mark)
                return;
        cl->scan_mark = NIL;
        if (cl->in_epoch)
                epoch_count(c, cl, now_usec);
}

void scan_epoch_update(struct core *c, struct client *cl) {
        bool is_walked = cl->n_ranges > 0 && !cl->is_parked && !cl->is_gone;

        if (is_walked == cl->in_epoch)
                return;
        cl->in_epoch = is_walked;
        c->n_epoch_clients += is_walked ? 1U : -1U;
        c->n_epoch_counted -= cl->has_counted;
        cl->has_counted = false;
        cl->scan_mark = NIL;
        pace_rewrites(c, cl, 0);
}

/* The tracking scan is complete: what it did not report was not written for a pass. */
static void pass_settle(struct core *c, struct client *cl, uint64_t now_usec) {
        struct skip_list *l = &cl->skips[cl->pass & 1];

        for (; l->next < l->n; l->next++) /* behind the last range */
                skip_ended(c, cl, l->items[l->next]);
        cl->last_pass_usec = cl->pass_usec;
        queue_splice(c, &cl->ready, &cl->waiting);
        if (cl->ready.head != NIL)
                turn_add(c, cl, TURN_READ);
        for (unsigned k = 0; k < SHORT_BUCKETS; k++)
                if (cl->shorts[k].head != NIL)
                        turn_add(c, cl, TURN_APPLY);
        c->counters.pages_skipped += (int64_t) cl->states[PAGE_UNSHARED] + cl->states[PAGE_MERGED];
        epoch_end_of_pass(c, cl, now_usec);
}

/* False: the pass is over. */
static bool pass_window(struct core *c, struct client *cl, uint64_t *ret_page, uint64_t *ret_end) {
        for (;;) {
                const struct range *r = range_find(cl, cl->cursor);

                if (!r)
                        return false;
                if (r->is_unmerged) {
                        cl->cursor = r->end;
                        continue;
                }
                *ret_page = MAX(cl->cursor, r->start);
                *ret_end = MIN(r->end, *ret_page + cl->window_pages);
                if (cl->is_looking || !skip_hot(c, cl, ret_page, ret_end))
                        return true;
                cl->cursor = *ret_page;
        }
}

/* A window that ends with its range goes on with the next ones, as long as there is room for all that it walks: a job has its price,
 * 40 us, and many programs have hundreds of ranges. Not past a hot block, which the next window leaves out, nor a range that is
 * not merged. */
static void window_extend(const struct client *cl, struct core_scan *scan) {
        const struct skip_list *l = &cl->skips[cl->pass & 1];
        uint64_t hot = cl->is_looking || l->next == l->n ? UINT64_MAX : l->items[l->next].number << BLOCK_SHIFT;
        uint64_t left = cl->window_pages - MIN(scan->n_pages, cl->window_pages);

        while (scan->n_gaps < CORE_SCAN_GAPS && left > 0) {
                uint64_t at = scan->page + scan->n_pages, end;
                const struct range *r = range_find(cl, at);

                if (!r || r->start <= at || r->is_unmerged)
                        return;
                end = MIN(r->end, r->start + left);
                if (end > hot)
                        return;
                scan->gaps[scan->n_gaps++] = (struct core_scan_gap){ at, r->start - at };
                scan->n_pages = end - scan->page;
                left -= end - r->start;
        }
}

static uint64_t pages_walked(const struct core_scan *scan) {
        uint64_t n = scan->n_pages;

        for (uint32_t i = 0; i < scan->n_gaps; i++)
                n -= scan->gaps[i].n_pages;
        return n;
}

/* Much that is new, as of a process that has just come, does not wait for whole periods. */
static uint64_t period_usec(const struct core *c, const struct client *cl) {
        uint64_t pass = pace_usec(c, c->tunables.pass_millisecs), soon;

        soon = MAX(pass / NEWS_HASTE, states_tracked(c->states) / NEWS_PAGES_A_USEC);
        return cl->n_soon > 0 ? MIN(pass, soon) : pass;
}

static uint64_t pass_due_usec(const struct core *c, const struct client *cl) {
        if (cl->pass_usec == 0)
                return 0;
        return cl->pass_usec + MAX(pace_spare_usec(c, cl), period_usec(c, cl));
}

void scan_hurry(struct core *c, struct client *cl) {
        if (!cl->in_pass && cl->n_ranges > 0)
                scan_schedule(c, cl, pass_due_usec(c, cl));
}

static bool pass_next(struct core *c, struct client *cl, uint64_t now_usec, uint64_t *ret_page, uint64_t *ret_end) {
        if (!cl->in_pass) {
                if (cl->n_ranges == 0 || c->pace == CORE_PACE_REST)
                        return false;
                if (now_usec < pass_due_usec(c, cl)) {
                        scan_hurry(c, cl);
                        return false;
                }
                pass_begin(c, cl, now_usec);
        }
        if (pass_window(c, cl, ret_page, ret_end))
                return true;
        if (!cl->is_looking) {
                pass_settle(c, cl, now_usec);
                if ((cl->wants_look || cl->pass % LOOK_PASSES == 0 || node_wants_look(c, cl, now_usec)) && !cl->sweep.is_active) {
                        cl->wants_look = false;
                        node_look_begins(c, cl, now_usec);
                        cl->is_looking = true;
                        cl->look++;
                        cl->cursor = 0;
                        if (pass_window(c, cl, ret_page, ret_end))
                                return true;
                }
        }
        if (cl->is_looking) {
                walk_begin(cl, &cl->sweep, 0, UINT64_MAX);
                job_add(c, cl);
        }
        cl->in_pass = cl->is_looking = false;
        if (cl->n_new > states_tracked(cl->states) / NEWS_DIVISOR)
                cl->n_soon = NEWS_PASSES;
        else
                cl->n_soon -= cl->n_soon > 0;
        pace_rewrites(c, cl, cl->in_epoch ? cl->n_rewritten : 0);
        scan_schedule(c, cl, MAX(pass_due_usec(c, cl), now_usec + 1));
        return false;
}

static bool expects_few(const struct client *cl) {
        uint64_t n_private = states_tracked(cl->states) - cl->states[PAGE_MERGED] - cl->states[PAGE_ZEROED];

        return n_private * PRIVATE_SAVES_NSEC > (cl->n_vmas + (uint64_t) MAX(cl->vmas_used, INT64_C(0))) * MAPPING_COSTS_NSEC;
}

static bool scan_build(struct core *c, struct client *cl, uint64_t now_usec, struct core_scan *ret) {
        uint64_t page, end;
        struct op *op;
        bool is_request = request_scan_window(c, cl, now_usec, &page, &end);

        if (!is_request && !pass_next(c, cl, now_usec, &page, &end))
                return false;
        op = op_new(c, OP_SCAN, cl);
        if (!op) {
                scan_schedule(c, cl, now_usec + usec_of_ms(c->tunables.pass_millisecs));
                return false;
        }
        op->is_request = is_request;
        op->is_plain = !is_request && cl->is_looking;
        op->wants_nodes = nodes_matter(c);
        cl->is_scanning = true;
        *ret = (struct core_scan){
                .op = op->id,
                .client = cl->id,
                .page = page,
                .n_pages = end - page,
                .max_runs = SCAN_MAX_RUNS,
                .rewrite_protect = !op->is_plain,
                .expects_few = !op->is_plain && expects_few(cl),
                .wants_nodes = op->wants_nodes && op->is_plain && cl->is_placing,
        };
        if (!is_request)
                window_extend(cl, ret);
        op->scan.page = page;
        op->scan.n_pages = ret->n_pages;
        op->scan.n_walked = pages_walked(ret);
        op->scan.from_usec = now_usec;
        return true;
}

bool core_next_scan(struct core *c, uint64_t now_usec, struct core_scan *ret, uint64_t *ret_next_usec) {
        enum { TRIES = 64 };

        *ret_next_usec = UINT64_MAX;
        if (c->tunables.run != 1)
                return false;
        for (unsigned n = 0; n < TRIES; n++) {
                struct client *cl = timer_head(c, TIMER_SCAN, ret_next_usec);

                if (!cl || *ret_next_usec > now_usec)
                        return false;
                timer_clear(c, cl, TIMER_SCAN);
                *ret_next_usec = now_usec;
                if (scan_build(c, cl, now_usec, ret))
                        return true;
        }
        return false;
}

/* -- results ------------------------------------------------------------------------------------------------------------ */

struct scan_results {
        struct core *c;
        struct client *cl;
        const struct op *op;
        uint64_t time_usec;
        uint32_t block; /* under way */
        unsigned n_rewritten;
};

static void block_end(struct scan_results *s) {
        if (s->block != NIL && !s->op->is_plain && !s->op->is_request &&
            (s->n_rewritten > HOT_PAGES || block_at(s->c, s->block)->age > 0))
                judge_heat(s->c, s->cl, s->block, s->n_rewritten);
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

static void adapt_window(struct client *cl, const struct op *op, uint64_t now_usec, bool is_whole) {
        uint64_t took = now_usec - op->scan.from_usec;

        if (took > WINDOW_LONG_USEC)
                cl->window_pages = MAX(cl->window_pages / 2, WINDOW_MIN_PAGES);
        else if (took < WINDOW_SHORT_USEC && is_whole && op->scan.n_walked == cl->window_pages)
                cl->window_pages = MIN(cl->window_pages * 2, WINDOW_MAX_PAGES);
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
        adapt_window(cl, op, now_usec, end_page == end && n_runs < SCAN_MAX_RUNS / 8);
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

void scan_sweep_step(struct core *c, struct client *cl, unsigned *budget) {
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
