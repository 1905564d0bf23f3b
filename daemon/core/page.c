/* Blocks and page records: finding, making and freeing blocks, and every change of a record.
 *
 * A record that holds something (an index entry, a pending count of a slot, a place in an extent) releases it here, so
 * that a page can leave any state at any time: a scan may find it written, the agent may say it is gone, its client may
 * exit. */
#include "daemon/core/internal.h"

#include <assert.h>
#include <errno.h>

#define CACHE_LINE 64

static uint64_t mix(uint64_t x) {
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        return x ^ x >> 31;
}

static uint64_t block_hash(const struct core *c, uint32_t client, uint64_t number) {
        return mix(mix(number + c->seed) + client);
}

void block_table_fetch(void *core, uint32_t block) {
        __builtin_prefetch(block_at(core, block));
}

void blocks_fetch(const struct core *c, const struct client *cl, const uint64_t *numbers, size_t n) {
        uint64_t hashes[FETCH_BLOCKS];

        for (size_t k = 0; k < n; k++)
                hashes[k] = block_hash(c, id_index(cl->id), numbers[k]);
        index_fetch(&c->block_table, hashes, n);
}

void records_fetch(const struct core *c, uint32_t block) {
        if (block == NIL)
                return;
        for (unsigned k = 0; k < sizeof(struct block); k += CACHE_LINE)
                __builtin_prefetch((const char *) block_at(c, block) + k);
}

void block_fetch(const struct core *c, uint32_t block) {
        const struct block *b = block_at(c, block);
        const struct domain *d = client_domain(c, block_client(c, b));
        uint64_t hashes[BLOCK_PAGES];
        unsigned n = 0;

        records_fetch(c, b->next); /* that the walk comes to next */
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (record_state(b->page[i]) == PAGE_UNSHARED)
                        hashes[n++] = record_hash(b->page[i]);
        index_fetch(&d->index, hashes, n);
}

struct wanted_block {
        const struct core *c;
        uint64_t number;
        uint32_t client;
};

static bool is_wanted_block(void *userdata, uint32_t id) {
        struct wanted_block *w = userdata;
        struct block *b = block_at(w->c, id);

        return b->number == w->number && b->client == w->client;
}

uint32_t block_find(const struct core *c, const struct client *cl, uint64_t number) {
        struct wanted_block w = { c, number, id_index(cl->id) };

        return index_find(&c->block_table, block_hash(c, w.client, number), is_wanted_block, &w);
}

uint32_t block_ensure(struct core *c, struct client *cl, uint64_t number) {
        uint32_t block = block_find(c, cl, number);
        struct block *b;

        if (block != NIL)
                return block;
        if (pool_alloc(&c->blocks, &block) < 0)
                return NIL;
        b = block_at(c, block);
        b->number = number;
        b->client = id_index(cl->id) & ((1U << ID_INDEX_BITS) - 1);
        b->extents = NIL;
        if (index_insert(&c->block_table, block_hash(c, b->client, number), block) < 0) {
                pool_free(&c->blocks, block);
                return NIL;
        }
        b->prev = NIL;
        b->next = cl->blocks;
        if (cl->blocks != NIL)
                block_at(c, cl->blocks)->prev = block;
        cl->blocks = block;
        cl->n_blocks++;
        c->states[PAGE_NONE] += BLOCK_PAGES;
        cl->states[PAGE_NONE] += BLOCK_PAGES;
        return block;
}

static void walk_leave(struct walk *w, uint32_t block, uint32_t next) {
        if (w->is_active && !w->by_number && w->block == block)
                w->block = next;
}

void block_free(struct core *c, uint32_t block) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);

        for (unsigned k = 0; k < FORGETS_MAX; k++)
                walk_leave(&cl->forgets[k], block, b->next);
        walk_leave(&cl->sweep, block, b->next);
        walk_leave(&cl->request_walk, block, b->next);
        walk_leave(&cl->retry, block, b->next);
        (void) index_remove(&c->block_table, block_hash(c, b->client, b->number), block);
        if (b->prev != NIL)
                block_at(c, b->prev)->next = b->next;
        else
                cl->blocks = b->next;
        if (b->next != NIL)
                block_at(c, b->next)->prev = b->prev;
        cl->n_blocks--;
        c->states[PAGE_NONE] -= BLOCK_PAGES;
        cl->states[PAGE_NONE] -= BLOCK_PAGES;
        pool_free(&c->blocks, block);
}

void block_free_if_idle(struct core *c, uint32_t block) {
        struct block *b = block_at(c, block);

        if (b->flags & (BLOCK_QUEUED | BLOCK_BUSY | BLOCK_PUBLISHING) || b->extents != NIL)
                return;
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (record_state(b->page[i]) != PAGE_NONE)
                        return;
        block_free(c, block);
}

