/* Planning transitions, and what became of them. A block has at most one apply in flight; what its pages are to become is
 * in their records, so the plan is made when the op is handed out, from whole runs. */
#include "daemon/core/internal.h"

#include <errno.h>

#define LONG_RUN 8
#define SHORT_WAIT_PASSES 2
#define STAMP_MASK ((1U << (32 - ID_INDEX_BITS)) - 1)
#define BUSY_FIRST_USEC 2000
#define BUSY_MAX_DOUBLINGS 6
/* After so many refusals in a row the pages go back to the end of the queue by settling again. */
#define BUSY_TRIES_MAX 12

void apply_wake_due(struct core *c, uint64_t now_usec) {
        uint64_t at_usec;
        struct client *cl;

        while ((cl = timer_head(c, TIMER_WAKE, &at_usec)) && at_usec <= now_usec) {
                timer_clear(c, cl, TIMER_WAKE);
                turn_add(c, cl, TURN_APPLY);
                turn_add(c, cl, TURN_PUBLISH);
                later_wake(c, cl, now_usec);
                restore_wake(c, cl, now_usec);
        }
}

/* Short runs wait for company, the longer ones in front when the budget is spent. */
void block_queue_short(struct core *c, uint32_t block, unsigned longest) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);

        if (b->flags & (BLOCK_APPLY | BLOCK_SHORT | BLOCK_LATER))
                return;
        b->stamp = cl->pass & STAMP_MASK;
        block_push(c, &cl->shorts[MIN(longest, SHORT_BUCKETS - 1U)], block, BLOCK_SHORT);
}

static uint32_t pop_short(struct core *c, struct client *cl) {
        bool at_once = client_merging_now(cl) || client_unmerging(c, cl);

        for (unsigned k = SHORT_BUCKETS; k-- > 0;) {
                uint32_t block = cl->shorts[k].head;

                if (block == NIL || (!at_once && ((cl->pass - block_at(c, block)->stamp) & STAMP_MASK) < SHORT_WAIT_PASSES))
                        continue;
                (void) block_pop(c, &cl->shorts[k], BLOCK_SHORT);
                block_at(c, block)->flags |= BLOCK_SHORT_DUE;
                return block;
        }
        return NIL;
}

/* -- plans ------------------------------------------------------------------------------------------------------------ */

struct plan {
        struct core *c;
        struct client *cl;
        uint32_t block;
        uint64_t now_usec;
        enum core_apply_kind kind;
        uint64_t mask;
        uint32_t n_vmas;
};

static bool has_state(const struct block *b, enum page_state s) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (record_state(b->page[i]) == s)
                        return true;
        return false;
}

static bool plan_restore(struct plan *p) {
        struct block *b = block_at(p->c, p->block);

        p->kind = CORE_APPLY_RESTORE;
        p->mask = restore_pages(p->c, b);
        b->flags &= (uint16_t) ~(BLOCK_RAGGED | BLOCK_DOUBTFUL);
        return p->mask;
}

static bool are_neighbours(const struct domain *d, uint32_t a, uint32_t b) {
        return a != NIL && b == a + 1 && segment_of(d, a) == segment_of(d, b);
}

/* Length of the run of matched pages with consecutive slots that begins at i. */
static unsigned run_length(const struct plan *p, unsigned i) {
        const struct domain *d = client_domain(p->c, p->cl);
        const struct block *b = block_at(p->c, p->block);
        unsigned n = 1;

        while (i + n < BLOCK_PAGES && record_state(b->page[i + n]) == PAGE_MATCHED &&
               are_neighbours(d, page_slot(p->c, b, i + n - 1), page_slot(p->c, b, i + n)))
                n++;
        return n;
}

static void run_refused(struct plan *p, unsigned i, unsigned n) {
        for (unsigned k = i; k < i + n; k++)
                page_fresh(p->c, p->block, k, more_fails(record_fails(block_at(p->c, p->block)->page[k]), 1), p->now_usec);
        p->c->counters.failed_budget += n;
}

