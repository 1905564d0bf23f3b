/* Memory of the core: the injected allocator with an account, and pools of small items named by 32-bit ids.
 *
 * Everything the core allocates goes through core_realloc, so that metadata_bytes is exact and any allocation can be
 * made to fail. An id stays valid until its item is freed; ids are reused. Freeing never fails, and gives memory
 * back as soon as 64 neighbouring items are free.
 *
 * Where memory is limited (core_memory_left), what begins something new asks for room first: pages that become known, pages that are
 * indexed, slots. What follows from them does not: it lives on the reserve. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/core/core.h"

#define NIL UINT32_MAX /* no id */

struct memory {
        struct core_allocator allocator;
        uint64_t bytes; /* allocated now */
        uint64_t limit; /* what `bytes` can become before nothing is left; UINT64_MAX: no limit */
        bool is_short;  /* something was refused, and there is no room yet */
};

/* What is left to take, besides what was promised already. Ends a shortage when there is room again. */
void memory_set_left(struct memory *m, uint64_t left, uint64_t promised);
/* So many bytes were promised that do not show in `bytes`. */
void memory_promise(struct memory *m, uint64_t bytes);
/* May something new be begun that takes so many bytes? From the first no on nothing may, until there is room for more than a little. */
bool memory_has_room(struct memory *m, uint64_t bytes);
/* May what gives memory back, or costs next to none, take so many bytes of the reserve? Half of it is kept even then. */
bool memory_has_reserve(const struct memory *m, uint64_t bytes);

/* Resizes p from old_bytes to new_bytes (0 frees). NULL: no memory, p is as it was. */
void *memory_realloc(struct memory *m, void *p, size_t old_bytes, size_t new_bytes);
void memory_release(struct memory *m, void *p, size_t bytes);
/* Grows *array (of *capacity items) so that it holds `needed`; 0 or -ENOMEM. */
int memory_grow(struct memory *m, void **array, uint32_t *capacity, uint32_t needed, size_t item_bytes);

#define POOL_CHUNK 64
struct pool_chunk;
struct pool_entry {
        struct pool_chunk *chunk; /* NULL: vacant */
        uint32_t next, prev;      /* among partly used chunks; vacant ones use next only */
};
struct pool {
        struct memory *memory;
        struct pool_entry *entries;
        uint32_t n_entries, capacity;
        uint32_t partial, vacant; /* list heads */
        uint32_t item_bytes, max_items, n_items;
};
void pool_init(struct pool *p, struct memory *m, uint32_t item_bytes, uint32_t max_items);
void pool_done(struct pool *p); /* frees all items' memory at once */
/* A zeroed item. 0, -ENOMEM, or -ENOSPC at max_items. */
int pool_alloc(struct pool *p, uint32_t *ret_id);
void pool_free(struct pool *p, uint32_t id);
bool pool_has(const struct pool *p, uint32_t id);
/* Smallest used id >= from, or NIL. */
uint32_t pool_next(const struct pool *p, uint32_t from);

struct pool_chunk {
        uint64_t used; /* bit per item */
        _Alignas(8) uint8_t items[];
};
static inline void *pool_get(const struct pool *p, uint32_t id) {
        return p->entries[id / POOL_CHUNK].chunk->items + (size_t) (id % POOL_CHUNK) * p->item_bytes;
}
