/* What became of a transition. The answer acts on a page only if its record still says what the plan made it say (apply.c); what
 * could not be done says why, and that decides when it is tried again. */
#include "daemon/core/internal.h"

#include <errno.h>

#define BUSY_FIRST_USEC 2000
#define BUSY_MAX_DOUBLINGS 6
/* After so many refusals in a row the pages go back to the end of the queue by settling again. */
#define BUSY_TRIES_MAX 12

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
        } else if (slot_at(client_domain(c, a->cl), (uint32_t) record_payload(r))->is_misplaced) {
                node_look_failed(c, a->cl); /* a look finds no page that is away in a transition */
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
        trace_answer(a->c, a->block, i, status);
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
        } else if (b->flags & (BLOCK_RESTORE | BLOCK_RAGGED) || block_has_state(b, PAGE_MATCHED) || block_has_state(b, PAGE_ZEROABLE) ||
            block_has_state(b, PAGE_HASHED)) {
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