bool block_has_state(const struct block *b, enum page_state s) {
        for (unsigned i = 0; i < BLOCK_PAGES; i++)
                if (record_state(b->page[i]) == s)
                        return true;
        return false;
}

/* -- queues: each flag has its link ------------------------------------------------------------------------------- */

static uint32_t *link_of(struct block *b, enum block_flags flag) {
        return flag == BLOCK_WAITING ? &b->read_next : flag == BLOCK_PUBLISH ? &b->publish_next : &b->apply_next;
}

void block_push(struct core *c, struct block_queue *q, uint32_t block, enum block_flags flag) {
        struct block *b = block_at(c, block);

        /* A gone client's blocks are freed without leaving its queues, which nobody follows any more. */
        if (block_client(c, b)->is_gone)
                return;
        assert(!(b->flags & flag));
        b->flags |= (uint16_t) flag;
        *link_of(b, flag) = NIL;
        if (q->head == NIL)
                q->head = block;
        else
                *link_of(block_at(c, q->tail), flag) = block;
        q->tail = block;
}

uint32_t block_pop(struct core *c, struct block_queue *q, enum block_flags flag) {
        uint32_t block = q->head;
        struct block *b;

        if (block == NIL)
                return NIL;
        b = block_at(c, block);
        b->flags &= (uint16_t) ~flag;
        q->head = *link_of(b, flag);
        if (q->head == NIL)
                q->tail = NIL;
        return block;
}

void block_queue_read(struct core *c, uint32_t block) {
        struct block *b = block_at(c, block);

        if (!(b->flags & BLOCK_WAITING))
                block_push(c, &block_client(c, b)->waiting, block, BLOCK_WAITING);
}

void block_queue_publish(struct core *c, uint32_t block) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);

        if (!(b->flags & (BLOCK_PUBLISH | BLOCK_PUBLISHING)))
                block_push(c, &cl->publish, block, BLOCK_PUBLISH);
        turn_add(c, cl, TURN_PUBLISH);
}

/* A block whose short runs or uncertified pages wait has its link in use; it comes by itself when they are due, or is busy and
 * comes then. */
void block_queue_apply(struct core *c, uint32_t block) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);

        if (!(b->flags & (BLOCK_APPLY | BLOCK_SHORT | BLOCK_LATER)))
                block_push(c, &cl->apply, block, BLOCK_APPLY);
        turn_add(c, cl, TURN_APPLY);
}

/* -- records ------------------------------------------------------------------------------------------------------ */

void page_mark(struct core *c, uint32_t block, unsigned i, uint64_t r) {
        struct block *b = block_at(c, block);
        struct client *cl = block_client(c, b);
        enum page_state from = record_state(b->page[i]), to = record_state(r);

        b->page[i] = r;
        c->states[from]--;
        c->states[to]++;
        cl->states[from]--;
        cl->states[to]++;
}

void page_set(struct core *c, uint32_t block, unsigned i, uint64_t r) {
        struct block *b = block_at(c, block);
        struct domain *d = client_domain(c, block_client(c, b));
        uint64_t old = b->page[i];

        switch (record_state(old)) {
        case PAGE_UNSHARED:
        case PAGE_PARTNER:
                (void) index_remove(&d->index, record_hash(old), page_id(block, i));
                break;
        case PAGE_MATCHED:
        case PAGE_MERGING:
                slot_unpend(c, d, (uint32_t) record_payload(old));
                break;
        case PAGE_MERGED:
                trace_unshare(c, block, i, page_file_slot(c, b, i));
                slot_unshare(c, d, page_file_slot(c, b, i));
                break;
        default:
                break;
        }
        page_mark(c, block, i, r);
}

void page_fresh(struct core *c, uint32_t block, unsigned i, unsigned fails, uint64_t usec) {
        page_set(c, block, i, record(PAGE_FRESH, fails, usec));
        block_queue_read(c, block);
}

/* A page that is private by the books maps a segment. Inside a mapping of ours that is the slot it always lay at, and that
 * the books took it from (the segment is being cleaned); elsewhere it is someone else's. */
static void page_maps_file(struct core *c, uint32_t block, unsigned i, uint64_t usec) {
        struct block *b = block_at(c, block);
        bool is_unknown = record_state(b->page[i]) == PAGE_NONE;

        if (extent_find(c, b, i) != NIL && is_unknown)
                page_fresh(c, block, i, record_fails(b->page[i]), usec);
        else if (extent_find(c, b, i) == NIL && !is_unknown)
                page_set(c, block, i, record(PAGE_FOREIGN, 0, 0));
}

