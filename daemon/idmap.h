/* A map from uint32_t to a pointer: open addressing, linear probing, deletion by shifting back. Pointers are not NULL. */
#pragma once

#include <stdint.h>

struct idmap {
        struct idmap_entry {
                void *value;
                uint32_t key;
        } *entries;
        uint32_t capacity; /* 0 or a power of two */
        uint32_t n;
};

void *idmap_get(const struct idmap *m, uint32_t key); /* or NULL */
int idmap_put(struct idmap *m, uint32_t key, void *value); /* 0, -EEXIST or -ENOMEM */
void *idmap_remove(struct idmap *m, uint32_t key); /* what was there, or NULL */
void idmap_clear(struct idmap *m); /* frees the map, not the values */

/* Iterates in no order; the map must not change meanwhile. */
#define IDMAP_FOREACH(m, e)                                                            \
        for (struct idmap_entry *e = (m)->entries; e < (m)->entries + (m)->capacity; e++) \
                if (e->value)