/* The run's pages go into the plan, if there are VMAs for it, and memory for its place in the books; else they settle again. */
static void run_planned(struct plan *p, unsigned i, unsigned n, int cost, enum page_state state) {
        struct core *c = p->c;
        const struct block *b = block_at(c, p->block);
        uint32_t more = cost > 0 ? (uint32_t) cost : 0;

        if (more > 0 && (p->cl->budget_usec > p->now_usec || !client_has_vmas(c, p->cl, p->n_vmas + more, n >= LONG_RUN) ||
                         !memory_has_reserve(&c->memory, 0))) {
                run_refused(p, i, n);
                return;
        }
        p->n_vmas += more;
        for (unsigned k = i; k < i + n; k++) {
                p->mask |= UINT64_C(1) << k;
                page_mark(c, p->block, k, record(state, record_fails(b->page[k]), record_payload(b->page[k])));
        }
}

/* Zeros become a hole. In anonymous memory that costs nothing, in the middle of a mapping it cuts it. */
static bool plan_zero(struct plan *p) {
        struct block *b = block_at(p->c, p->block);

        p->kind = CORE_APPLY_ZERO;
        for (unsigned i = 0, n; i < BLOCK_PAGES; i += n) {
                for (n = 0; i + n < BLOCK_PAGES && record_state(b->page[i + n]) == PAGE_ZEROABLE; n++)
                        ;
                if (n > 0)
                        run_planned(p, i, n, extent_vma_cost(p->c, b, i, n, NIL), PAGE_ZEROING);
                n = MAX(n, 1U);
        }
        return p->mask;
}

static bool plan_merge(struct plan *p) {
        struct core *c = p->c;
        struct block *b = block_at(c, p->block);
        bool is_due = b->flags & BLOCK_SHORT_DUE || client_merging_now(p->cl);
        unsigned longest_short = 0;

        p->kind = CORE_APPLY_MERGE;
        for (unsigned i = 0, n; i < BLOCK_PAGES; i += n) {
                int cost;

                n = 1;
                if (record_state(b->page[i]) != PAGE_MATCHED)
                        continue;
                n = run_length(p, i);
                cost = extent_vma_cost(c, b, i, n, page_slot(c, b, i));
                if (n < LONG_RUN && cost > 0 && !is_due)
                        longest_short = MAX(longest_short, n);
                else
                        run_planned(p, i, n, cost, PAGE_MERGING);
        }
        /* Pages that found an equal in short runs wait in the same queue, for the publish. */
        if (!is_due && has_state(b, PAGE_HASHED))
                longest_short = MAX(longest_short, 1U);
        if (longest_short > 0)
                block_queue_short(c, p->block, longest_short);
        return p->mask;
}

static void fill_extents(const struct plan *p, struct core_apply *ret) {
        const struct domain *d = client_domain(p->c, p->cl);
        const struct block *b = block_at(p->c, p->block);
        struct core_extent *e = NULL;

        ret->n_extents = 0;
        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                uint32_t slot = p->kind == CORE_APPLY_MERGE ? page_slot(p->c, b, i) : NIL;

                if (!(p->mask >> i & 1)) {
                        e = NULL;
                        continue;
                }
                if (e && (slot == NIL || are_neighbours(d, page_slot(p->c, b, i - 1), slot))) {
                        e->n_pages++;
                        continue;
                }
                e = &ret->extents[ret->n_extents++];
                *e = (struct core_extent){ .page = (b->number << BLOCK_SHIFT) + i, .n_pages = 1 };
                if (slot != NIL) {
                        e->segment = segment_of(d, slot)->id;
                        e->slot = slot - segment_of(d, slot)->base;
                }
        }
}

/* Not merging now, and the block has left its queue: what waited there for a transition or a publish settles again, lest
 * it waits for ever. It lets go of its slots, too. */
static void drop_planned(struct plan *p) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                uint64_t r = block_at(p->c, p->block)->page[i];
                enum page_state s = record_state(r);

                if (s == PAGE_MATCHED || s == PAGE_ZEROABLE || s == PAGE_HASHED)
                        page_fresh(p->c, p->block, i, record_fails(r), p->now_usec);
        }
}

