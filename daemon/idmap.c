#include "daemon/idmap.h"

#include <errno.h>
#include <stdlib.h>

/* Ids come in sequence from our own core, uids from the kernel: multiplication spreads them well enough. */
static uint32_t home(const struct idmap *m, uint32_t key) {
        return (key * UINT32_C(2654435769)) & (m->capacity - 1);
}

/* The key's entry, or the empty one where it belongs. Only with a capacity: at least half of the entries are empty. */
static struct idmap_entry *place(const struct idmap *m, uint32_t key) {
        for (uint32_t i = home(m, key);; i = (i + 1) & (m->capacity - 1))
                if (!m->entries[i].value || m->entries[i].key == key)
                        return &m->entries[i];
}

void *idmap_get(const struct idmap *m, uint32_t key) {
        return m->capacity ? place(m, key)->value : NULL;
}

static int grow(struct idmap *m) {
        struct idmap bigger = { .capacity = m->capacity ? 2 * m->capacity : 16, .n = m->n };
        bigger.entries = calloc(bigger.capacity, sizeof(*bigger.entries));
        if (!bigger.entries)
                return -ENOMEM;
        IDMAP_FOREACH(m, e)
                *place(&bigger, e->key) = *e;
        free(m->entries);
        *m = bigger;
        return 0;
}

int idmap_put(struct idmap *m, uint32_t key, void *value) {
        if (m->n >= m->capacity / 2) {
                int r = grow(m);
                if (r < 0)
                        return r;
        }
        struct idmap_entry *e = place(m, key);
        if (e->value)
                return -EEXIST;
        *e = (struct idmap_entry){ value, key };
        m->n++;
        return 0;
}

void *idmap_remove(struct idmap *m, uint32_t key) {
        struct idmap_entry *e = m->capacity ? place(m, key) : NULL;
        void *value = e ? e->value : NULL;
        if (!value)
                return NULL;
        uint32_t mask = m->capacity - 1, gap = (uint32_t) (e - m->entries);
        m->entries[gap].value = NULL;
        m->n--;
        /* What probed over the gap moves into it. */
        for (uint32_t i = (gap + 1) & mask; m->entries[i].value; i = (i + 1) & mask)
                if (((i - home(m, m->entries[i].key)) & mask) >= ((i - gap) & mask)) {
                        m->entries[gap] = m->entries[i];
                        m->entries[i].value = NULL;
                        gap = i;
                }
        return value;
}

void idmap_clear(struct idmap *m) {
        free(m->entries);
        *m = (struct idmap){ 0 };
}
