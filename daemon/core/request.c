/* Requests with an end: merge_now and unmerge. One of a client is active, the others wait.
 *
 * merge_now scans its range, waits for the short settle time, scans again, has read what stayed unwritten, and ends when
 * nothing of the client waits for a publish or an apply any more; meanwhile short runs of the client do not wait. unmerge
 * takes the range out of merging, marks its blocks in steps and ends when the last of them is restored. */
#include "daemon/core/internal.h"

#include <assert.h>
#include <errno.h>

/* A neighbour's reader or publisher that hangs must not hold a request for ever. */
#define DRAIN_MAX_USEC (UINT64_C(5) * 1000 * 1000)
#define PAGES_MAX (UINT64_C(1) << 52)

void urgent_add(struct core *c, struct client *cl) {
        uint32_t index = id_index(cl->id);

        if (cl->in_urgent)
                return;
        cl->in_urgent = true;
        cl->urgent_next = NIL;
        if (c->urgent.head == NIL)
                c->urgent.head = index;
        else
                client_at(c, c->urgent.tail)->urgent_next = index;
        c->urgent.tail = index;
}

void urgent_remove(struct core *c, struct client *cl) {
        uint32_t index = id_index(cl->id), before = NIL;

        if (!cl->in_urgent)
                return;
        for (uint32_t i = c->urgent.head; i != index; i = client_at(c, i)->urgent_next)
                before = i;
        if (before == NIL)
                c->urgent.head = cl->urgent_next;
        else
                client_at(c, before)->urgent_next = cl->urgent_next;
        if (c->urgent.tail == index)
                c->urgent.tail = before;
        cl->in_urgent = false;
}

/* The active request is over; its event waits for core_next_event. */
static void request_end(struct core *c, struct client *cl, int error) {
        struct request *r = cl->requests;

        r->event.error = error;
        cl->requests = r->next;
        if (!cl->requests)
                cl->requests_tail = NULL;
        cl->request_walk.is_active = false;
        urgent_remove(c, cl);
        r->next = NULL;
        if (c->done)
                c->done_tail->next = r;
        else
                c->done = r;
        c->done_tail = r;
        if (cl->requests)
                job_add(c, cl);
}

void request_cancel_all(struct core *c, struct client *cl, int error) {
        while (cl->requests)
                request_end(c, cl, error);
        urgent_remove(c, cl);
}

void core_requests_cancel(struct core *c, uint32_t client, int error) {
        struct client *cl = client_get(c, client);

        if (cl)
                request_cancel_all(c, cl, error);
}

void request_free_all(struct core *c) {
        struct core_event ignored;

        while (core_next_event(c, &ignored))
                ;
}

bool core_next_event(struct core *c, struct core_event *ret) {
        struct request *r = c->done;

        if (!r)
                return false;
        *ret = r->event;
        c->done = r->next;
        memory_release(&c->memory, r, sizeof(*r));
        return true;
}

static int request_new(struct core *c, struct client *cl, uint64_t page, uint64_t n_pages, uint64_t cookie,
                       bool is_unmerge) {
        uint64_t end = PAGES_MAX;
        struct request *r;

        if (n_pages == 0)
                page = 0;
        else if (__builtin_add_overflow(page, n_pages, &end) || end > PAGES_MAX)
                return -EINVAL;
        r = memory_realloc(&c->memory, NULL, 0, sizeof(*r));
        if (!r)
                return -ENOMEM;
        *r = (struct request){
                .event = { .cookie = cookie, .client = cl->id },
                .is_unmerge = is_unmerge,
                .start = page,
                .end = end,
        };
        if (cl->requests_tail)
                cl->requests_tail->next = r;
        else
                cl->requests = r;
        cl->requests_tail = r;
        job_add(c, cl);
        return 0;
}

static bool is_registered(const struct client *cl, uint64_t page, uint64_t n_pages) {
        const struct range *r = range_find(cl, n_pages ? page : 0);

        return r && (n_pages == 0 || r->start < page + n_pages);
}

int core_merge_now(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages, uint64_t cookie,
                   uint64_t now_usec) {
        struct client *cl = client_get(c, client);
        unsigned budget = 0;
        int r;

        if (!cl || (n_pages && !is_registered(cl, page, n_pages)))
                return -ENOENT;
        r = request_new(c, cl, page, n_pages, cookie, false);
        if (r == 0) {
                pace_news(c);
                request_step(c, cl, now_usec, &budget);
        }
        return r;
}

int core_unmerge(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages, uint64_t cookie, uint64_t now_usec) {
        struct client *cl = client_get(c, client);
        int r;

        if (!cl || (n_pages && !is_registered(cl, page, n_pages)))
                return -ENOENT;
        r = range_mark_unmerged(c, cl, n_pages ? page : 0, n_pages ? page + n_pages : PAGES_MAX);
        return r < 0 ? r : request_new(c, cl, page, n_pages, cookie, true);
}

/* -- merge_now --------------------------------------------------------------------------------------------------------- */