/* Restores first: they give VMAs back. Merges last, when all of the block that can be published is. */
static bool plan_block(struct plan *p) {
        struct core *c = p->c;
        struct block *b = block_at(c, p->block);

        if (b->flags & BLOCK_BUSY)
                return false; /* comes back with the answer */
        if (b->flags & (BLOCK_RESTORE | BLOCK_RAGGED) && plan_restore(p))
                return true;
        if (b->flags & BLOCK_RESTORE) {
                b->flags &= (uint16_t) ~BLOCK_RESTORE;
                if (b->flags & BLOCK_UNMERGE)
                        request_unmerged(c, p->cl, 0, 0, true);
                b->flags &= (uint16_t) ~BLOCK_UNMERGE;
        }
        if (c->tunables.run != 1) {
                drop_planned(p);
                return false;
        }
        if (has_state(b, PAGE_ZEROABLE) && plan_zero(p))
                return true;
        if (b->flags & (BLOCK_PUBLISH | BLOCK_PUBLISHING))
                return false; /* comes back when that is done */
        if (b->flags & BLOCK_SHORT_DUE && has_state(b, PAGE_HASHED)) {
                block_queue_publish(c, p->block);
                return false;
        }
        return plan_merge(p);
}

static bool apply_build(struct core *c, struct client *cl, uint32_t block, uint64_t now_usec, struct core_apply *ret) {
        struct plan p = { .c = c, .cl = cl, .block = block, .now_usec = now_usec };
        struct op *op = op_new(c, OP_APPLY, cl);

        if (!op) {
                block_queue_apply(c, block);
                return false;
        }
        if (!plan_block(&p)) {
                struct block *b = block_at(c, block);

                op_free(c, op);
                /* A due one with nothing left to do is an ordinary block again. */
                if (!(b->flags & (BLOCK_PUBLISH | BLOCK_PUBLISHING | BLOCK_BUSY)))
                        b->flags &= (uint16_t) ~BLOCK_SHORT_DUE;
                block_free_if_idle(c, block);
                return false;
        }
        fill_extents(&p, ret);
        block_at(c, block)->flags |= BLOCK_BUSY;
        cl->n_applies++;
        cl->vmas_pending += p.n_vmas;
        op->apply_kind = (uint8_t) p.kind;
        op->is_request = block_at(c, block)->flags & BLOCK_RESTORE;
        op->apply.mask = p.mask;
        op->apply.block = block;
        op->apply.n_vmas = p.n_vmas;
        ret->op = op->id;
        ret->client = cl->id;
        ret->kind = p.kind;
        return true;
}

bool core_next_apply(struct core *c, uint64_t now_usec, uint32_t window, struct core_apply *ret,
                     uint64_t *ret_next_usec) {
        enum { VISITS = 512 };

        apply_wake_due(c, now_usec);
        (void) timer_head(c, TIMER_WAKE, ret_next_usec);
        for (unsigned n = 0; n < VISITS; n++) {
                struct client *cl = turn_head(c, TURN_APPLY);
                uint32_t block;

                if (!cl)
                        return false;
                /* Stopped: only an unmerge that was asked for goes on. */
                if (c->tunables.run == 0 && !client_unmerging(c, cl)) {
                        turn_drop(c, TURN_APPLY);
                        continue;
                }
                if (cl->busy_usec > now_usec) {
                        timer_set(c, cl, TIMER_WAKE, cl->busy_usec);
                        (void) timer_head(c, TIMER_WAKE, ret_next_usec);
                }
                if (cl->n_applies >= window || cl->busy_usec > now_usec) {
                        turn_drop(c, TURN_APPLY);
                        continue;
                }
                block = block_pop(c, &cl->apply, BLOCK_APPLY);
                if (block == NIL)
                        block = pop_short(c, cl);
                if (block == NIL)
                        block = later_pop(c, cl);
                if (block == NIL) {
                        turn_drop(c, TURN_APPLY);
                        if (cl->requests)
                                job_add(c, cl);
                        continue;
                }
                if (!apply_build(c, cl, block, now_usec, ret))
                        continue;
                turn_spend(c, TURN_APPLY, BLOCK_PAGES);
                *ret_next_usec = now_usec;
                return true;
        }
        *ret_next_usec = now_usec;
        return false;
}

/* -- answers ------------------------------------------------------------------------------------------------------------ */

struct answer {
        struct core *c;
        struct client *cl;
        uint32_t block;
        uint64_t now_usec;
        bool is_restore, was_busy, was_budget, was_later;
        uint64_t n_done, n_left, n_busy;
};

