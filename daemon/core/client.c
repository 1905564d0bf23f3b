#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/core/internal.h"

#define MAX_MAP_COUNT_DEFAULT 65530
/* First guess of pages a scan walks: 256 MiB, about 1 ms; scan.c adapts it to what scans take. */
#define WINDOW_PAGES (UINT64_C(1) << 16)

struct client *client_get(const struct core *c, uint32_t id) {
        struct client *cl = pool_has(&c->clients, id_index(id)) ? client_at(c, id_index(id)) : NULL;

        return cl && cl->id == id && !cl->is_gone ? cl : NULL;
}

int core_client_add(struct core *c, uint32_t domain, const struct core_client_config *config, uint32_t *ret_client) {
        struct domain *d = domain_get(c, domain);
        struct client *cl;
        uint32_t i;
        int r;

        if (!d)
                return -ENOENT;
        r = timer_reserve(c, c->clients.n_items + 1);
        if (r < 0)
                return r;
        r = pool_alloc(&c->clients, &i);
        if (r < 0)
                return r;
        cl = client_at(c, i);
        cl->id = core_new_id(c, i);
        cl->domain = id_index(domain);
        cl->max_map_count = config->max_map_count ?: MAX_MAP_COUNT_DEFAULT;
        cl->n_vmas = config->n_vmas;
        cl->window_pages = WINDOW_PAGES;
        cl->blocks = NIL;
        cl->scan_mark = NIL;
        cl->waiting = cl->ready = cl->publish = cl->apply = cl->later = (struct block_queue){ NIL, NIL };
        for (unsigned k = 0; k < SHORT_BUCKETS; k++)
                cl->shorts[k] = (struct block_queue){ NIL, NIL };
        for (unsigned k = 0; k < TIMER_KINDS; k++)
                cl->timer_pos[k] = NIL;
        d->n_clients++;
        c->n_live_clients++;
        *ret_client = cl->id;
        return 0;
}

/* The agent counts what the process has, our runs included. */
void core_client_set_vmas(struct core *c, uint32_t client, uint32_t n_vmas) {
        struct client *cl = client_get(c, client);

        if (cl)
                cl->n_vmas = (uint32_t) MAX((int64_t) n_vmas - cl->vmas_used, INT64_C(0));
}

void core_client_park(struct core *c, uint32_t client, bool parked) {
        struct client *cl = client_get(c, client);

        if (!cl || cl->is_parked == parked)
                return;
        cl->is_parked = parked;
        scan_epoch_update(c, cl);
        if (parked) {
                turn_remove(c, cl);
                timer_clear(c, cl, TIMER_SCAN);
                return;
        }
        for (int k = 0; k < TURN_KINDS; k++)
                turn_add(c, cl, k);
        pace_news(c);
        if (!cl->is_scanning && cl->n_ranges)
                scan_schedule(c, cl, 0);
}

/* What other clients and callers see ends here at once; the blocks go in steps of core_tick. */
void core_client_gone(struct core *c, uint32_t client) {
        struct client *cl = client_get(c, client);

        if (!cl)
                return;
        request_cancel_all(c, cl, -ESRCH);
        cl->is_gone = true; /* from here on nothing queues it again */
        scan_epoch_update(c, cl);
        turn_remove(c, cl);
        for (int k = 0; k < TIMER_KINDS; k++)
                timer_clear(c, cl, k);
        strips_abandon(c, cl);
        range_free_all(c, cl);
        c->n_live_clients--;
        job_add(c, cl);
}

void job_add(struct core *c, struct client *cl) {
        uint32_t index = id_index(cl->id);

        if (cl->in_jobs)
                return;
        cl->in_jobs = true;
        cl->job_next = NIL;
        if (c->jobs.head == NIL)
                c->jobs.head = index;
        else
                client_at(c, c->jobs.tail)->job_next = index;
        c->jobs.tail = index;
}

static void client_free(struct core *c, struct client *cl) {
        uint32_t domain = cl->domain;

        for (int k = 0; k < 2; k++)
                memory_release(&c->memory, cl->skips[k].items, cl->skips[k].capacity * sizeof(struct skip));
        pool_free(&c->clients, id_index(cl->id));
        domain_at(c, domain)->n_clients--;
        domain_free_if_unused(c, domain);
}

