/* Planning transitions. A block has at most one apply in flight; what its pages are to become is in their records, so the plan is
 * made when the op is handed out, from whole runs. answer.c has what became of them. */
#include "daemon/core/internal.h"

#define LONG_RUN 8
#define SHORT_WAIT_PASSES 2
#define STAMP_MASK ((1U << (32 - ID_INDEX_BITS)) - 1)

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

static bool plan_restore(struct plan *p) {
        struct block *b = block_at(p->c, p->block);

        p->kind = CORE_APPLY_RESTORE;
        p->mask = restore_pages(p->c, b);
        b->flags &= (uint16_t) ~(BLOCK_RAGGED | BLOCK_DOUBTFUL);
        return p->mask;
}

/* Length of the run of matched pages with consecutive slots that begins at i. */
static unsigned run_length(const struct plan *p, unsigned i) {
        const struct domain *d = client_domain(p->c, p->cl);
        const struct block *b = block_at(p->c, p->block);
        unsigned n = 1;

        while (i + n < BLOCK_PAGES && record_state(b->page[i + n]) == PAGE_MATCHED &&
               slots_are_neighbours(d, page_slot(p->c, b, i + n - 1), page_slot(p->c, b, i + n)))
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
        if (!is_due && block_has_state(b, PAGE_HASHED))
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
                if (e && (slot == NIL || slots_are_neighbours(d, page_slot(p->c, b, i - 1), slot))) {
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
        if (block_has_state(b, PAGE_ZEROABLE) && plan_zero(p))
                return true;
        if (b->flags & (BLOCK_PUBLISH | BLOCK_PUBLISHING))
                return false; /* comes back when that is done */
        if (b->flags & BLOCK_SHORT_DUE && block_has_state(b, PAGE_HASHED)) {
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