static void page_failed(struct answer *a, unsigned i, enum core_apply_status status) {
        struct counters *n = &a->c->counters;
        uint64_t r = block_at(a->c, a->block)->page[i];
        unsigned more = 1;

        switch (status) {
        case CORE_CHANGED:
                n->failed_changed++;
                break;
        case CORE_PINNED_OR_FORKED:
                n->failed_pinned_or_forked++;
                break;
        case CORE_VMA_GONE:
                n->failed_vma_gone++;
                page_set(a->c, a->block, i, record(PAGE_NONE, 0, 0));
                extent_leave(a->c, a->block, i);
                return;
        case CORE_BUDGET:
                n->failed_budget++;
                a->was_budget = true;
                break;
        default:
                n->failed_error++;
                more = 2;
        }
        page_fresh(a->c, a->block, i, more_fails(record_fails(r), more), a->now_usec);
}

static void page_merged(struct answer *a, unsigned i) {
        struct core *c = a->c;
        uint64_t r = block_at(c, a->block)->page[i];

        if (record_state(r) == PAGE_ZEROING) {
                page_set(c, a->block, i, record(PAGE_ZEROED, 0, 0));
                extent_leave(c, a->block, i);
        } else if (extent_add(c, a->block, i, (uint32_t) record_payload(r), record_fails(r)) < 0) {
                page_set(c, a->block, i, record(PAGE_FOREIGN, 0, 0)); /* no memory: it is merged, but nobody counts it */
                extent_leave(c, a->block, i);
        }
        c->counters.merges++;
        a->n_done++;
}

/* A range that went before the answer came, and is back: the agent says what it does in order, so the answer is about the
 * new mapping. */
static bool is_registered(const struct answer *a, unsigned i) {
        uint64_t page = (block_at(a->c, a->block)->number << BLOCK_SHIFT) + i;
        const struct range *range = range_find(a->cl, page);

        return range && range->start <= page;
}

static void answer_merge(struct answer *a, unsigned i, enum core_apply_status status) {
        uint64_t r = block_at(a->c, a->block)->page[i];
        enum page_state s = record_state(r);

        if (s != PAGE_MERGING && s != PAGE_ZEROING)
                return;
        if (!is_registered(a, i)) {
                page_set(a->c, a->block, i, record(PAGE_NONE, 0, 0));
        } else if (status == CORE_OK) {
                page_merged(a, i);
        } else if (status == CORE_BUSY || status == CORE_LATER) {
                a->was_busy |= status == CORE_BUSY;
                a->was_later |= status == CORE_LATER;
                page_mark(a->c, a->block, i,
                          (r & ~UINT64_C(15)) | (s == PAGE_MERGING ? PAGE_MATCHED : PAGE_ZEROABLE));
        } else {
                page_failed(a, i, status);
        }
}

static void answer_restore(struct answer *a, unsigned i, enum core_apply_status status) {
        struct core *c = a->c;
        struct block *b = block_at(c, a->block);
        uint64_t r = b->page[i];
        bool was_merged = record_state(r) == PAGE_MERGED;

        if (extent_find(c, b, i) == NIL)
                return; /* its range went meanwhile */
        if (status == CORE_BUSY) {
                a->was_busy = true;
                a->n_busy++;
        } else if (status == CORE_LATER && !(b->flags & BLOCK_UNMERGE)) { /* an unmerge has an end: it leaves them */
                a->was_later = true;
        } else if (status == CORE_OK || status == CORE_VMA_GONE) {
                c->counters.unshares += was_merged;
                a->n_done += status == CORE_OK;
                if (was_merged || status == CORE_VMA_GONE)
                        page_set(c, a->block, i, record(PAGE_NONE, 0, 0));
                extent_leave(c, a->block, i);
                if (was_merged && status == CORE_OK && !scan_is_unmerged(a->cl, (b->number << BLOCK_SHIFT) + i))
                        page_fresh(c, a->block, i, record_fails(r), a->now_usec);
        } else {
                a->n_left++;
        }
}

/* The program is changing its mappings: soon again, later each time, and at some point not at all. True: again. */
static bool client_busy(struct answer *a) {
        struct client *cl = a->cl;
        struct block *b = block_at(a->c, a->block);

        if (!a->was_busy) {
                cl->busy_tries = 0;
                return false;
        }
        cl->busy_usec = a->now_usec + ((uint64_t) BUSY_FIRST_USEC << MIN(cl->busy_tries, (unsigned) BUSY_MAX_DOUBLINGS));
        timer_set(a->c, cl, TIMER_WAKE, cl->busy_usec);
        if (++cl->busy_tries < BUSY_TRIES_MAX)
                return true;
        cl->busy_tries = 0;
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (record_state(b->page[i]) == PAGE_MATCHED || record_state(b->page[i]) == PAGE_ZEROABLE)
                        page_fresh(a->c, a->block, i, more_fails(record_fails(b->page[i]), 1), a->now_usec);
        return false;
}