/* A private page of ours was written, or is the kernel's zero page again, or maps a segment. */
static void page_rewritten(struct core *c, uint32_t block, unsigned i, uint32_t categories, uint64_t usec) {
        unsigned fails = record_fails(block_at(c, block)->page[i]);

        if (categories & CORE_FILE)
                page_maps_file(c, block, i, usec);
        else if (categories & CORE_ZERO)
                page_set(c, block, i, record(PAGE_NONE, fails, 0));
        else
                page_fresh(c, block, i, fails, usec);
}

/* Private again, in the middle of the mapping; settles there like any other page. */
static void page_cowed(struct core *c, uint32_t block, unsigned i, uint32_t categories, uint64_t usec) {
        unsigned fails = more_fails(record_fails(block_at(c, block)->page[i]), 1);

        c->counters.unshares++;
        page_set(c, block, i, record(PAGE_NONE, fails, 0));
        if (!(categories & CORE_ZERO))
                page_fresh(c, block, i, fails, usec);
}

void page_written(struct core *c, uint32_t block, unsigned i, uint32_t categories, uint64_t usec) {
        struct block *b = block_at(c, block);

        switch (record_state(b->page[i])) {
        case PAGE_MERGING:
        case PAGE_ZEROING:
                /* Before or after the transition? A look at what is mapped will tell. */
                block_client(c, b)->wants_look = true;
                break;
        case PAGE_MERGED:
                if (!(categories & CORE_FILE))
                        page_cowed(c, block, i, categories, usec);
                break;
        case PAGE_ZEROED:
                if (!(categories & CORE_ZERO))
                        page_rewritten(c, block, i, categories, usec);
                break;
        default:
                page_rewritten(c, block, i, categories, usec);
        }
}

/* The same from a plain look: what is private and known need not have been written. */
void page_seen(struct core *c, uint32_t block, unsigned i, uint32_t categories, uint64_t usec) {
        uint64_t r = block_at(c, block)->page[i];

        switch (record_state(r)) {
        case PAGE_NONE:
        case PAGE_FOREIGN:
                if (categories & CORE_FILE)
                        page_maps_file(c, block, i, usec);
                else if (!(categories & CORE_ZERO))
                        page_fresh(c, block, i, record_fails(r), usec);
                break;
        case PAGE_ZEROED:
                if (!(categories & (CORE_FILE | CORE_ZERO)))
                        page_fresh(c, block, i, 1, usec);
                break;
        case PAGE_MERGED:
                if (!(categories & CORE_FILE))
                        page_cowed(c, block, i, categories, usec);
                break;
        case PAGE_READING:
        case PAGE_MERGING:
        case PAGE_ZEROING:
                break;
        default:
                if (categories & CORE_FILE)
                        page_maps_file(c, block, i, usec);
        }
}

void page_gone(struct core *c, uint32_t block, unsigned i, bool is_final) {
        enum page_state s = record_state(block_at(c, block)->page[i]);

        if (s == PAGE_MERGED)
                c->counters.unshares++;
        if (is_final || (s != PAGE_MERGING && s != PAGE_ZEROING))
                page_set(c, block, i, record(PAGE_NONE, 0, 0));
        extent_leave(c, block, i);
}

/* -- walks ---------------------------------------------------------------------------------------------------------- */

void walk_begin(const struct client *cl, struct walk *w, uint64_t start, uint64_t end) {
        uint64_t first = start >> BLOCK_SHIFT, last = (end - 1) >> BLOCK_SHIFT;

        *w = (struct walk){
                .start = start,
                .end = end,
                .number = first,
                .block = cl->blocks,
                .by_number = last - first < cl->n_blocks,
                .is_active = true,
        };
}

uint32_t walk_next(struct core *c, struct client *cl, struct walk *w, unsigned *budget) {
        uint64_t first = w->start >> BLOCK_SHIFT, last = (w->end - 1) >> BLOCK_SHIFT;

        while (w->is_active && *budget > 0) {
                uint32_t block = w->block;

                (*budget)--;
                if (w->by_number) {
                        if (w->number > last) {
                                w->is_active = false;
                                break;
                        }
                        block = block_find(c, cl, w->number++);
                        if (block != NIL)
                                return block;
                        continue;
                }
                if (block == NIL) {
                        w->is_active = false;
                        break;
                }
                w->block = block_at(c, block)->next;
                if (block_at(c, block)->number >= first && block_at(c, block)->number <= last)
                        return block;
        }
        return NIL;
}
