#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/core/internal.h"

/* Ops name their pool item in 24 bits and a sequence number above, which no two ops share. */
#define OP_INDEX_BITS 24

static void *libc_realloc(void *userdata, void *p, size_t size) {
        return realloc(p, size);
}
static void libc_free(void *userdata, void *p) {
        free(p);
}

int core_new(const struct core_allocator *allocator, uint64_t seed, struct core **ret) {
        struct core_allocator a = allocator ? *allocator : (struct core_allocator){ libc_realloc, libc_free, NULL };
        struct core *c = a.realloc(a.userdata, NULL, sizeof(*c));

        if (!c)
                return -ENOMEM;
        memset(c, 0, sizeof(*c));
        c->memory = (struct memory){ .allocator = a, .bytes = sizeof(*c), .limit = UINT64_MAX };
        c->seed = seed;
        tunables_init(&c->tunables);
        pool_init(&c->domains, &c->memory, sizeof(struct domain), 1U << ID_INDEX_BITS);
        pool_init(&c->clients, &c->memory, sizeof(struct client), 1U << ID_INDEX_BITS);
        pool_init(&c->blocks, &c->memory, sizeof(struct block), BLOCKS_MAX);
        pool_init(&c->extents, &c->memory, sizeof(struct extent), NIL - 1);
        pool_init(&c->ops, &c->memory, sizeof(struct op), 1U << OP_INDEX_BITS);
        index_init(&c->block_table, &c->memory, block_table_fetch, c);
        for (int k = 0; k < TURN_KINDS; k++)
                c->turns[k] = (struct turn_list){ NIL, NIL };
        c->jobs = c->urgent = (struct turn_list){ NIL, NIL };
        *ret = c;
        return 0;
}

static void domain_free_all(struct core *c) {
        for (uint32_t i = pool_next(&c->domains, 0); i != NIL; i = pool_next(&c->domains, i + 1)) {
                struct domain *d = domain_at(c, i);

                for (uint32_t u = 0; u < d->n_units; u++)
                        if (d->units[u] && d->units[u]->base == u * SEGMENT_UNIT)
                                segment_free(c, d->units[u]);
                index_done(&d->index);
                memory_release(&c->memory, d->units, d->units_capacity * sizeof(*d->units));
                memory_release(&c->memory, d->open, d->open_capacity * sizeof(struct segment *));
                memory_release(&c->memory, d->key, d->key_size);
        }
}

struct core *core_free(struct core *c) {
        struct core_allocator a;

        if (!c)
                return NULL;
        for (uint32_t i = pool_next(&c->ops, 0); i != NIL; i = pool_next(&c->ops, i + 1))
                op_free(c, pool_get(&c->ops, i));
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                struct client *cl = client_at(c, i);

                request_cancel_all(c, cl, -ESRCH);
                range_free_all(c, cl);
                for (int k = 0; k < 2; k++)
                        memory_release(&c->memory, cl->skips[k].items, cl->skips[k].capacity * sizeof(struct skip));
        }
        request_free_all(c);
        domain_free_all(c);
        index_done(&c->block_table);
        pool_done(&c->blocks);
        pool_done(&c->extents);
        pool_done(&c->ops);
        pool_done(&c->clients);
        pool_done(&c->domains);
        for (int k = 0; k < TIMER_KINDS; k++)
                memory_release(&c->memory, c->timers[k].items, c->timers[k].capacity * sizeof(struct timer));
        assert(c->memory.bytes == sizeof(*c));
        a = c->memory.allocator;
        a.free(a.userdata, c);
        return NULL;
}

bool core_memory_left(struct core *c, uint64_t bytes) {
        memory_set_left(&c->memory, bytes, c->n_publishing_pages * KSM_PAGE_SIZE);
        return c->memory.is_short;
}

const struct tunables *core_tunables(const struct core *c) {
        return &c->tunables;
}

/* run=2: every block with merged pages is restored; run=1 after it lets the pages, fresh again, take the usual way. */
static void set_run(struct core *c, int64_t run) {
        c->is_unmerging = run == 2;
        for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1)) {
                struct client *cl = client_at(c, i);

                if (cl->is_gone)
                        continue;
                for (int k = 0; k < TURN_KINDS; k++)
                        turn_add(c, cl, k);
                if (cl->requests)
                        job_add(c, cl); /* a merge on demand ends when merging stops */
                if (!c->is_unmerging)
                        continue;
                if (cl->sweep.is_active)
                        cl->wants_look = true; /* the sweep now serves the unmerge */
                walk_begin(cl, &cl->sweep, 0, UINT64_MAX);
                job_add(c, cl);
        }
}