/* A gone client's blocks leave whole, queues and ops in flight notwithstanding: nobody follows its queues any more, and
 * answers of ops find no client. */
static void teardown_step(struct core *c, struct client *cl, unsigned *budget) {
        while (cl->blocks != NIL && *budget > 0) {
                uint32_t block = cl->blocks;

                block_fetch(c, block);
                for (unsigned i = 0; i < BLOCK_PAGES; i++)
                        page_gone(c, block, i, true);
                block_at(c, block)->flags = 0;
                block_free(c, block);
                (*budget)--;
        }
        if (cl->blocks == NIL)
                client_free(c, cl);
        else
                job_add(c, cl);
}

static void forget_block(struct core *c, uint32_t block, const struct walk *w) {
        uint64_t first = block_at(c, block)->number << BLOCK_SHIFT;

        block_fetch(c, block);
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (first + i >= w->start && first + i < w->end)
                        page_gone(c, block, i, false);
        block_free_if_idle(c, block);
}

static void forget_walk(struct core *c, struct client *cl, struct walk *w, unsigned *budget) {
        uint32_t block;

        while ((block = walk_next(c, cl, w, budget)) != NIL)
                forget_block(c, block, w);
        if (w->is_active)
                job_add(c, cl);
}

void client_forget_step(struct core *c, struct client *cl, unsigned *budget) {
        if (cl->is_gone) {
                teardown_step(c, cl, budget);
                return;
        }
        for (unsigned k = 0; k < FORGETS_MAX; k++)
                forget_walk(c, cl, &cl->forgets[k], budget);
}

/* What scans say of an interval that is being forgotten would be forgotten with it: it is dropped. */
bool client_is_forgetting(const struct client *cl, uint64_t page, uint64_t end) {
        for (unsigned k = 0; k < FORGETS_MAX; k++)
                if (cl->forgets[k].is_active && ranges_overlap(page, end, cl->forgets[k].start, cl->forgets[k].end))
                        return true;
        return false;
}

/* NULL: too many are under way. */
static struct walk *forget_slot(struct client *cl) {
        for (unsigned k = 0; k < FORGETS_MAX; k++)
                if (!cl->forgets[k].is_active)
                        return &cl->forgets[k];
        return NULL;
}

/* A small interval is forgotten at once, a large one in steps. */
static void client_forget(struct core *c, struct client *cl, struct walk *w, uint64_t page, uint64_t end) {
        unsigned budget = 64;

        walk_begin(cl, w, page, end);
        forget_walk(c, cl, w, &budget);
}

int core_pages_gone(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages) {
        struct client *cl = client_get(c, client);
        struct walk *w;
        uint64_t end;

        if (!cl)
                return -ENOENT;
        if (n_pages == 0 || __builtin_add_overflow(page, n_pages, &end))
                return -EINVAL;
        w = forget_slot(cl);
        if (!w)
                return -EAGAIN;
        client_forget(c, cl, w, page, end);
        return 0;
}

int core_range_remove(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages) {
        struct client *cl = client_get(c, client);
        struct walk *w;
        uint64_t end;
        int r;

        if (!cl)
                return -ENOENT;
        if (n_pages == 0 || __builtin_add_overflow(page, n_pages, &end))
                return -EINVAL;
        w = forget_slot(cl);
        if (!w)
                return -EAGAIN;
        r = range_cut(c, cl, page, end);
        if (r < 0)
                return r;
        scan_epoch_update(c, cl);
        client_forget(c, cl, w, page, end);
        return 0;
}

int core_range_add(struct core *c, uint32_t client, uint64_t page, uint64_t n_pages) {
        struct client *cl = client_get(c, client);
        const struct range *known;
        uint64_t end;
        int r;

        if (!cl)
                return -ENOENT;
        if (n_pages == 0 || __builtin_add_overflow(page, n_pages, &end) || end >> 52)
                return -EINVAL;
        known = range_find(cl, page);
        if (!known || known->is_unmerged || known->start > page || known->end < end)
                pace_news(c);
        r = range_put(c, cl, page, end, false);
        if (r < 0)
                return r;
        scan_epoch_update(c, cl);
        /* Else the pass that is due or under way finds it, or the one after. */
        if (!cl->is_scanning && !cl->is_parked && cl->timer_pos[TIMER_SCAN] == NIL)
                scan_schedule(c, cl, 0);
        return 0;
}