/* An unmerge of the block ends with the plan that finds nothing more to restore, or here when something was refused; but not by
 * the answer to a restore that was planned before the unmerge came. */
static void end_of_restore(struct answer *a, bool is_again, bool was_asked) {
        struct block *b = block_at(a->c, a->block);
        uint64_t left = is_again ? 0 : a->n_left + a->n_busy;
        bool is_end = left > 0 && was_asked;

        if (is_again || a->was_later)
                b->flags |= BLOCK_RAGGED; /* if that is why */
        if (left > 0)
                restore_refused(a->c, a->block, a->now_usec);
        if (b->flags & BLOCK_UNMERGE)
                request_unmerged(a->c, a->cl, a->n_done, is_end ? left : 0, is_end);
        if (is_end)
                b->flags &= (uint16_t) ~(BLOCK_RESTORE | BLOCK_UNMERGE);
}

static void block_answered(struct answer *a) {
        struct core *c = a->c;
        struct block *b = block_at(c, a->block);

        b->flags &= (uint16_t) ~BLOCK_BUSY;
        /* What the answer was not about, and needs no certificate, does not wait for it. Hashed ones may have been due while it was
         * busy. */
        if (a->was_later && !(b->flags & BLOCK_UNMERGE) && (a->is_restore || !(b->flags & (BLOCK_RESTORE | BLOCK_RAGGED)))) {
                later_add(c, a->cl, a->block, a->now_usec);
        } else if (b->flags & (BLOCK_RESTORE | BLOCK_RAGGED) || has_state(b, PAGE_MATCHED) || has_state(b, PAGE_ZEROABLE) ||
            has_state(b, PAGE_HASHED)) {
                block_queue_apply(c, a->block);
        } else {
                b->flags &= (uint16_t) ~BLOCK_SHORT_DUE;
                block_free_if_idle(c, a->block);
        }
        turn_add(c, a->cl, TURN_APPLY);
        if (a->cl->requests)
                job_add(c, a->cl);
}

static bool is_being_forgotten(const struct client *cl, const struct block *b) {
        return client_is_forgetting(cl, b->number << BLOCK_SHIFT, (b->number + 1) << BLOCK_SHIFT);
}

int core_apply_done(struct core *c, uint64_t id, uint64_t now_usec, const uint8_t status[64], int error) {
        struct op *op = op_get(c, id, OP_APPLY);
        struct client *cl = op ? op_client(c, op) : NULL;
        struct answer a = { .c = c, .cl = cl, .now_usec = now_usec, .is_restore = op && op->apply_kind == CORE_APPLY_RESTORE };
        bool is_again;

        if (!cl) {
                if (op)
                        op_free(c, op);
                return 0;
        }
        a.block = op->apply.block;
        if (error == 0 && is_being_forgotten(cl, block_at(c, a.block)))
                return -EAGAIN;
        cl->n_applies--;
        cl->vmas_pending -= op->apply.n_vmas;
        for (uint64_t m = op->apply.mask; m; m &= m - 1) {
                unsigned i = (unsigned) __builtin_ctzll(m);
                /* What never reached the agent is tried again like what came at a bad time. */
                enum core_apply_status s = error < 0 ? CORE_BUSY : status[i];

                if (a.is_restore)
                        answer_restore(&a, i, s);
                else
                        answer_merge(&a, i, s);
        }
        if (client_merging_now(cl))
                cl->requests->event.pages += a.n_done;
        if (!a.was_later && a.n_done > 0)
                later_release(c, cl);
        is_again = client_busy(&a);
        if (a.was_budget)
                client_budget_hit(c, cl, now_usec);
        else if (a.n_done > 0 && !a.is_restore)
                cl->budget_tries = 0;
        if (a.is_restore)
                end_of_restore(&a, is_again, op->is_request);
        op_free(c, op);
        block_answered(&a);
        return 0;
}