bool request_scan_window(struct core *c, struct client *cl, uint64_t now_usec, uint64_t *ret_page, uint64_t *ret_end) {
        struct request *r = cl->requests;
        const struct range *range;

        if (!client_merging_now(cl))
                return false;
        if (r->phase == REQUEST_SETTLE && now_usec >= r->until_usec) {
                r->phase = REQUEST_SCAN_2;
                r->cursor = r->start;
                r->scan_usec = now_usec;
        } else if (r->phase == REQUEST_SETTLE) {
                scan_schedule(c, cl, r->until_usec);
        }
        if (r->phase != REQUEST_SCAN_1 && r->phase != REQUEST_SCAN_2)
                return false;
        for (;;) {
                range = range_find(cl, r->cursor);
                if (!range || r->cursor >= r->end || range->start >= r->end)
                        break;
                *ret_page = MAX(range->start, r->cursor);
                *ret_end = MIN(range->end, *ret_page + cl->window_pages);
                *ret_end = MIN(*ret_end, r->end);
                if (!range->is_unmerged)
                        return true;
                r->cursor = range->end;
        }
        if (r->phase == REQUEST_SCAN_1) {
                r->phase = REQUEST_SETTLE;
                r->until_usec = now_usec + usec_of_ms(c->tunables.merge_now_settle_millisecs);
                scan_schedule(c, cl, r->until_usec);
        } else {
                r->phase = REQUEST_READ;
                walk_begin(cl, &cl->request_walk, r->start, r->end);
                urgent_add(c, cl);
                job_add(c, cl);
        }
        return false;
}

/* Settled by the request's measure: not written since a settle time before the second scan. */
bool request_wants_page(const struct core *c, const struct client *cl, uint64_t page, uint64_t record) {
        const struct request *r = cl->requests;
        uint64_t written = record_payload(record);

        return page >= r->start && page < r->end && written < r->scan_usec &&
               r->scan_usec - written >= usec_of_ms(c->tunables.merge_now_settle_millisecs);
}

bool request_is_drained(const struct client *cl) {
        bool is_empty = cl->publish.head == NIL && cl->apply.head == NIL;

        for (unsigned k = 0; k < SHORT_BUCKETS; k++)
                is_empty = is_empty && cl->shorts[k].head == NIL;
        return is_empty && cl->n_applies == 0 && !cl->is_publishing;
}

static void merge_step(struct core *c, struct client *cl, uint64_t now_usec) {
        struct request *r = cl->requests;

        if (r->phase == REQUEST_WAITING) {
                r->phase = REQUEST_SCAN_1;
                r->cursor = r->start;
                r->scan_usec = now_usec;
                scan_schedule(c, cl, now_usec);
        }
        if (c->tunables.run != 1) {
                request_end(c, cl, 0);
                return;
        }
        if (r->phase == REQUEST_READ && !cl->is_reading) {
                if (cl->request_walk.is_active) {
                        urgent_add(c, cl);
                        return;
                }
                r->phase = REQUEST_DRAIN;
                r->until_usec = now_usec + DRAIN_MAX_USEC;
                turn_add(c, cl, TURN_APPLY);
                turn_add(c, cl, TURN_PUBLISH);
        }
        if (r->phase == REQUEST_DRAIN) {
                if (request_is_drained(cl) || now_usec >= r->until_usec)
                        request_end(c, cl, 0);
                else
                        timer_set(c, cl, TIMER_WAKE, r->until_usec);
        }
}

/* -- unmerge ------------------------------------------------------------------------------------------------------------ */

static void unmerge_block(struct core *c, struct client *cl, uint32_t block) {
        struct request *r = cl->requests;
        uint64_t first = block_at(c, block)->number << BLOCK_SHIFT, in_file = block_in_file(c, block_at(c, block));
        bool is_shared = false;

        for (unsigned i = 0; i < BLOCK_PAGES; i++) {
                enum page_state s = record_state(block_at(c, block)->page[i]);

                if (first + i < r->start || first + i >= r->end)
                        continue;
                is_shared |= in_file >> i & 1 || s == PAGE_MERGING || s == PAGE_ZEROING;
                if (s != PAGE_MERGED && s != PAGE_MERGING && s != PAGE_ZEROING)
                        page_set(c, block, i, record(PAGE_NONE, 0, 0));
        }
        if (!is_shared) {
                block_free_if_idle(c, block);
                return;
        }
        if (!(block_at(c, block)->flags & BLOCK_UNMERGE))
                r->n_blocks++;
        block_at(c, block)->flags |= BLOCK_RESTORE | BLOCK_UNMERGE;
        if (block_at(c, block)->flags & BLOCK_LATER)
                later_hurry(c, cl);
        block_queue_apply(c, block);
}

void request_unmerged(struct core *c, struct client *cl, uint64_t pages, uint64_t left, bool is_end) {
        struct request *r = cl->requests;

        if (!r || !r->is_unmerge)
                return;
        r->event.pages += pages;
        r->event.left += left;
        r->n_blocks -= is_end && r->n_blocks > 0;
        job_add(c, cl);
}

static void unmerge_step(struct core *c, struct client *cl, unsigned *budget) {
        struct request *r = cl->requests;
        uint32_t block;

        if (r->phase == REQUEST_WAITING) {
                r->phase = REQUEST_WALK;
                walk_begin(cl, &cl->request_walk, r->start, r->end);
                turn_add(c, cl, TURN_APPLY);
        }
        while ((block = walk_next(c, cl, &cl->request_walk, budget)) != NIL)
                unmerge_block(c, cl, block);
        if (cl->request_walk.is_active) {
                job_add(c, cl);
                return;
        }
        r->phase = REQUEST_RESTORE;
        if (r->n_blocks == 0)
                request_end(c, cl, 0);
}

void request_step(struct core *c, struct client *cl, uint64_t now_usec, unsigned *budget) {
        if (!cl->requests)
                return;
        if (cl->requests->is_unmerge)
                unmerge_step(c, cl, budget);
        else
                merge_step(c, cl, now_usec);
}
