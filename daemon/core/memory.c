#include "daemon/core/memory.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "common/cleanup.h"

void *memory_realloc(struct memory *m, void *p, size_t old_bytes, size_t new_bytes) {
        void *q;

        if (new_bytes == 0) {
                memory_release(m, p, old_bytes);
                return NULL;
        }
        q = m->allocator.realloc(m->allocator.userdata, p, new_bytes);
        if (q)
                m->bytes += new_bytes - old_bytes;
        return q;
}

void memory_release(struct memory *m, void *p, size_t bytes) {
        if (!p)
                return;
        m->allocator.free(m->allocator.userdata, p);
        m->bytes -= bytes;
}

/* Between the end of one shortage and the beginning of the next: a few publishes. */
#define ROOM_MARGIN_BYTES (CORE_MEMORY_RESERVE_BYTES / 8)

static bool fits(const struct memory *m, uint64_t bytes) {
        return m->limit == UINT64_MAX || (m->limit >= m->bytes && m->limit - m->bytes >= bytes);
}

void memory_set_left(struct memory *m, uint64_t left, uint64_t promised) {
        uint64_t sum;

        if (left == UINT64_MAX || __builtin_add_overflow(m->bytes, left, &sum))
                m->limit = UINT64_MAX;
        else
                m->limit = sum - MIN(sum, promised);
        if (fits(m, CORE_MEMORY_RESERVE_BYTES + ROOM_MARGIN_BYTES))
                m->is_short = false;
}

void memory_promise(struct memory *m, uint64_t bytes) {
        if (m->limit != UINT64_MAX)
                m->limit -= MIN(m->limit, bytes);
}

bool memory_has_room(struct memory *m, uint64_t bytes) {
        if (!fits(m, CORE_MEMORY_RESERVE_BYTES + bytes))
                m->is_short = true;
        return !m->is_short;
}

bool memory_has_reserve(const struct memory *m, uint64_t bytes) {
        return fits(m, CORE_MEMORY_RESERVE_BYTES / 2 + bytes);
}

int memory_grow(struct memory *m, void **array, uint32_t *capacity, uint32_t needed, size_t item_bytes) {
        uint32_t wanted = *capacity + *capacity / 2;
        void *p;

        if (needed <= *capacity)
                return 0;
        if (wanted < needed)
                wanted = needed;
        if (wanted < 8)
                wanted = 8;
        p = memory_realloc(m, *array, *capacity * item_bytes, wanted * item_bytes);
        if (!p)
                return -ENOMEM;
        *array = p;
        *capacity = wanted;
        return 0;
}

static size_t chunk_bytes(const struct pool *p) {
        return sizeof(struct pool_chunk) + (size_t) POOL_CHUNK * p->item_bytes;
}

void pool_init(struct pool *p, struct memory *m, uint32_t item_bytes, uint32_t max_items) {
        *p = (struct pool){
                .memory = m,
                .item_bytes = item_bytes,
                .max_items = max_items,
                .partial = NIL,
                .vacant = NIL,
        };
}

void pool_done(struct pool *p) {
        for (uint32_t i = 0; i < p->n_entries; i++)
                memory_release(p->memory, p->entries[i].chunk, chunk_bytes(p));
        memory_release(p->memory, p->entries, p->capacity * sizeof(*p->entries));
        pool_init(p, p->memory, p->item_bytes, p->max_items);
}

static void partial_push(struct pool *p, uint32_t e) {
        p->entries[e].prev = NIL;
        p->entries[e].next = p->partial;
        if (p->partial != NIL)
                p->entries[p->partial].prev = e;
        p->partial = e;
}

static void partial_remove(struct pool *p, uint32_t e) {
        struct pool_entry *entry = &p->entries[e];

        if (entry->prev != NIL)
                p->entries[entry->prev].next = entry->next;
        else
                p->partial = entry->next;
        if (entry->next != NIL)
                p->entries[entry->next].prev = entry->prev;
}

static int pool_add_chunk(struct pool *p) {
        struct pool_chunk *chunk;
        uint32_t e = p->vacant;
        int r;

        if (e == NIL) {
                r = memory_grow(p->memory, (void **) &p->entries, &p->capacity, p->n_entries + 1, sizeof(*p->entries));
                if (r < 0)
                        return r;
        }
        chunk = memory_realloc(p->memory, NULL, 0, chunk_bytes(p));
        if (!chunk)
                return -ENOMEM;
        chunk->used = 0;
        if (e == NIL)
                e = p->n_entries++;
        else
                p->vacant = p->entries[e].next;
        p->entries[e].chunk = chunk;
        partial_push(p, e);
        return 0;
}

int pool_alloc(struct pool *p, uint32_t *ret_id) {
        struct pool_chunk *chunk;
        uint32_t e, i;
        int r;

        if (p->n_items >= p->max_items)
                return -ENOSPC;
        if (p->partial == NIL) {
                r = pool_add_chunk(p);
                if (r < 0)
                        return r;
        }
        e = p->partial;
        chunk = p->entries[e].chunk;
        i = (uint32_t) __builtin_ctzll(~chunk->used);
        chunk->used |= UINT64_C(1) << i;
        if (chunk->used == UINT64_MAX)
                partial_remove(p, e);
        p->n_items++;
        *ret_id = e * POOL_CHUNK + i;
        memset(pool_get(p, *ret_id), 0, p->item_bytes);
        return 0;
}

void pool_free(struct pool *p, uint32_t id) {
        uint32_t e = id / POOL_CHUNK;
        struct pool_chunk *chunk = p->entries[e].chunk;

        assert(pool_has(p, id));
        if (chunk->used == UINT64_MAX)
                partial_push(p, e);
        chunk->used &= ~(UINT64_C(1) << (id % POOL_CHUNK));
        p->n_items--;
        if (chunk->used)
                return;
        partial_remove(p, e);
        memory_release(p->memory, chunk, chunk_bytes(p));
        p->entries[e].chunk = NULL;
        p->entries[e].next = p->vacant;
        p->vacant = e;
}

bool pool_has(const struct pool *p, uint32_t id) {
        const struct pool_chunk *chunk = id / POOL_CHUNK < p->n_entries ? p->entries[id / POOL_CHUNK].chunk : NULL;

        return chunk && (chunk->used >> (id % POOL_CHUNK) & 1);
}

uint32_t pool_next(const struct pool *p, uint32_t from) {
        for (uint32_t e = from / POOL_CHUNK; e < p->n_entries; e++) {
                const struct pool_chunk *chunk = p->entries[e].chunk;
                uint64_t used = chunk ? chunk->used : 0;

                if (e == from / POOL_CHUNK)
                        used &= UINT64_MAX << (from % POOL_CHUNK);
                if (used)
                        return e * POOL_CHUNK + (uint32_t) __builtin_ctzll(used);
        }
        return NIL;
}
