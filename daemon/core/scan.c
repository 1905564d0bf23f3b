/* Passes: when and where a client's memory is looked at.
 *
 * A pass walks the client's ranges in windows, one in flight; a window may hold several ranges. It costs page-table walking for what is quiet
 * and a visit for what was written; hot blocks are left out of most passes (heat.c). Every 16th pass, or when something is uncertain, a plain
 * look over everything follows the pass: what was known and is no longer present is forgotten, what is present and unknown becomes known
 * (found.c). Some looks ask for nodes, too (node.c). */
#include "common/probes.h"
#include "daemon/core/internal.h"

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
        heat_pass_begins(cl);
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
        heat_pass_ends(c, cl);
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
                if (cl->is_looking || !heat_skip(c, cl, ret_page, ret_end))
                        return true;
                cl->cursor = *ret_page;
        }
}

/* A window that ends with its range goes on with the next ones, as long as there is room for all that it walks: a job has its price,
 * 40 us, and many programs have hundreds of ranges. Not past a hot block, which the next window leaves out, nor a range that is
 * not merged. */
static void window_extend(const struct client *cl, struct core_scan *scan) {
        uint64_t hot = cl->is_looking ? UINT64_MAX : heat_next(cl);
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
void scan_window_took(struct client *cl, const struct op *op, uint64_t now_usec, size_t n_runs) {
        uint64_t took = now_usec - op->scan.from_usec;
        bool is_whole = n_runs < SCAN_MAX_RUNS / 8;

        if (took > WINDOW_LONG_USEC)
                cl->window_pages = MAX(cl->window_pages / 2, WINDOW_MIN_PAGES);
        else if (took < WINDOW_SHORT_USEC && is_whole && op->scan.n_walked == cl->window_pages)
                cl->window_pages = MIN(cl->window_pages * 2, WINDOW_MAX_PAGES);
}

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