int core_tunable_set(struct core *c, enum tunable_id id, int64_t value, uint64_t now_usec) {
        int64_t before;
        int r;

        if ((unsigned) id >= TUNABLE_MAX_)
                return -ENOENT;
        before = tunable_get(&c->tunables, id);
        if (id == TUNABLE_pages_to_scan && c->tunables.advisor_mode != ADVISOR_NONE)
                return -EINVAL;
        r = tunable_set(&c->tunables, id, value);
        if (r < 0)
                return r;
        if (id == TUNABLE_run) {
                set_run(c, value);
                advisor_scan_begins(c, now_usec); /* rest is not scan time */
                round_begins(c, now_usec);
        }
        if (id == TUNABLE_advisor_mode && value != before)
                advisor_mode_changed(c, now_usec);
        if (id == TUNABLE_merge_across_nodes && value != before && c->has_nodes)
                c->node_round++;
        if (id == TUNABLE_max_page_sharing)
                prune_mark_all(c);
        if (id == TUNABLE_pages_to_scan || id == TUNABLE_sleep_millisecs)
                c->read_tokens = MIN(c->read_tokens, (double) c->tunables.pages_to_scan);
        if (id == TUNABLE_pass_millisecs)
                for (uint32_t i = pool_next(&c->clients, 0); i != NIL; i = pool_next(&c->clients, i + 1))
                        scan_hurry(c, client_at(c, i));
        if (value != before)
                pace_news(c);
        return 0;
}

/* Generations start at 1 and skip 0, so that no id is 0. */
uint32_t core_new_id(struct core *c, uint32_t index) {
        uint32_t generations = (1U << (32 - ID_INDEX_BITS)) - 1;

        c->id_sequence = c->id_sequence % generations + 1;
        return c->id_sequence << ID_INDEX_BITS | index;
}

struct op *op_new(struct core *c, enum op_kind kind, struct client *cl) {
        struct op *op;
        uint32_t i;

        if (pool_alloc(&c->ops, &i) < 0)
                return NULL;
        op = pool_get(&c->ops, i);
        op->id = ++c->op_sequence << OP_INDEX_BITS | i;
        op->kind = (uint8_t) kind;
        op->client = cl->id;
        op->domain = client_domain(c, cl)->id;
        return op;
}

struct op *op_get(const struct core *c, uint64_t id, enum op_kind kind) {
        uint32_t i = (uint32_t) (id & ((1U << OP_INDEX_BITS) - 1));
        struct op *op = pool_has(&c->ops, i) ? pool_get(&c->ops, i) : NULL;

        return op && op->id == id && op->kind == kind ? op : NULL;
}

void op_free(struct core *c, struct op *op) {
        if (op->kind == OP_READ)
                memory_release(&c->memory, op->read.pages, CORE_READ_PAGES * sizeof(*op->read.pages));
        if (op->kind == OP_PUBLISH)
                memory_release(&c->memory, op->publish, sizeof(*op->publish));
        pool_free(&c->ops, (uint32_t) (op->id & ((1U << OP_INDEX_BITS) - 1)));
}

struct client *op_client(const struct core *c, const struct op *op) {
        return client_get(c, op->client);
}

/* How long a page must stay unwritten: doubled by each failure, up to about a minute. */
uint64_t settle_usec(const struct core *c, unsigned fails) {
        enum { SETTLE_MAX_USEC = 64 * 1000 * 1000, FAILED_MIN_USEC = 100 * 1000 };
        uint64_t base = pace_usec(c, c->tunables.settle_millisecs), usec = base;

        if (fails == 0)
                return base;
        usec = MAX(usec, (uint64_t) FAILED_MIN_USEC) << fails;
        usec = MIN(usec, (uint64_t) SETTLE_MAX_USEC);
        return MAX(base, usec);
}

uint64_t core_tick(struct core *c, uint64_t now_usec) {
        /* Block visits a call: about a millisecond. */
        unsigned budget = 2048;
        uint64_t next_usec;

        for (unsigned n = 0; c->jobs.head != NIL && budget > 0 && n < 256; n++) {
                struct client *cl = client_at(c, c->jobs.head);

                c->jobs.head = cl->job_next;
                if (c->jobs.head == NIL)
                        c->jobs.tail = NIL;
                cl->in_jobs = false;
                /* The last step of a client that is gone frees it. */
                bool is_gone = cl->is_gone;
                client_forget_step(c, cl, &budget);
                if (is_gone)
                        continue;
                found_sweep_step(c, cl, &budget);
                restore_retry_step(c, cl, &budget);
                request_step(c, cl, now_usec, &budget);
        }
        next_usec = MIN(adopt_step(c, now_usec, &budget), clean_step(c, now_usec, &budget));
        next_usec = MIN(next_usec, prune_step(c, now_usec, &budget));
        return c->jobs.head != NIL ? now_usec : next_usec;
}
